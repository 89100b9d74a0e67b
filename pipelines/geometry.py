"""Where a training picture goes: resized, cut to a window, perhaps mirrored; and its objects with it.

Points and boxes are in continuous pixels: a picture of width W reaches from 0 to W, and mirrored, x becomes W - x.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from model.config import PictureConfig, ResizeKernel
from model.picture import ByteArray, place_bytes, resized_hw

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What may happen to a training picture.

    Large scale jitter is `jitter` (0.1, 2.0) with `crop_px` 1024.

    Attributes:
        flip: probability of a horizontal flip.
        short_edges_px: one is drawn for each picture; empty takes the detector's own.
        long_edges_px: upper limits of the longer side, one is drawn; empty takes the detector's own.
        ranges: draw whole numbers between the least and the largest of the edges, instead of one of them.
        jitter: least and largest scale: the longer side becomes a random scale of `crop_px`, instead of the edges;
            empty for none.
        crop_px: cut a random window of at most this many pixels a side out of the resized picture; 0 for none.
        colour: brightness, contrast and saturation each change by a random factor of 1 - colour to 1 + colour.
    """

    flip: float = 0.5
    short_edges_px: tuple[int, ...] = ()
    long_edges_px: tuple[int, ...] = ()
    ranges: bool = False
    jitter: tuple[float, ...] = ()
    crop_px: int = 0
    colour: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip must be in 0..1, got {self.flip}")
        for name in ("short_edges_px", "long_edges_px"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"augment.{name} must be > 0, got {getattr(self, name)}")
        if self.long_edges_px and min(self.long_edges_px) < max(self.short_edges_px, default=0):
            raise ValueError(
                f"augment.long_edges_px must reach every short edge {self.short_edges_px}, got {self.long_edges_px}"
            )
        if self.jitter and not (len(self.jitter) == 2 and 0 < self.jitter[0] <= self.jitter[1]):
            raise ValueError(f"augment.jitter must be a least and a largest scale > 0, got {self.jitter}")
        if self.crop_px < 0 or (self.jitter and not self.crop_px):
            raise ValueError(f"augment.crop_px must be >= 0, and > 0 with jitter, got {self.crop_px}")
        if not 0 <= self.colour < 1:
            raise ValueError(f"augment.colour must be in 0..1, got {self.colour}")


def largest_picture(picture: PictureConfig, augment: AugmentConfig) -> PictureConfig:
    """The detector's picture settings with the largest edges in use: what batches are padded to.

    Raises:
        ValueError: the largest short edge is longer than the limit of the longer side.
    """
    if augment.crop_px:
        return dataclasses.replace(picture, short_edge_px=augment.crop_px, long_edge_px=augment.crop_px)
    return dataclasses.replace(
        picture,
        short_edge_px=max(augment.short_edges_px, default=picture.short_edge_px),
        long_edge_px=max(augment.long_edges_px, default=picture.long_edge_px),
    )


@dataclasses.dataclass(frozen=True)
class Placement:
    """One way to place a picture.

    Attributes:
        source_hw: height and width of the picture, pixels.
        resized_hw: after the resize.
        window: (y0, x0, h, w) that is cut out of the resized picture.
        flip: mirror left and right, last.
        kernel: interpolation of the resize.
    """

    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    window: tuple[int, int, int, int]
    flip: bool
    kernel: ResizeKernel = ResizeKernel.FLOAT_BILINEAR

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.window[2:]

    @property
    def crops(self) -> bool:
        """Whether anything of the picture is cut off."""
        return self.size_hw != self.resized_hw

    def points(self, xy: FloatArray) -> FloatArray:
        """Points [n, 2] of the picture on the result; they may lie outside."""
        (height, width), (new_height, new_width), (y0, x0, _, shown) = self.source_hw, self.resized_hw, self.window
        placed = np.empty_like(xy, np.float64)  # a column at a time: numpy is slow along an axis of two
        np.subtract(xy[:, 0] * (new_width / width), x0, out=placed[:, 0])
        np.subtract(xy[:, 1] * (new_height / height), y0, out=placed[:, 1])
        if self.flip:
            np.subtract(shown, placed[:, 0], out=placed[:, 0])
        return placed

    def boxes(self, xyxy: FloatArray) -> FloatArray:
        """Boxes [n, 4] of the picture on the result; they may reach outside."""
        placed = self.points(xyxy.reshape(-1, 2)).reshape(-1, 4)
        return placed[:, [2, 1, 0, 3]] if self.flip else placed

    def pixels(self, picture: ByteArray, out: ByteArray | None = None) -> ByteArray:
        """The picture [H, W, 3] placed: [h, w, 3] as `model.picture.place_bytes` makes it, in `out` if given."""
        y0, x0, height, width = self.window
        left = self.resized_hw[1] - x0 - width if self.flip else x0  # of the mirrored picture
        window = (y0, left, height, width)
        return place_bytes(picture, self.resized_hw, self.kernel, mirrored=self.flip, window=window, out=out)

    def values(self, bitmap: ByteArray) -> ByteArray:
        """A bitmap or map [H, W] placed by nearest neighbours: [h, w]."""
        if self.resized_hw != self.source_hw or self.crops:
            y, x = self._nearest()
            bitmap = bitmap[y[:, None], x]
        return np.ascontiguousarray(bitmap[:, ::-1] if self.flip else bitmap)

    def crop(self, y0: int, x0: int, bits: ByteArray) -> tuple[int, int, ByteArray]:
        """As `values`, of a bitmap that is zero outside of `bits` at row y0 and column x0; gives such a window back."""
        y, x = self._nearest()
        rows = slice(*np.searchsorted(y, [y0, y0 + bits.shape[0]]).tolist())
        columns = slice(*np.searchsorted(x, [x0, x0 + bits.shape[1]]).tolist())
        placed = bits[(y[rows] - y0)[:, None], x[columns] - x0]
        if not self.flip:
            return rows.start, columns.start, placed
        return rows.start, self.size_hw[1] - columns.stop, placed[:, ::-1]

    def _nearest(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The picture's row of each row of the result, and its column of each column before it is mirrored."""
        (height, width), (new_height, new_width), (y0, x0, rows, columns) = self.source_hw, self.resized_hw, self.window
        return np.arange(y0, y0 + rows) * height // new_height, np.arange(x0, x0 + columns) * width // new_width


def draw_placement(
    source_hw: tuple[int, int], picture: PictureConfig, augment: AugmentConfig, rng: np.random.Generator
) -> Placement:
    """A random placement of a picture of `source_hw` pixels."""
    short = _draw(augment.short_edges_px or (picture.short_edge_px,), augment.ranges, rng)
    if augment.long_edges_px:
        picture = dataclasses.replace(picture, long_edge_px=_draw(augment.long_edges_px, augment.ranges, rng))
    if augment.jitter:
        wanted = round(augment.crop_px * rng.uniform(augment.jitter[0], augment.jitter[1]))
        # At least a pixel of the shorter side is left, however narrow the picture.
        short = max(wanted, -(-max(source_hw) // min(source_hw)))
        picture = dataclasses.replace(picture, short_edge_px=short, long_edge_px=short)
    resized = resized_hw(*source_hw, short, picture)
    window = (0, 0, *resized)
    if augment.crop_px:
        height, width = (min(side, augment.crop_px) for side in resized)
        y0, x0 = rng.integers(0, resized[0] - height + 1), rng.integers(0, resized[1] - width + 1)
        window = (int(y0), int(x0), height, width)
    return Placement(source_hw, resized, window, bool(rng.random() < augment.flip), picture.kernel)


def _draw(edges: tuple[int, ...], ranges: bool, rng: np.random.Generator) -> int:
    if ranges:
        return int(rng.integers(min(edges), max(edges) + 1))
    return int(edges[rng.integers(len(edges))])


def jitter_colour(picture: ByteArray, strength: float, rng: np.random.Generator) -> ByteArray:
    """Change brightness, contrast and saturation of [H, W, 3], each by a factor of 1 ± `strength`."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    bright = torch.from_numpy(picture).to(torch.float32) * brightness
    grey = bright @ torch.tensor([0.299, 0.587, 0.114])
    mean = float(grey.sum(dtype=torch.float64)) / grey.numel()  # a sum in float32 would depend on the threads
    # Saturation pulls colours to their grey, contrast pulls everything to the picture's mean.
    made = torch.lerp(grey[..., None], bright, saturation).sub_(mean).mul_(contrast).add_(mean)
    return np.asarray(made.round_().clamp_(0, 255).to(torch.uint8).numpy())
