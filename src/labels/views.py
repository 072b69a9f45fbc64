"""Other people's augmentations with account of where they look: `WithView` wraps a torchvision (v2) or timm transform.

The wrapped transform draws and computes what the transform alone would, pixel for pixel, and also gives the affine map from
the view back to the photograph. torchvision.transforms.v2 reports its draws to a tensor type of ours that rides along
(its extension mechanism, `register_kernel`); timm's steps are watched where they hand over their draws. A step whose
geometry is not known is refused by name when it is wrapped, never guessed. Called by training code outside this package and
by `dataset`; imports neither torchvision nor timm before it meets one of their transforms.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import LabelError

# (3, 3), px of the picture after a step -> px of the picture before; pixel i covers [i, i + 1]
Matrix = NDArray[np.float64]
Size = tuple[int, int]  # width and height in px
IDENTITY: Matrix = np.eye(3)
Handler = Callable[[Any, Any], tuple[Any, Matrix]]  # a step and a picture -> the changed picture and its map

# classes of torchvision.transforms, its v2 and timm.data that leave every pixel where it is
PIXEL_STEPS = frozenset({
    "ColorJitter", "ConvertImageDtype", "GaussianBlur", "GaussianNoise", "Grayscale", "Identity", "JPEG",
    "MaybePILToTensor", "MaybeToTensor", "Normalize", "PILToTensor", "RGB", "RandomAdjustSharpness",
    "RandomAutocontrast", "RandomChannelPermutation", "RandomEqualize", "RandomErasing", "RandomGrayscale",
    "RandomInvert", "RandomPhotometricDistort", "RandomPosterize", "RandomSolarize", "ToDtype", "ToImage",
    "ToNumpy", "ToPILImage", "ToPureTensor", "ToTensor",
})  # fmt: skip
# operations inside RandAugment and its kin, by the names that timm and torchvision give them
MOVING_OPERATIONS = frozenset({
    "Rotate", "ShearX", "ShearY", "TranslateX", "TranslateXRel", "TranslateY", "TranslateYRel",
})  # fmt: skip
PIXEL_OPERATIONS = frozenset({
    "AutoContrast", "Brightness", "BrightnessIncreasing", "Color", "ColorIncreasing", "Contrast",
    "ContrastIncreasing", "Desaturate", "Equalize", "GaussianBlur", "GaussianBlurRand", "Identity", "Invert",
    "Posterize", "PosterizeIncreasing", "PosterizeOriginal", "Sharpness", "SharpnessIncreasing", "Solarize",
    "SolarizeAdd", "SolarizeIncreasing",
})  # fmt: skip
_REASONS = {
    "AugMix": "it blends copies that were moved differently, so no one map describes it",
    "AugMixAugment": "it blends copies that were moved differently, so no one map describes it",
    "ElasticTransform": "it is not affine",
    "FiveCrop": "it gives five pictures",
    "RandomPerspective": "it is not affine",
    "TenCrop": "it gives ten pictures",
}


class AffineView(NamedTuple):
    """An augmented photograph and where it looks.

    Attributes:
        image: what the wrapped transform gave.
        affine: float32 (2, 3), normalised view -> normalised photograph, x right, y down.
    """

    image: Any
    affine: Tensor


class WithView:
    """A transform that gives an `AffineView` where it gave an image.

    Pixels, random draws and the state of the generators are those of the transform alone. Pickles to DataLoader workers;
    calls share nothing, so threads may use one instance.

    Args:
        transform: a torchvision.transforms.v2 transform, what timm.data.create_transform gives, or a Compose, RandomApply,
            RandomChoice or RandomOrder of them. It is copied.
        pixel_only: classes of your own that leave every pixel where it is.

    Raises:
        LabelError: a step whose geometry is not affine or not known here, by name.

    Example:
        dataset.transform = WithView(dataset.transform)
        image, affine = dataset.transform(photograph)
    """

    def __init__(self, transform: Any, pixel_only: tuple[type, ...] = ()) -> None:
        self._transform = _tracked(copy.deepcopy(transform), tuple(pixel_only))

    def __call__(self, image: Any) -> AffineView:
        """Transforms a picture.

        Args:
            image: PIL image, or tensor (channels, height, width).

        Raises:
            LabelError: a step changed the picture in another way than it said.
        """
        width, height = _size(image)
        moved = self._transform(_Moved(image, IDENTITY))
        view_width, view_height = _size(moved.image)
        affine = np.diag([1 / width, 1 / height, 1.0]) @ moved.matrix @ np.diag([view_width, view_height, 1.0])
        return AffineView(moved.image, torch.from_numpy(affine[:2]).to(torch.float32))

    def __repr__(self) -> str:
        return f"WithView({self._transform!r})"


def geometric_affine(name: str, amount: float, width: float = 1.0, height: float = 1.0) -> Matrix:
    """Map of one geometric operation as timm does it, (3, 3), changed picture -> picture before.

    Args:
        name: one of timm's: Rotate (amount in degrees), ShearX, ShearY (factor), TranslateXRel, TranslateYRel (share of the
            side), TranslateX, TranslateY (in units of the sides).
        amount: as timm hands it to the operation.
        width, height: of the picture; the map is in their units, so 1 and 1 give the normalised map of a square picture.

    Source: the matrices that timm hands to Pillow's Image.transform and Image.rotate.
    """
    affine = np.eye(3)
    if name == "ShearX":
        affine[0, 1] = amount
    elif name == "ShearY":
        affine[1, 0] = amount
    elif name in ("TranslateXRel", "TranslateX"):
        affine[0, 2] = amount * width if name == "TranslateXRel" else amount
    elif name in ("TranslateYRel", "TranslateY"):
        affine[1, 2] = amount * height if name == "TranslateYRel" else amount
    else:  # Rotate turns about the centre, counter-clockwise for positive degrees with y down
        angle = -np.deg2rad(amount)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = np.array([width / 2, height / 2])
        affine[:2, :2] = turn
        affine[:2, 2] = centre - turn @ centre
    return affine


@dataclass(frozen=True)
class _Moved:
    """A picture on its way through the steps, and the map from it to the photograph."""

    image: Any
    matrix: Matrix


@dataclass(frozen=True)
class _Step:
    """A step of the pipeline that moves a picture together with its map; containers call it as they call the step."""

    step: Any
    handler: Handler

    def __call__(self, moved: _Moved) -> _Moved:
        image, matrix = self.handler(self.step, moved.image)
        return _Moved(image, moved.matrix if matrix is IDENTITY else moved.matrix @ matrix)


def _tracked(step: Any, pixel_only: tuple[type, ...]) -> Any:
    """The step, and those inside it, made to move `_Moved` pictures."""
    kind = type(step)
    if pixel_only and isinstance(step, pixel_only):
        return _Step(step, _pixels)
    name, module = kind.__name__, kind.__module__
    families = [family for prefix, family in _FAMILIES if module.startswith(prefix)]
    if families and name in ("Compose", "RandomApply", "RandomChoice", "RandomOrder"):
        inner = [_tracked(part, pixel_only) for part in step.transforms]
        del step.transforms  # a ModuleList would refuse to be replaced by a list
        step.transforms = inner
        return step
    handler = next((family[name] for family in families if name in family), None)
    if handler is None and families and name in PIXEL_STEPS:
        handler = _pixels
    if handler is None or name in _REASONS:
        raise LabelError(_refusal(kind))
    if handler is _timm_operations:
        unknown = {operation.name for operation in _operations_of(step)} - MOVING_OPERATIONS - PIXEL_OPERATIONS
        if unknown:
            raise LabelError(
                f"transform {name}: the geometry of its operation {sorted(unknown)[0]!r} is not known here. Leave it out."
            )
    return _Step(step, handler)


def _refusal(kind: type) -> str:
    name, module = kind.__name__, kind.__module__
    if name in _REASONS and module.startswith(("torchvision.", "timm.")):
        return f"transform {name}: {_REASONS[name]}; token labels cannot follow it. Leave it out."
    if module.startswith("torchvision.transforms.") and name in _V2:
        return f"transform {name} of {module}: not followed here. Take torchvision.transforms.v2.{name} instead."
    return (
        f"transform {name} of {module}: its geometry is not known here. Wrap with WithView(..., pixel_only=({name},)) if it "
        "leaves every pixel where it is; else use torchvision.transforms.v2 or what timm.data.create_transform gives."
    )


def _size(image: Any) -> Size:
    if hasattr(image, "shape"):
        return int(image.shape[-1]), int(image.shape[-2])
    width, height = image.size
    return width, height


def _scale_and_shift(scale_x: float, scale_y: float, x: float, y: float) -> Matrix:
    return np.array([[scale_x, 0.0, x], [0.0, scale_y, y], [0.0, 0.0, 1.0]])


def _crop(x: float, y: float, extent: tuple[float, float], size: Size) -> Matrix:
    """Map of a box with its corner at x, y that was resized to `size`."""
    return _scale_and_shift(extent[0] / size[0], extent[1] / size[1], x, y)


def _mirror(axis: int, size: Size) -> Matrix:
    matrix = np.eye(3)
    matrix[axis, axis], matrix[axis, 2] = -1.0, size[axis]
    return matrix


def _centred(before: int, after: int) -> int:
    """Where torchvision's and timm's centre crop starts along one axis; negative where they pad."""
    return round((before - after) / 2.0) if after <= before else -((after - before) // 2)


# --- steps of timm, and the older torchvision classes that timm's pipelines contain


def _pixels(step: Any, image: Any) -> tuple[Any, Matrix]:
    changed = step(image)
    if _size(changed) != _size(image):
        raise LabelError(
            f"transform {type(step).__name__}: counts as one that leaves pixels in place, but made {_size(changed)} px "
            f"(width, height) of {_size(image)} px. Take it out of pixel_only."
        )
    return changed, IDENTITY


def _drawn(step: Any, image: Any) -> tuple[Any, Any]:
    """The changed picture, and what the step's own get_params drew for it."""
    draws: list[Any] = []
    watched = copy.copy(step)

    def get_params(*args: Any, **kwargs: Any) -> Any:
        draws.append(step.get_params(*args, **kwargs))
        return draws[-1]

    watched.get_params = get_params
    changed = watched(image)
    if len(draws) != 1:
        raise LabelError(
            f"transform {type(step).__name__}: drew {len(draws)} times instead of once; this version of "
            f"{type(step).__module__.split('.')[0]} is not known here. Report it with the version."
        )
    return changed, draws[0]


def _resized_crop(step: Any, image: Any) -> tuple[Any, Matrix]:
    changed, (top, left, height, width) = _drawn(step, image)
    return changed, _crop(left, top, (width, height), _size(changed))


def _crop_or_pad(step: Any, image: Any) -> tuple[Any, Matrix]:
    changed, (top, left) = _drawn(step, image)
    return changed, _scale_and_shift(1.0, 1.0, left, top)


def _centre_crop(step: Any, image: Any) -> tuple[Any, Matrix]:
    changed = step(image)
    x, y = (_centred(before, after) for before, after in zip(_size(image), _size(changed), strict=True))
    return changed, _scale_and_shift(1.0, 1.0, x, y)


def _resize(step: Any, image: Any) -> tuple[Any, Matrix]:
    changed = step(image)
    return changed, _crop(0.0, 0.0, _size(image), _size(changed))


def _flip(step: Any, image: Any, axis: int) -> tuple[Any, Matrix]:
    changed = step(image)  # the very same object when the coin says no
    return changed, IDENTITY if changed is image else _mirror(axis, _size(image))


def _operations_of(step: Any) -> list[Any]:
    """The AugmentOps of timm's RandAugment or AutoAugment."""
    return list(step.ops) if hasattr(step, "ops") else [operation for policy in step.policy for operation in policy]


def _timm_operations(step: Any, image: Any) -> tuple[Any, Matrix]:
    matrix = IDENTITY

    def watch(operation: Any) -> Any:
        def apply(picture: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal matrix
            if operation.name in MOVING_OPERATIONS:
                matrix = matrix @ geometric_affine(operation.name, args[0], *_size(picture))
            return operation.aug_fn(picture, *args, **kwargs)

        watched = copy.copy(operation)
        watched.aug_fn = apply
        return watched

    watched = copy.copy(step)
    if hasattr(step, "ops"):
        watched.ops = [watch(operation) for operation in step.ops]
    else:
        watched.policy = [[watch(operation) for operation in policy] for policy in step.policy]
    changed = watched(image)
    return changed, matrix


# --- steps of torchvision.transforms.v2


def _v2_step(step: Any, image: Any) -> tuple[Any, Matrix]:
    probe = _probe_class()(torch.empty(0))
    changed, _ = step(image, probe)
    return changed, _replayed(step, probe.calls, _size(image), _size(changed))


def _v2_operations(step: Any, image: Any) -> tuple[Any, Matrix]:
    """RandAugment and its kin call the functionals on the picture alone; each moving operation is repeated on a probe."""
    probe = _probe_class()(torch.empty(0))
    apply = step._apply_image_or_video_transform

    def watch(picture: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in PIXEL_OPERATIONS:
            apply(probe, name, *args, **kwargs)
        return apply(picture, name, *args, **kwargs)

    watched = copy.copy(step)
    watched._apply_image_or_video_transform = watch
    changed = watched(image)
    return changed, _replayed(step, probe.calls, _size(image), _size(changed))


def _replayed(step: Any, calls: list[tuple[str, dict[str, Any]]], size: Size, final: Size) -> Matrix:
    """The map of the functionals that a step called on a picture of `size`, which became `final`."""
    matrix = IDENTITY
    for name, arguments in calls:
        moved, size = _KERNELS[name](arguments, size, final)
        matrix = matrix @ moved
    if size != final:
        raise LabelError(
            f"transform {type(step).__name__}: made {final} px (width, height), its own draws say {size} px; this version of "
            "torchvision is not known here. Report it with the version."
        )
    return matrix


@functools.cache
def _probe_class() -> Any:
    """A tensor type that torchvision moves along with the picture; all it does is to note the calls."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    class Probe(tv_tensors.TVTensor):  # type: ignore[misc]
        def __new__(cls, data: Tensor) -> Any:
            probe: Any = data.as_subclass(cls)
            probe.calls = []
            return probe

    def noting(name: str) -> Callable[..., Any]:
        signature = inspect.signature(getattr(functional, name))

        def note(probe: Any, *args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(probe, *args, **kwargs)
            bound.apply_defaults()
            probe.calls.append((name, bound.arguments))
            return probe

        return note

    for name in _KERNELS:
        functional.register_kernel(getattr(functional, name), Probe)(noting(name))
    return Probe


def _pair(value: Any) -> tuple[float, float]:
    """torchvision's way with a number or a sequence of one or two."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values[0], values[-1]


def _kernel_crop(arguments: dict[str, Any], _size: Size, _final: Size) -> tuple[Matrix, Size]:
    return _scale_and_shift(1.0, 1.0, arguments["left"], arguments["top"]), (arguments["width"], arguments["height"])


def _kernel_resized_crop(arguments: dict[str, Any], _size: Size, final: Size) -> tuple[Matrix, Size]:
    return _crop(arguments["left"], arguments["top"], (arguments["width"], arguments["height"]), final), final


def _kernel_center_crop(arguments: dict[str, Any], size: Size, _final: Size) -> tuple[Matrix, Size]:
    height, width = (int(side) for side in _pair(arguments["output_size"]))
    return _scale_and_shift(1.0, 1.0, _centred(size[0], width), _centred(size[1], height)), (width, height)


def _kernel_pad(arguments: dict[str, Any], size: Size, _final: Size) -> tuple[Matrix, Size]:
    padding = arguments["padding"]
    left, top, right, bottom = (
        padding if isinstance(padding, list | tuple) and len(padding) == 4 else _pair(padding) * 2
    )
    return _scale_and_shift(1.0, 1.0, -left, -top), (int(size[0] + left + right), int(size[1] + top + bottom))


def _kernel_affine(arguments: dict[str, Any], size: Size, _final: Size) -> tuple[Matrix, Size]:
    shear = arguments["shear"]
    shear_x, shear_y = _pair(shear) if isinstance(shear, list | tuple) else (shear, 0.0)
    forth = _turn(arguments["angle"])
    forth = forth * [[arguments["scale"]], [arguments["scale"]], [1.0]]
    forth = forth @ [[1.0, 0.0, 0.0], [-math.tan(math.radians(shear_y)), 1.0, 0.0], [0.0, 0.0, 1.0]]
    forth = forth @ [[1.0, -math.tan(math.radians(shear_x)), 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    shift = _scale_and_shift(1.0, 1.0, *arguments["translate"])
    back = np.linalg.inv(shift @ _about(arguments["center"], size, forth))
    return back.astype(np.float64), size


def _kernel_rotate(arguments: dict[str, Any], size: Size, final: Size) -> tuple[Matrix, Size]:
    back = _about(arguments["center"], size, _turn(arguments["angle"]))
    if not arguments["expand"]:
        return back, size
    return back @ _scale_and_shift(1.0, 1.0, (size[0] - final[0]) / 2, (size[1] - final[1]) / 2), final


def _turn(degrees: float) -> Matrix:
    """Turns points clockwise, with y down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def _about(centre: Any, size: Size, matrix: Matrix) -> Matrix:
    x, y = (size[0] / 2, size[1] / 2) if centre is None else centre
    return _scale_and_shift(1.0, 1.0, x, y) @ matrix @ _scale_and_shift(1.0, 1.0, -x, -y)


# torchvision's functional by name: its arguments, the picture's size before and the step's final size -> map and size after
_KERNELS: dict[str, Callable[[dict[str, Any], Size, Size], tuple[Matrix, Size]]] = {
    "affine": _kernel_affine,
    "center_crop": _kernel_center_crop,
    "crop": _kernel_crop,
    "horizontal_flip": lambda _, size, __: (_mirror(0, size), size),
    "pad": _kernel_pad,
    "resize": lambda _, size, final: (_crop(0.0, 0.0, size, final), final),
    "resized_crop": _kernel_resized_crop,
    "rotate": _kernel_rotate,
    "vertical_flip": lambda _, size, __: (_mirror(1, size), size),
}
_V2: dict[str, Handler] = {
    **dict.fromkeys(("AutoAugment", "RandAugment", "TrivialAugmentWide"), _v2_operations),
    **dict.fromkeys(
        (
            "CenterCrop", "Pad", "RandomAffine", "RandomCrop", "RandomHorizontalFlip", "RandomResize",
            "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomVerticalFlip", "RandomZoomOut",
            "Resize", "ScaleJitter",
        ),
        _v2_step,
    ),
}  # fmt: skip
_V1: dict[str, Handler] = {
    "CenterCrop": _centre_crop,
    "RandomHorizontalFlip": functools.partial(_flip, axis=0),
    "RandomResizedCrop": _resized_crop,
    "RandomVerticalFlip": functools.partial(_flip, axis=1),
    "Resize": _resize,
}
_TIMM: dict[str, Handler] = {
    "AutoAugment": _timm_operations,
    "CenterCropOrPad": _centre_crop,
    "RandAugment": _timm_operations,
    "RandomCropOrPad": _crop_or_pad,
    "RandomResizedCropAndInterpolation": _resized_crop,
    "ResizeKeepRatio": _resize,
}
_FAMILIES = (("torchvision.transforms.v2.", _V2), ("torchvision.transforms.transforms", _V1), ("timm.data.", _TIMM))
