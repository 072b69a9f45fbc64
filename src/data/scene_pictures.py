"""Masks of scenes as pictures: a colour for each class, laid over the photograph, with the names of the largest classes below.

A class has the same colour in every picture of every model, whatever else is in it and however many classes there are; ids
outside the classes (ignored pixels) are grey. Called by segmentation's evaluation and prediction and by `visualise`; never
reads a file. Colours: Kelly's of maximum contrast, then each one as far as possible from all before it in CIELAB (CIE 1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# K. L. Kelly, Twenty-two colors of maximum contrast (1965): his first six stand first, also for readers who do not tell red from
# green; white, black, grey and two more yellows are left out, and those nearest to others come last
KELLY = (
    "f3c300", "875692", "f38400", "a1caf1", "be0032", "c2b280", "008856", "e68fac", "0067a5", "8db600", "882d17", "2b3d26",
    "f99379", "604e97", "654522", "e25822", "b3446c",
)  # fmt: skip
IGNORED_COLOUR = (128, 128, 128)
OPACITY = 0.6  # of a class over its photograph: both can be made out
LEVELS = 16  # of each channel among which colours are looked for: 4,096 in all, of which the darkest are left out
LIGHTEST, DARKEST, FAINTEST = 92.0, 28.0, 25.0  # CIELAB lightness of a class, and how far from grey it is at least
TEXT_PX, MARGIN_PX = 14, 6  # height of a legend's words, and the gaps around them
LEGEND_SHARE = 0.001  # of the pixels; a smaller class is not named
LIGHTNESS_WEIGHT = 0.4  # in the distance between colours: a photograph below changes lightness more than hue
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # IEC 61966-2-1
_WHITE = _TO_XYZ.sum(axis=1)  # of the D65 illuminant


def class_colours(count: int) -> NDArray[np.uint8]:
    """Colours of the classes 0 to count - 1: uint8 (count, 3), RGB. Those of a smaller count are the first of a larger one's."""
    return np.array(_colours_up_to(max(count, 1))[:count], dtype=np.uint8).reshape(count, 3)


@cache
def _colours_up_to(count: int) -> tuple[tuple[int, int, int], ...]:
    levels = np.linspace(0, 255, LEVELS).round()
    choice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = lab_of(choice)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] >= DARKEST) & (lab[:, 0] <= LIGHTEST) & (chroma >= FAINTEST)
    choice, place = choice[usable], lab[usable] * (LIGHTNESS_WEIGHT, 1, 1)
    chosen = [tuple(bytes.fromhex(colour)) for colour in KELLY]
    kelly = lab_of(np.array(chosen, dtype=float)) * (LIGHTNESS_WEIGHT, 1, 1)
    # from grey, too, which the ignored pixels and the photograph have
    distance = np.minimum(chroma[usable], np.linalg.norm(place[:, None] - kelly, axis=2).min(axis=1))
    for _ in range(min(count - len(KELLY), len(choice))):
        best = int(distance.argmax())
        chosen.append(tuple(int(level) for level in choice[best]))
        distance = np.minimum(distance, np.linalg.norm(place - place[best], axis=1))
    return tuple(chosen[index % len(chosen)] for index in range(count))  # type: ignore[misc]


def lab_of(colours: NDArray[Any]) -> NDArray[np.float64]:
    """CIELAB of sRGB colours in 0..255, (n, 3): distances are about what people see."""
    shares = colours / 255.0
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root.T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=1)


def paint_classes(mask: NDArray[np.integer[Any]], num_classes: int) -> NDArray[np.uint8]:
    """A mask in its classes' colours.

    Args:
        mask: integer (h, w), class ids; those outside [0, num_classes), such as IGNORED, become grey.
        num_classes: K.

    Returns:
        uint8 (h, w, 3), RGB.
    """
    palette = np.concatenate([class_colours(num_classes), np.array([IGNORED_COLOUR], dtype=np.uint8)])
    known = (mask >= 0) & (mask < num_classes)
    return palette[np.where(known, mask, num_classes)]


def lay_classes(
    photograph: Image.Image, mask: NDArray[np.integer[Any]], num_classes: int, opacity: float = OPACITY
) -> Image.Image:
    """Lays a mask over its grey photograph, so that an orange car is not taken for an orange class.

    Args:
        photograph: RGB, of the mask's height and width.
        mask: integer (h, w), as `paint_classes` takes it.
        num_classes: K.
        opacity: of the colours, in [0, 1].

    Raises:
        ValueError: sizes differ.
    """
    if (photograph.height, photograph.width) != mask.shape:
        raise ValueError(
            f"a mask of {mask.shape} for a photograph of {(photograph.height, photograph.width)} (height, width)"
        )
    grey = photograph.convert("L").convert("RGB")
    return Image.blend(grey, Image.fromarray(paint_classes(mask, num_classes)), opacity)


def largest_classes(masks: Sequence[NDArray[np.integer[Any]]], num_classes: int, count: int) -> dict[int, float]:
    """The classes with most pixels in some masks, largest first, and their share of the pixels that are of a class."""
    pixels = np.zeros(num_classes, dtype=np.int64)
    for mask in masks:
        pixels += np.bincount(mask[(mask >= 0) & (mask < num_classes)].ravel(), minlength=num_classes)
    total = max(int(pixels.sum()), 1)
    order = np.argsort(-pixels, kind="stable")[:count]
    return {int(index): float(pixels[index] / total) for index in order if pixels[index] >= LEGEND_SHARE * total}


def with_legend(picture: Image.Image, named: Sequence[int], classes: Sequence[str]) -> Image.Image:
    """A picture with colour and name of some classes below it, in as many columns as fit; as broad as the longest name at least.

    Args:
        picture: RGB.
        named: class ids, in this order.
        classes: all names, by id.
    """
    font = ImageFont.load_default(TEXT_PX)
    texts = [shorten(classes[index], 28, placeholder="...") for index in named]
    entry = TEXT_PX + 3 * MARGIN_PX + max((int(font.getlength(text)) for text in texts), default=0)
    columns = max(1, picture.width // entry)
    line = TEXT_PX + MARGIN_PX
    rows = -(-len(texts) // columns)
    size = max(picture.width, entry if rows else 0), picture.height + (rows * line + MARGIN_PX if rows else 0)
    whole = Image.new("RGB", size, "white")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    colours = class_colours(len(classes))
    for position, (index, text) in enumerate(zip(named, texts, strict=True)):
        left = MARGIN_PX + position % columns * entry
        top = picture.height + MARGIN_PX + position // columns * line
        pen.rectangle((left, top, left + TEXT_PX, top + TEXT_PX), fill=tuple(int(level) for level in colours[index]))
        pen.text((left + TEXT_PX + MARGIN_PX, top + TEXT_PX // 2), text, fill="black", font=font, anchor="lm")
    return whole
