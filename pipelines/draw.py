"""Pictures with their objects drawn on: boxes, masks, labels, keypoints. Arrays in, arrays out."""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

_READABLE_PX = 320
_LARGEST_SCALE = 3
_MASK_OPACITY = 0.4


@dataclass(frozen=True, eq=False)
class Drawn:
    """One object to draw.

    Attributes:
        box_xyxy: Absolute pixels of the picture; may reach outside.
        label: Text beside the box; may be empty.
        colour: Index into the palette, as a rule the class; any whole number >= 0.
        score: 0..1, written after the label.
        mask: [H, W] of the picture's size, non-zero inside.
        keypoints: [K, 3], x and y in pixels and visibility; drawn where visibility is above 0.
    """

    box_xyxy: tuple[float, float, float, float]
    label: str
    colour: int
    score: float | None = None
    mask: Pixels | None = None
    keypoints: NDArray[np.float32] | None = None


def palette(index: int) -> Colour:
    """The RGB colour of class ``index``, 0..255; the same in every run, neighbours far apart.

    Raises:
        ValueError: ``index`` is negative.
    """
    if index < 0:
        raise ValueError(f"a colour's index is {index}, wanted >= 0: pass the class label")
    # The golden ratio's turns never meet; the brightness tells apart hues that come close after many of them.
    hue, value = (0.02 + index * 0.61803398875) % 1.0, (1.0, 0.78, 0.9)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def overlay(image: Pixels, instances: Sequence[Drawn], scale: int | None = None) -> Pixels:
    """Draw objects onto a copy of a picture.

    Args:
        image: [H, W, 3] RGB.
        instances: Drawn in this order; labels come last, so that none is hidden.
        scale: Enlargement, 1 or more; None enlarges small pictures up to 3 times so that labels can be read.

    Returns:
        [H * scale, W * scale, 3] RGB.

    Raises:
        ValueError: The picture, a mask or a box has the wrong shape, or a coordinate is not finite.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"a picture to draw on is {image.dtype} {list(image.shape)}, wanted uint8 [H, W, 3]: convert it"
        )
    height, width = image.shape[:2]
    for instance in instances:
        _check(instance, height, width)
    if scale is None:
        scale = min(_LARGEST_SCALE, max(1, math.ceil(_READABLE_PX / max(height, width))))
    if scale < 1:
        raise ValueError(f"the scale is {scale}, wanted 1 or more: leave it out for a readable one")
    enlarged = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
    pixels = np.array(enlarged)
    for instance in instances:
        if instance.mask is not None:
            _paint_mask(pixels, instance.mask, palette(instance.colour), scale)
    canvas = Image.fromarray(pixels)
    pen = ImageDraw.Draw(canvas)
    for instance in instances:
        _draw_box(pen, instance, canvas.size, scale)
        _draw_keypoints(pen, instance, canvas.size, scale)
    for instance in instances:
        _draw_label(pen, instance, canvas.size, scale)
    return np.array(canvas)


def _check(instance: Drawn, height: int, width: int) -> None:
    box = instance.box_xyxy
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[2] < box[0] or box[3] < box[1]:
        raise ValueError(f"a box to draw is {box}, wanted finite x1, y1, x2 >= x1, y2 >= y1: mend it")
    if instance.mask is not None and instance.mask.shape != (height, width):
        raise ValueError(
            f"a mask to draw is {list(instance.mask.shape)}, the picture {[height, width]}: "
            "paste the mask at the picture's full size"
        )
    points = instance.keypoints
    if points is not None and (points.ndim != 2 or points.shape[1] != 3):
        raise ValueError(f"keypoints to draw are {list(points.shape)}, wanted [K, 3]: give x, y, visibility")


def _paint_mask(pixels: Pixels, mask: Pixels, colour: Colour, scale: int) -> None:
    """Tint the inside and trace the border, in place."""
    inside = np.repeat(np.repeat(mask != 0, scale, axis=0), scale, axis=1)
    tint = np.asarray(colour, np.float32)
    blended = (1.0 - _MASK_OPACITY) * pixels[inside] + _MASK_OPACITY * tint
    pixels[inside] = blended.astype(np.uint8)
    core = np.pad(inside, 1)
    core = core[1:-1, 1:-1] & core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
    pixels[inside & ~core] = colour


def _draw_box(pen: ImageDraw.ImageDraw, instance: Drawn, size: tuple[int, int], scale: int) -> None:
    x1, y1, x2, y2 = _on_canvas(instance.box_xyxy, size, scale)
    pen.rectangle((x1, y1, x2, y2), outline=palette(instance.colour), width=max(1, round(max(size) / 256)))


def _draw_keypoints(pen: ImageDraw.ImageDraw, instance: Drawn, size: tuple[int, int], scale: int) -> None:
    if instance.keypoints is None:
        return
    radius = max(1 + scale, round(max(size) / 128))
    for x, y, visibility in instance.keypoints.astype(float).tolist():
        if visibility > 0 and math.isfinite(x) and math.isfinite(y):
            at = (x * scale - radius, y * scale - radius, x * scale + radius, y * scale + radius)
            pen.ellipse(at, fill=palette(instance.colour), outline=(255, 255, 255))


def _draw_label(pen: ImageDraw.ImageDraw, instance: Drawn, size: tuple[int, int], scale: int) -> None:
    """Text on a plate above the box, or inside it at the picture's upper edge."""
    score = "" if instance.score is None else f"{instance.score:.2f}"
    text = " ".join(f"{instance.label} {score}".split())
    if not text:
        return
    # By the width, since pages show pictures equally wide.
    font = ImageFont.load_default(size=max(12, min(20, round(size[0] / 26))))
    x1, y1, _, _ = _on_canvas(instance.box_xyxy, size, scale)
    left, _, right, _ = pen.textbbox((0, 0), text, font=font)
    # The same for every text, so that plates are equally tall and their text sits on one line.
    _, top, _, bottom = pen.textbbox((0, 0), "Ag", font=font)
    wide, tall = right - left + 4, bottom - top + 4
    x, y = max(0.0, min(x1, size[0] - wide)), (y1 - tall if y1 >= tall else y1)
    colour = palette(instance.colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.rectangle((x, y, x + wide, y + tall), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, font=font, fill=(0, 0, 0) if bright else (255, 255, 255))


def _on_canvas(
    box: tuple[float, float, float, float], size: tuple[int, int], scale: int
) -> tuple[float, float, float, float]:
    """Box in enlarged pixels, clipped so that each side that lies outside is drawn on the edge."""
    x1, x2 = (min(max(scale * x, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    y1, y2 = (min(max(scale * y, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    return x1, y1, x2, y2
