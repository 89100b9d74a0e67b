"""Drawing for the demo's data set: textured shapes with soft edges, dull backgrounds, uneven light.

Owns pixels only; what is placed where, and how it is annotated, is decided in pipelines.shapes.
"""

import colorsys
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Scalars = NDArray[np.float32]
_CORNERS = {"triangle": 3, "square": 4, "star": 5}
NAMES: tuple[str, ...] = ("disc", "ring", *_CORNERS)


class Layer(NamedTuple):
    """One drawn thing, before anything hides it."""

    alpha: Scalars
    """[H, W] opacity 0..1."""
    rgb: Scalars
    """[H, W, 3] colour 0..1."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[H, W], where the layer covers the pixel's centre."""
        return self.alpha > 0.5


def shape(
    rng: np.random.Generator,
    name: str,
    hue: float,
    size_hw: tuple[int, int],
    circle: tuple[float, float, float],
) -> Layer:
    """One textured shape, turned and squeezed at random.

    Args:
        rng: Where the chance comes from.
        name: One of NAMES.
        hue: Colour as a share of a turn; any float.
        size_hw: Height and width of the picture, pixels.
        circle: Centre x, centre y and radius of the circle it lies in, pixels.

    Returns:
        The layer, [H, W] and [H, W, 3].

    Raises:
        ValueError: ``name`` is not in NAMES.
    """
    if name not in NAMES:
        raise ValueError(f"no shape {name!r}: choose one of {', '.join(NAMES)}")
    x, y, radius = circle
    turn, squeeze = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.8, 1.0))
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32) + np.float32(0.5)
    u = (columns - x) * math.cos(turn) + (rows - y) * math.sin(turn)
    v = ((rows - y) * math.cos(turn) - (columns - x) * math.sin(turn)) / squeeze
    depth = _depth(name, u, v, radius)
    base = colorsys.hsv_to_rgb(hue % 1.0, float(rng.uniform(0.55, 0.95)), float(rng.uniform(0.6, 0.95)))
    shade = _texture(rng, u, v) * (1.0 + 0.15 * u / radius)
    # A dark rim, so that shapes of one colour can be told apart where they touch.
    shade = shade * np.where(depth < 1.5, np.float32(0.6), np.float32(1.0))
    rgb = np.asarray(base, np.float32) * shade[..., None]
    return Layer((depth + 0.5).clip(0.0, 1.0).astype(np.float32), rgb.astype(np.float32))


def _depth(name: str, u: Scalars, v: Scalars, radius: float) -> Scalars:
    """Distance in pixels to the outline, positive inside, at local coordinates ``u``, ``v`` [H, W]."""
    r: Scalars = np.hypot(u, v)
    if name == "disc":
        return radius - r
    if name == "ring":
        return np.asarray(0.22 * radius - np.abs(r - 0.78 * radius), np.float32)
    corners = _CORNERS[name]
    # By symmetry each point folds to the half sector between a corner (angle 0) and an edge's middle.
    half = math.pi / corners
    angle = np.abs((np.arctan2(v, u) + half) % (2 * half) - half)
    inner = radius * (0.42 if name == "star" else math.cos(half))
    ex, ey = inner * math.cos(half) - radius, inner * math.sin(half)
    px, py = r * np.cos(angle) - radius, r * np.sin(angle)
    return np.asarray((ex * py - ey * px) / math.hypot(ex, ey), np.float32)


def _texture(rng: np.random.Generator, u: Scalars, v: Scalars) -> Scalars:
    """Brightness factors around 1, [H, W]: plain, stripes, checks or blotches."""
    kind, period, contrast = int(rng.integers(4)), float(rng.uniform(5, 11)), float(rng.uniform(0.1, 0.3))
    if kind == 0:
        return np.ones_like(u)
    wave: Scalars
    if kind == 1:
        wave = np.sign(np.sin(2 * math.pi / period * u))
    elif kind == 2:
        wave = np.sign(np.sin(2 * math.pi / period * u) * np.sin(2 * math.pi / period * v))
    else:
        wave = 2.0 * _blotches(rng, u.shape[0], u.shape[1], round(max(u.shape) / period)) - 1.0
    return np.asarray(1.0 + contrast * wave, np.float32)


def background(rng: np.random.Generator, height: int, width: int) -> Scalars:
    """Two dull colours mixed by blotches at two scales, [H, W, 3] in 0..1."""
    ends = [
        colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.2, 0.8)))
        for _ in range(2)
    ]
    mix = 0.7 * _blotches(rng, height, width, 4) + 0.3 * _blotches(rng, height, width, 24)
    low, high = np.asarray(ends, np.float32)
    return np.asarray(low + mix[..., None] * (high - low), np.float32)


def _blotches(rng: np.random.Generator, height: int, width: int, cells: int) -> Scalars:
    """Smooth noise in 0..1, [H, W], with ``cells`` cells a side."""
    grid = Image.fromarray(rng.random((cells, cells), np.float32))
    smooth = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth, 0.0, 1.0)


def lighting(rng: np.random.Generator, height: int, width: int) -> Scalars:
    """Exposure times a slope across the picture, [H, W]."""
    turn, slope = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(0.0, 0.3))
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    exposure = float(rng.uniform(0.75, 1.15))
    return np.asarray(exposure * (1.0 + slope * (math.cos(turn) * x + math.sin(turn) * y)), np.float32)
