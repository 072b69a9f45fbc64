"""Sampling weights against torchvision's RoIAlign, and against a plain loop where RoIAlign cannot go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import roi_align

from tokenlabel.core.errors import LabelError
from tokenlabel.labels import sparse_targets
from tokenlabel.labels.geometry import (
    centre_crop_affine,
    compose,
    map_affine,
    released_affine,
    sampling,
    sampling_weights,
    token_centres,
    view_affine,
)
from tokenlabel.train.operations import Operation, apply_operation

from .drawing import region_maps, regions, shown_by_tokens


def random_boxes(generator: torch.Generator, count: int, reach: float = 1.0) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * reach - (reach - 1) / 2
    corners[:, 1] += 0.02
    return corners.flatten(1)


def reference(maps: torch.Tensor, boxes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    rows, cols = maps.shape[2:]
    scaled = boxes * boxes.new_tensor([cols, rows, cols, rows])
    rois = torch.cat([torch.arange(len(boxes), dtype=boxes.dtype)[:, None], scaled], 1)
    return roi_align(maps, rois, grid, sampling_ratio=-1, aligned=True)


def sampled(maps: torch.Tensor, weights: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return (weights.to(maps.dtype) @ maps.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    map_size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    grid=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    reach=st.sampled_from([1.0, 1.7, 4.0]),  # 1: inside the photograph; above: partly or wholly outside
    dtype=st.sampled_from([torch.float32, torch.float64]),
    flipped=st.lists(st.booleans(), min_size=5, max_size=5),
    as_affine=st.booleans(),
)
def test_boxes_equal_roi_align(
    seed: int, map_size: tuple[int, int], grid: tuple[int, int], reach: float, dtype: torch.dtype, flipped: list[bool],
    as_affine: bool,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(5, 3, *map_size, generator=generator).to(dtype)
    boxes, mirrored = random_boxes(generator, 5, reach).to(dtype), torch.tensor(flipped)
    expected = reference(maps, boxes, grid)
    expected = torch.where(mirrored[:, None, None, None], expected.flip(3), expected)
    weights = sampling_weights(boxes, grid, map_size, flipped=mirrored)
    assert weights.dtype == dtype
    torch.testing.assert_close(sampled(maps, weights, grid), expected, atol=1e-5, rtol=0)
    if as_affine and dtype == torch.float64:  # in float32 a ceiling may fall to the other side of a whole number
        weights = sampling_weights(None, grid, map_size, affine=view_affine(boxes, mirrored))
        torch.testing.assert_close(sampled(maps, weights, grid), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("box", "grid", "map_size"),
    [
        ((0.0, 0.0, 1.0, 1.0), (14, 14), (18, 18)),
        ((0.0, 0.0, 1.0, 1.0), (18, 18), (18, 18)),
        ((0.0, 0.0, 1.0, 1.0), (9, 6), (18, 18)),
        ((0.1, 0.2, 0.6, 0.9), (7, 5), (14, 10)),  # extents that are whole numbers but for rounding
        ((-0.25, -0.25, 1.25, 1.25), (4, 4), (8, 8)),  # points exactly on the limit of -1
        ((0.3, 0.0, 0.7, 1.0), (1, 1), (18, 18)),
    ],
)
def test_boxes_where_the_ceiling_is_at_stake(
    box: tuple[float, ...], grid: tuple[int, int], map_size: tuple[int, int]
) -> None:
    maps = torch.randn(1, 4, *map_size, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([box])
    expected = reference(maps, boxes, grid)
    torch.testing.assert_close(
        sampled(maps, sampling_weights(boxes, grid, map_size), grid), expected, atol=1e-5, rtol=0
    )


def test_x_runs_along_columns() -> None:
    weights = sampling_weights(torch.tensor([[0.0, 0.0, 1.0, 0.5]]), (1, 1), (4, 6)).view(4, 6)
    assert weights[:2].sum() > 0.8  # the top half takes from the top rows...
    torch.testing.assert_close(weights[0, :3].sum(), weights[0, 3:].sum())  # ...evenly left and right


@pytest.mark.parametrize("as_affine", [False, True], ids=["flipped", "affine"])
def test_flips_mirror_the_tokens(as_affine: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    maps, grid = torch.randn(6, 2, 7, 11, generator=generator), (5, 4)
    boxes = random_boxes(generator, 6)
    flipped = torch.tensor([True, False, True, True, False, False])
    if as_affine:
        weights = sampling_weights(None, grid, (7, 11), affine=view_affine(boxes, flipped))
    else:
        weights = sampling_weights(boxes, grid, (7, 11), flipped=flipped)
    plain = reference(maps, boxes, grid)
    expected = torch.where(flipped[:, None, None, None], plain.flip(3), plain)
    torch.testing.assert_close(sampled(maps, weights, grid), expected, atol=1e-5, rtol=0)


def test_affine_of_a_vertical_flip() -> None:
    maps, grid = torch.randn(1, 2, 7, 11, generator=torch.Generator().manual_seed(3)), (5, 4)
    box = torch.tensor([[0.1, 0.2, 0.8, 0.95]])
    upside_down = torch.tensor([[[1.0, 0, 0], [0, -1.0, 1.0]]])
    weights = sampling_weights(None, grid, (7, 11), affine=compose(view_affine(box), upside_down))
    torch.testing.assert_close(sampled(maps, weights, grid), reference(maps, box, grid).flip(2), atol=1e-5, rtol=0)


def loop_weights(affine: np.ndarray, grid: tuple[int, int], map_size: tuple[int, int]) -> np.ndarray:
    """The definition, point by point and corner by corner as roi_align's source has it."""
    (rows, cols), (map_rows, map_cols) = grid, map_size
    weights = np.zeros((rows * cols, map_rows, map_cols))
    scale = np.array([map_cols, map_rows])
    points_u, points_v = (
        math.ceil(np.linalg.norm(affine[:, axis] * scale) / (cols, rows)[axis] - 1e-6) for axis in (0, 1)
    )
    for token in range(rows * cols):
        for i in range(points_u):
            for j in range(points_v):
                u = (token % cols + (i + 0.5) / points_u) / cols
                v = (token // cols + (j + 0.5) / points_v) / rows
                x, y = (affine @ [u, v, 1]) * scale - 0.5
                if x < -1 or x > map_cols or y < -1 or y > map_rows:
                    continue
                x, y = min(max(x, 0), map_cols - 1), min(max(y, 0), map_rows - 1)
                left, top = min(int(x), max(map_cols - 2, 0)), min(int(y), max(map_rows - 2, 0))
                for column, across in ((left, 1 - (x - left)), (min(left + 1, map_cols - 1), x - left)):
                    for row, down in ((top, 1 - (y - top)), (min(top + 1, map_rows - 1), y - top)):
                        weights[token, row, column] += across * down / (points_u * points_v)
    return weights.reshape(rows * cols, -1)


@pytest.mark.parametrize("seed", range(12))
def test_general_affine_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angle, shear = rng.uniform(-1.5, 1.5), rng.uniform(-0.4, 0.4)
    linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ [[1, shear], [0, 1]]
    affine = np.concatenate([linear * rng.uniform(0.2, 1.6), rng.uniform(-0.3, 0.8, (2, 1))], axis=1)
    straight = np.array([[0.5, 0.0, 0.25], [0.0, 0.8, 0.1]])  # both kinds in one batch
    grid, map_size = (4, 3), (int(rng.integers(1, 9)), int(rng.integers(1, 12)))
    found = sampling_weights(None, grid, map_size, affine=np.stack([affine, straight, affine]))
    for got, one in zip(found.numpy(), (affine, straight, affine), strict=True):
        np.testing.assert_allclose(got, loop_weights(one, grid, map_size), atol=1e-6)


def test_resampling_apart_along_rows_and_columns_equals_the_whole_weights() -> None:
    generator = torch.Generator().manual_seed(4)
    values, places = torch.randn(5, 7, 11, 6, generator=generator).topk(2)
    maps = torch.zeros(5, 7, 11, 6).scatter(3, places, values)
    affine = view_affine(random_boxes(generator, 5, 1.5), torch.tensor([True, False, False, True, False]))
    affine[[1, 4], 0, 1] = 0.2  # sheared
    view = sampling(None, (4, 3), (7, 11), affine=affine)
    assert view.turned.tolist() == [1, 4]
    torch.testing.assert_close(
        view.resample(values, places, 6), view.dense() @ maps.flatten(1, 2), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(view.mass(), view.dense().sum(-1))


def test_released_affine_reads_as_released_boxes_do() -> None:
    generator = torch.Generator().manual_seed(6)
    boxes, flipped = random_boxes(generator, 8), torch.arange(8) % 2 == 0
    as_boxes = sampling_weights(boxes, (5, 5), (18, 18), flipped=flipped, geometry="released")
    affine = released_affine(boxes, flipped)
    as_affine = sampling_weights(None, (5, 5), (18, 18), affine=affine, geometry="released")
    torch.testing.assert_close(as_affine, as_boxes, atol=1e-5, rtol=0)
    exact = sampling_weights(boxes, (5, 5), (18, 18), flipped=flipped)
    assert (as_boxes - exact).abs().max() > 0.1


def test_released_boxes_scale_both_axes_by_the_columns() -> None:
    maps, box = (
        torch.randn(1, 3, 6, 9, generator=torch.Generator().manual_seed(7)),
        torch.tensor([[0.1, 0.3, 0.4, 0.9]]),
    )
    rois = torch.cat([torch.zeros(1, 1), box[:, [1, 0, 3, 2]] * 9 - 0.5], 1)  # as the released code calls it
    expected = roi_align(maps, rois, (4, 4))
    weights = sampling_weights(box, (4, 4), (6, 9), geometry="released")
    torch.testing.assert_close(sampled(maps, weights, (4, 4)), expected, atol=1e-5, rtol=0)


def test_quarter_turn_takes_as_many_points_as_no_turn() -> None:
    turn = torch.tensor([[[math.cos(math.pi / 2), -1.0, 1.0], [1.0, math.cos(math.pi / 2), 0.0]]])
    upright = sampling_weights(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (6, 6), (6, 6))
    turned = sampling_weights(None, (6, 6), (6, 6), affine=turn)
    expected = upright.view(6, 6, 36).rot90(1, (0, 1)).reshape(1, 36, 36)  # identity but for the order of tokens
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_rounding_adds_no_points() -> None:
    angles = torch.linspace(0.1, 1.4, 40)
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros(40)
    affine = torch.stack([cosine, -sine, zero + 0.5, sine, cosine, zero], -1).view(40, 2, 3)
    weights = sampling_weights(None, (6, 6), (6, 6), affine=affine)
    assert (weights > 0).sum(-1).max() == 4  # a token as wide as a cell takes one point, so the four cells around it


def test_compose_applies_the_inner_map_first() -> None:
    generator = torch.Generator().manual_seed(5)
    outer, inner = torch.randn(4, 2, 3, generator=generator), torch.randn(4, 2, 3, generator=generator)
    point = torch.randn(4, 2, 1, generator=generator)
    between = inner[..., :2] @ point + inner[..., 2:]
    both = compose(outer, inner)
    torch.testing.assert_close(both[..., :2] @ point + both[..., 2:], outer[..., :2] @ between + outer[..., 2:])


@pytest.mark.parametrize(
    ("size", "photograph", "on_map"),
    [
        ((100, 300), (1 / 3, 0.0), (0.0, 0.0)),
        ((100, 300), (2 / 3, 1.0), (1.0, 1.0)),
        ((400, 100), (0.0, 3 / 8), (0.0, 0.0)),
        ((400, 100), (1.0, 5 / 8), (1.0, 1.0)),
        ((64, 64), (0.2, 0.7), (0.2, 0.7)),
    ],
)
def test_centre_crop(size: tuple[int, int], photograph: tuple[float, float], on_map: tuple[float, float]) -> None:
    affine = centre_crop_affine(np.array([size], dtype=np.uint32))[0].numpy()
    np.testing.assert_allclose(affine @ [*photograph, 1], on_map, atol=1e-12)


def test_token_centres_are_row_by_row() -> None:
    centres = token_centres(view_affine([[0.0, 0.0, 1.0, 0.5]]), (2, 4))
    torch.testing.assert_close(centres[0, :, 0], torch.tensor([1, 3, 5, 7, 1, 3, 5, 7]) / 8)
    torch.testing.assert_close(centres[0, :, 1], torch.tensor([1, 1, 1, 1, 3, 3, 3, 3]) / 8)


# --- general maps, by drawing: what the transformed pixels show is what the targets must say

REGIONS = (4, 5)  # rows and columns of the drawn photograph's regions; a region's class is its number, row by row
PHOTOGRAPH = (423, 320)  # width and height in px
VIEW_PX, TOKENS = 320, (16, 20)
OPERATIONS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel", "FlipX", "FlipY", "Crop")
LIMITS = {"Rotate": 180.0, "ShearX": 0.5, "ShearY": 0.5, "TranslateXRel": 0.4, "TranslateYRel": 0.4}
FLIPS = {"FlipX": Image.Transpose.FLIP_LEFT_RIGHT, "FlipY": Image.Transpose.FLIP_TOP_BOTTOM}
FLIP_AFFINES = {"FlipX": np.diag([-1.0, 1, 1]), "FlipY": np.diag([1.0, -1, 1])}
FLIP_AFFINES["FlipX"][0, 2] = FLIP_AFFINES["FlipY"][1, 2] = 1.0
Step = tuple[
    str, float, float
]  # an operation, its amount in [-1, 1], and another number in [0, 1] for the crop's place


def moved(picture: Image.Image, steps: list[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels after the steps, and the composed map (3, 3), normalised view -> normalised photograph."""
    affine = np.eye(3)
    for name, amount, place in steps:
        if name in FLIPS:
            picture, step = picture.transpose(FLIPS[name]), FLIP_AFFINES[name]
        elif name == "Crop":
            width, height = round(picture.width * (0.5 + abs(amount) / 2)), round(picture.height * (0.5 + place / 2))
            left, top = round((picture.width - width) * place), round((picture.height - height) * abs(amount))
            step = np.array([[width / picture.width, 0, left / picture.width],
                             [0, height / picture.height, top / picture.height], [0, 0, 1]])  # fmt: skip
            picture = picture.crop((left, top, left + width, top + height))
        else:
            if picture.size != (VIEW_PX, VIEW_PX):  # as in training: timm's operations see the resized crop
                picture = picture.resize((VIEW_PX, VIEW_PX), Image.Resampling.NEAREST)
            operation = Operation(name, amount * LIMITS[name], "nearest")
            before = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            changed = apply_operation(before, operation, (0, 0, 0))
            picture, step = Image.fromarray(changed.permute(1, 2, 0).numpy()), operation.affine
        affine = affine @ step
    return np.array(picture.resize((VIEW_PX, VIEW_PX), Image.Resampling.NEAREST)), affine


def disagreements(
    pixels: np.ndarray, affine: np.ndarray, cells: tuple[int, int], doubt_px: int, *, fills: bool = False
) -> tuple[int, int]:
    """Tokens whose target differs from what their pixels show, and how many could be compared.

    Fill colour is compared on demand: pixels that one step pushes over the border are lost to the next, while their place in
    the photograph, and so their label, is not.
    """
    scores, classes = region_maps(REGIONS, cells)
    targets = sparse_targets(scores, classes, None, TOKENS, REGIONS[0] * REGIONS[1], affine=affine[None, :2])
    found = np.where(targets.inside[0].numpy(), targets.dense()[0].argmax(-1).numpy(), -1)
    expected, sure = shown_by_tokens(pixels, REGIONS, TOKENS, doubt_px)
    sure &= fills | (expected >= 0)
    return int((found != expected)[sure].sum()), int(sure.sum())


@settings(max_examples=120, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(OPERATIONS), st.floats(-1, 1), st.floats(0, 1)), max_size=6
    ),
    cells=st.tuples(st.integers(1, 5), st.integers(1, 4)),
)  # fmt: skip
def test_targets_say_what_the_pixels_show_after_any_sequence(steps: list[Step], cells: tuple[int, int]) -> None:
    pixels, affine = moved(regions(*PHOTOGRAPH, REGIONS), steps)
    # each resampling by nearest may be off by half a pixel, which later crops enlarge
    cuts = sum(name not in FLIPS for name, *_ in steps)
    wrong, _ = disagreements(pixels, affine, cells, doubt_px=2 + 2 * len(steps), fills=cuts < 2)
    assert wrong == 0


SEQUENCE: list[Step] = [
    ("Crop", 0.6, 0.3), ("FlipX", 0, 0), ("Rotate", 0.15, 0), ("ShearX", 0.3, 0), ("TranslateYRel", 0.3, 0), ("FlipY", 0, 0),
]  # fmt: skip


def corrupted(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of `SEQUENCE`, and a map with one mistake in it."""
    pixels, affine = moved(regions(*PHOTOGRAPH, REGIONS), SEQUENCE)
    if name == "x and y swapped":
        affine = affine[[1, 0, 2]]
    elif name == "flip forgotten":
        affine = moved(regions(*PHOTOGRAPH, REGIONS), [step for step in SEQUENCE if step[0] != "FlipX"])[1]
    elif name == "rotation the wrong way":
        affine = moved(regions(*PHOTOGRAPH, REGIONS), [(n, -a if n == "Rotate" else a, p) for n, a, p in SEQUENCE])[1]
    elif name == "order reversed":
        affine = moved(regions(*PHOTOGRAPH, REGIONS), SEQUENCE[::-1])[1]
    return pixels, affine


def test_a_sequence_is_compared_at_enough_tokens() -> None:
    wrong, compared = disagreements(*corrupted("nothing"), (3, 2), doubt_px=2)
    assert wrong == 0
    assert compared > 20


@pytest.mark.parametrize("mistake", ["x and y swapped", "flip forgotten", "rotation the wrong way", "order reversed"])
def test_a_mistake_in_the_map_is_seen_by_the_drawing(mistake: str) -> None:
    wrong, compared = disagreements(*corrupted(mistake), (3, 2), doubt_px=2)
    assert wrong > compared / 8


@pytest.mark.parametrize("size", [(600, 320), (320, 600), (400, 400)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("view", ["squash", "centre_crop"])
def test_each_view_masks_what_its_maps_do_not_cover(view: str, size: tuple[int, int]) -> None:
    """Regions are drawn where the map lies; a centre crop's margin is drawn in the colour of fills."""
    width, height = size
    covered = size if view == "squash" else (min(size), min(size))
    photograph = Image.new("RGB", size)
    photograph.paste(regions(*covered, REGIONS), ((width - covered[0]) // 2, (height - covered[1]) // 2))
    for steps in ([], [("FlipX", 0.0, 0.0), ("Rotate", 0.1, 0.0)], [("FlipY", 0.0, 0.0), ("Crop", 0.8, 0.9)]):
        pixels, affine = moved(photograph, steps)
        onto_map = map_affine(view, [(height, width)], affine[None, :2])[0].numpy()
        wrong, compared = disagreements(pixels, onto_map, (3, 4), doubt_px=4, fills=True)
        assert wrong == 0
        assert compared > 60
        expected, sure = shown_by_tokens(pixels, REGIONS, TOKENS, 4)
        if len(steps) != 2 or steps[1][0] != "Rotate":  # which has margins of its own
            assert bool((expected == -1)[sure].any()) == (covered != size)


def test_map_affine_of_a_squash_is_the_view_itself() -> None:
    affine = view_affine([[0.1, 0.2, 0.9, 0.7]])
    assert torch.equal(map_affine("squash", [(100, 300)], affine), affine)
    on_crop = map_affine("centre_crop", [(100, 300)], affine)
    assert on_crop.dtype == affine.dtype
    torch.testing.assert_close(on_crop[0] @ torch.tensor([0.5, 0.6, 1.0]), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("view", "size", "message"),
    [
        ("centre", [(9, 9)], "view 'centre', expected squash or centre_crop"),
        ("centre_crop", [(9, 9)] * 2, "image_size is of 2 photographs, affine of 1"),
        ("centre_crop", [(0, 9)], "below 1 px"),
        ("centre_crop", [9, 9], r"image_size \(batch, height and width\) is \(2,\)"),
    ],
)
def test_map_affine_errors(view: str, size: list[Any], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        map_affine(view, size, view_affine([[0.0, 0.0, 1.0, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": torch.zeros(2, 3)}, r"boxes \(batch, x0 y0 x1 y1\) are \(2, 3\)"),
        ({"boxes": torch.tensor([[0.5, 0.0, 0.2, 1.0]])}, "x0 < x1"),
        ({"boxes": torch.tensor([[0.0, 0.0, 224.0, 224.0]])}, "normalised"),
        ({"boxes": torch.tensor([[0.0, 0.0, math.nan, 1.0]])}, "x0 < x1"),
        ({"boxes": None, "affine": torch.zeros(2, 3)}, r"affine .* is \(2, 3\)"),
        ({"boxes": None}, "either boxes"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1]]), "geometry": "exakt"}, "geometry is 'exakt'"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1]]), "affine": torch.zeros(1, 2, 3)}, "either boxes"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1]]), "flipped": torch.zeros(3)}, r"flipped \(batch,\) is \(3,\)"),
        ({"boxes": None, "affine": torch.zeros(1, 2, 3), "flipped": torch.zeros(1)}, "flipped goes with boxes"),
    ],
)
def test_errors_name_the_axes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        sampling_weights(grid=(2, 2), map_size=(3, 3), **arguments)
    assert isinstance(caught.value, ValueError)
