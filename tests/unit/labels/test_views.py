"""`WithView` against the pixels: where a view says it looks is where its pixels come from, and no pixel is changed by asking."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.transforms import v2

from tokenlabel.core.errors import LabelError
from tokenlabel.demo.photographs import find_photographs
from tokenlabel.labels import WithView
from tokenlabel.labels import views as views_module

from .drawing import ramp, where_from

SIZE = (120, 80)  # width and height of the drawn photograph; a step of its colour is half a pixel
BILINEAR = v2.InterpolationMode.BILINEAR
DRAWN = ramp(*SIZE)[0]
SEEDS = range(6)
MOVES_ONLY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # pixel operations would erase the drawing


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  timm draws from the global generator
    torch.manual_seed(seed)


def moving_only(step: Any) -> Any:
    """The step without the operations that change colours; a class's table, or timm's operations."""
    if hasattr(step, "_AUGMENTATION_SPACE"):
        step._AUGMENTATION_SPACE = {name: step._AUGMENTATION_SPACE[name] for name in MOVES_ONLY}
    elif hasattr(step, "ops"):
        kept = [place for place, operation in enumerate(step.ops) if operation.name in views_module.MOVING_OPERATIONS]
        step.ops = [step.ops[place] for place in kept]
        if step.choice_weights is not None:
            step.choice_weights = step.choice_weights[kept] / step.choice_weights[kept].sum()
    else:
        step.policy = [
            kept
            for policy in step.policy
            if (kept := [operation for operation in policy if operation.name in views_module.MOVING_OPERATIONS])
        ]
    return step


def timm_moves(text: str) -> Any:
    make = rand_augment_transform if text.startswith("rand") else auto_augment_transform
    return moving_only(make(text, {"translate_const": 30, "img_mean": (0, 0, 0), "interpolation": Image.BILINEAR}))


def plain(**arguments: Any) -> Any:
    """timm's training transform without what changes colours."""
    return create_transform(64, is_training=True, color_jitter=None, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3,
                            **arguments)  # fmt: skip


TORCHVISION: dict[str, Callable[[], Any]] = {
    "resized_crop": lambda: v2.RandomResizedCrop(64, (0.3, 1.0)),
    "resized_crop_oblong": lambda: v2.RandomResizedCrop((64, 90), (0.3, 1.0)),
    "flips": lambda: v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]),
    "rotation": lambda: v2.RandomRotation(70, BILINEAR),
    "rotation_expand": lambda: v2.RandomRotation(70, BILINEAR, expand=True),
    "rotation_centre": lambda: v2.RandomRotation(40, BILINEAR, center=(80, 20)),
    "rotation_expand_centre": lambda: v2.RandomRotation(40, BILINEAR, expand=True, center=(80, 20)),
    "affine": lambda: v2.RandomAffine(30, (0.1, 0.2), (0.8, 1.4), (-10, 20, -15, 10), BILINEAR),
    "affine_centre": lambda: v2.RandomAffine(30, (0.2, 0.1), (0.8, 1.4), 10, BILINEAR, center=(30, 10)),
    "pad_all": lambda: v2.Pad(9),
    "pad_two": lambda: v2.Pad((5, 11)),
    "pad_four": lambda: v2.Pad((3, 14, 25, 6)),
    "crop": lambda: v2.RandomCrop((60, 70)),
    "crop_padded": lambda: v2.RandomCrop((90, 130), padding=(5, 17, 29, 3), pad_if_needed=True),
    "centre_crop": lambda: v2.CenterCrop((61, 70)),
    "centre_crop_padded": lambda: v2.CenterCrop((91, 65)),
    "resize": lambda: v2.Resize((70, 77)),
    "zoom_out": lambda: v2.RandomZoomOut(side_range=(1.0, 1.8)),
    "scale_jitter": lambda: v2.ScaleJitter((100, 150), (0.7, 1.4)),
    "shortest_size": lambda: v2.RandomShortestSize([70, 95]),
    "random_size": lambda: v2.RandomResize(70, 120),
    "rand_augment": lambda: moving_only(v2.RandAugment(3, 15, interpolation=BILINEAR)),
    "trivial_augment": lambda: moving_only(v2.TrivialAugmentWide(interpolation=BILINEAR)),
    "all_together": lambda: v2.Compose([
        v2.RandomChoice([v2.Pad(4), v2.RandomRotation(20, BILINEAR)]),
        v2.RandomResizedCrop((96, 80), (0.6, 1.0)),
        v2.RandomApply(nn.ModuleList([v2.RandomAffine(20, interpolation=BILINEAR), v2.RandomVerticalFlip()]), 0.7),
        v2.RandomOrder([v2.RandomHorizontalFlip(), moving_only(v2.RandAugment(2, interpolation=BILINEAR))]),
        v2.Identity(),
    ]),
}  # fmt: skip
TIMM: dict[str, Callable[[], Any]] = {
    "crop_and_flips": lambda: plain(scale=(0.3, 1.0), vflip=0.5),
    "prefetched": lambda: plain(scale=(0.3, 1.0), use_prefetcher=True),
    "resize_and_centre_crop": lambda: plain(train_crop_mode="rkrc"),
    "resize_and_random_crop": lambda: plain(train_crop_mode="rkrr"),
    "no_augmentation": lambda: create_transform(
        64, is_training=True, no_aug=True, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3
    ),
    "evaluation": lambda: create_transform(64, interpolation="bilinear", mean=(0,) * 3, std=(1,) * 3),
    "rand_augment": lambda: v1.Compose([v1.RandomResizedCrop((90, 70), (0.6, 1.0)), timm_moves("rand-m9-mstd0.5-n3-p0.9")]),
    "rand_augment_weighted": lambda: timm_moves("rand-m7-tweights"),
    "auto_augment": lambda: timm_moves("original-mstd0.5"),
    "auto_augment_v0": lambda: timm_moves("v0"),
}  # fmt: skip


def pixels_of(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return np.array(image)
    values = image.permute(1, 2, 0).numpy()
    return values if values.dtype == np.uint8 else np.round(values * 255).astype(np.uint8)


Views = tuple[Any, Any]  # of a ramp and of its opposite, by the same draws


def views_of(transform: WithView, seed: int, kind: str = "pil") -> Views:
    views = []
    for picture in ramp(*SIZE):
        seed_all(seed)
        views.append(transform(as_kind(picture, kind)))
    assert torch.equal(views[0].affine, views[1].affine)
    return views[0], views[1]


def misplacement(views: Views, affine: np.ndarray | None = None) -> float | None:
    """Largest distance in px of the photograph between where pixels come from and where the view says; None: shows too little."""
    pixels, opposite = (pixels_of(view.image) for view in views)
    height, width = pixels.shape[:2]
    seen, points = where_from(pixels, opposite, SIZE)
    if len(points) < 300 or (np.ptp(points, 0) < 16).any():
        return None
    stated = views[0].affine.double().numpy() if affine is None else affine
    stated = np.diag(SIZE) @ stated @ np.diag([1 / width, 1 / height, 1])
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1)
    return float(np.abs(homogeneous @ (seen - stated).T).max())


def as_kind(picture: Image.Image, kind: str) -> Any:
    if kind == "pil":
        return picture
    return v2.functional.pil_to_tensor(picture) if kind == "tensor" else v2.functional.to_image(picture)


def worst_of(transform: WithView, kind: str = "pil") -> float:
    found = [misplacement(views_of(transform, seed, kind)) for seed in SEEDS]
    told = [distance for distance in found if distance is not None]
    assert len(told) >= len(SEEDS) // 2
    return max(told)


@pytest.mark.parametrize("kind", ["pil", "tensor", "image"])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_views_are_where_the_pixels_come_from(name: str, kind: str) -> None:
    assert worst_of(WithView(TORCHVISION[name]()), kind) < 0.25


@pytest.mark.parametrize("name", TIMM)
def test_timm_views_are_where_the_pixels_come_from(name: str) -> None:
    assert worst_of(WithView(TIMM[name]())) < 0.25


def test_a_wrong_affine_is_seen() -> None:
    """The measure itself: a map that is mirrored, transposed, turned the wrong way or a pixel off is found out."""
    views = views_of(WithView(v2.RandomRotation((25, 25), BILINEAR)), 0)
    stated = views[0].affine.double().numpy()
    mirrored = stated @ [[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]
    back = views_of(WithView(v2.RandomRotation((-25, -25), BILINEAR)), 0)[0].affine.double().numpy()
    shifted = stated + np.array([[0, 0, 1 / SIZE[0]], [0, 0, 0]])
    for wrong in (mirrored, stated[::-1], back, shifted):
        found = misplacement(views, wrong)
        assert found is not None
        assert found > 0.9


REAL: dict[str, Callable[[], Any]] = {
    "timm": lambda: create_transform(96, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5, re_mode="pixel"),
    "timm_prefetched": lambda: create_transform(96, is_training=True, auto_augment="original", use_prefetcher=True),
    "timm_3a": lambda: create_transform(
        96, is_training=True, auto_augment="3a", train_crop_mode="rkrr", grayscale_prob=0.3, gaussian_blur_prob=0.3
    ),
    "torchvision": lambda: v2.Compose([
        v2.RandomResizedCrop(96), v2.RandomHorizontalFlip(), v2.RandAugment(), v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.5,) * 3), v2.RandomErasing(0.5), v2.ToPureTensor(),
    ]),
    "torchvision_auto": lambda: v2.Compose([v2.AutoAugment(), v2.TrivialAugmentWide(), v2.RandomCrop(96, pad_if_needed=True)]),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_pixels_and_generators_are_those_of_the_transform_alone(name: str) -> None:
    transform = REAL[name]()
    wrapped = pickle.loads(pickle.dumps(WithView(transform)))
    for seed, (_, path) in zip(range(8), find_photographs(), strict=False):
        with Image.open(path) as opened:
            photograph = opened.convert("RGB")
        seed_all(seed)
        expected = transform(photograph)
        state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1:3]  # noqa: NPY002
        seed_all(seed)
        view = wrapped(photograph)
        if isinstance(expected, torch.Tensor):
            assert type(view.image) is type(expected)
            assert torch.equal(view.image, expected)
        else:
            assert view.image.tobytes() == expected.tobytes()
        assert random.getstate() == state[0]
        assert torch.equal(torch.get_rng_state(), state[1])
        assert (np.random.get_state()[1] == state[2][0]).all()  # noqa: NPY002
        assert view.affine.shape == (2, 3)
        assert view.affine.dtype == torch.float32


def test_the_transform_itself_is_left_as_it_was() -> None:
    transform = v2.Compose([v2.RandomApply(nn.ModuleList([v2.RandomHorizontalFlip(1.0)])), v2.CenterCrop(20)])
    before = repr(transform)
    WithView(transform)(DRAWN)
    assert repr(transform) == before
    assert isinstance(transform(DRAWN), Image.Image)


@pytest.mark.parametrize("name", sorted(views_module.PIXEL_OPERATIONS & {
    "Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Identity",
}))  # fmt: skip
def test_pixel_operations_of_torchvision_leave_the_view_alone(name: str) -> None:
    step = v2.RandAugment(2)
    step._AUGMENTATION_SPACE = {name: step._AUGMENTATION_SPACE[name]}
    assert torch.equal(WithView(step)(DRAWN).affine, torch.eye(3)[:2])


class Blink(nn.Module):
    """Somebody's own step."""

    def forward(self, image: Image.Image) -> Image.Image:
        return image.point(lambda value: 255 - value)


class Halve(nn.Module):
    """Somebody's own step that moves pixels."""

    def forward(self, image: Image.Image) -> Image.Image:
        return image.reduce(2)


def test_steps_of_ones_own_are_declared() -> None:
    transform = v2.Compose([v2.RandomHorizontalFlip(1.0), Blink(), v2.Lambda(lambda image: image)])
    with pytest.raises(LabelError, match=r"transform Blink of .*pixel_only=\(Blink,\)"):
        WithView(transform)
    view = WithView(transform, pixel_only=(Blink, v2.Lambda))(DRAWN)
    torch.testing.assert_close(view.affine, torch.tensor([[-1.0, 0, 1], [0, 1, 0]]))
    with pytest.raises(LabelError, match=r"transform Halve: .* made \(60, 40\) px .* of \(120, 80\)"):
        WithView(Halve(), pixel_only=(Halve,))(DRAWN)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.ElasticTransform(), "transform ElasticTransform: it is not affine"),
        (v2.Compose([v2.RandomApply([v2.RandomPerspective()])]), "transform RandomPerspective: it is not affine"),
        (v2.FiveCrop(9), "transform FiveCrop: it gives five pictures"),
        (v2.AugMix(), "transform AugMix: it blends copies"),
        (v1.ElasticTransform(), "transform ElasticTransform: it is not affine"),
        (v1.RandAugment(), r"transform RandAugment of torchvision.transforms.autoaugment: .*v2\.RandAugment"),
        (v1.RandomRotation(9), r"v2\.RandomRotation"),
        (augment_and_mix_transform("augmix-m5"), "transform AugMixAugment: it blends copies"),
        (create_transform(32, is_training=True, naflex=True), "transform RandomResizedCropToSequence of timm"),
        (create_transform(32, is_training=True, separate=True), "transform tuple of builtins"),
        (nn.Sequential(v2.CenterCrop(9)), "transform Sequential of torch.nn"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_followed_is_refused_by_name(transform: Any, message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        WithView(transform)
    assert "\n" not in str(caught.value)


def test_an_unknown_operation_of_timm_is_refused() -> None:
    step = rand_augment_transform("rand-m9", {})
    step.ops[3].name = "Swirl"
    with pytest.raises(LabelError, match="operation 'Swirl'"):
        WithView(step)


def test_a_tensor_type_of_ours_is_no_part_of_the_image() -> None:
    """The probe that rides along must not reach steps that would treat it as a picture."""
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(1.0), v2.ToPureTensor(), v2.ToDtype(torch.float32), v2.RandomVerticalFlip(1.0)]
    )
    view = WithView(transform)(as_kind(DRAWN, "image"))
    assert type(view.image) is torch.Tensor
    torch.testing.assert_close(view.affine, torch.tensor([[-1.0, 0, 1], [0, -1, 1]]))


class Ramps(torch.utils.data.Dataset[Any]):
    """The drawn photograph through wrapped transforms."""

    def __init__(self, *transforms: WithView) -> None:
        self.transforms = transforms

    def __len__(self) -> int:
        return 2 * len(self.transforms)

    def __getitem__(self, index: int) -> Any:
        seed_all(index)
        return self.transforms[index // 2](DRAWN)


@pytest.mark.campaign
def test_spawned_workers_give_the_same_views() -> None:
    dataset = Ramps(WithView(REAL["timm"]()), WithView(REAL["torchvision"]()))
    (batch,) = DataLoader(dataset, batch_size=len(dataset), num_workers=1, multiprocessing_context="spawn")
    for index in range(len(dataset)):
        here = dataset[index]
        assert torch.equal(batch.image[index], here.image)
        assert torch.equal(batch.affine[index], here.affine)
