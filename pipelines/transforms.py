"""One record as a training or test sample: picture and objects resized and flipped together.

Geometric transforms act on polygons; masks become tight bitmap crops only afterwards.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import PictureConfig
from model.picture import resize, resized_hw
from pipelines.decode import decode_rgb
from pipelines.masks import crop, crop_rle, polygons_to_rle, rasterise
from pipelines.records import Instance, Record


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What may happen to a training picture.

    Attributes:
        flip: probability of a horizontal flip.
        short_edges_px: one is drawn for each picture; empty takes the detector's own.
    """

    flip: float = 0.5
    short_edges_px: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip must be in 0..1, got {self.flip}")
        if self.short_edges_px and min(self.short_edges_px) < 1:
            raise ValueError(f"augment.short_edges_px must be > 0, got {self.short_edges_px}")


class MaskCrop(NamedTuple):
    """A tight bitmap: bits uint8 [h, w], placed at row y0 and column x0 of the whole mask."""

    y0: int
    x0: int
    bits: npt.NDArray[np.uint8]


class Sample(NamedTuple):
    """A transformed picture with its trainable objects.

    Attributes:
        pixels: float32 [3, H, W], 0..255, RGB.
        boxes: float32 [G, 4].
        labels: int64 [G].
        masks: one crop an object; None where its mask is not known.
    """

    pixels: Tensor
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: tuple[MaskCrop | None, ...]


def picture_tensor(record: Record) -> Tensor:
    """The decoded, upright picture uint8 [3, H, W], RGB.

    Raises:
        DecodeError: the bytes are not a picture that can be decoded.
    """
    return torch.from_numpy(decode_rgb(record.image)).permute(2, 0, 1)


def _mask_crop(instance: Instance, record: Record, size_hw: tuple[int, int], flip: bool) -> MaskCrop | None:
    """The object's mask on the transformed picture; None where it has none."""
    height, width = size_hw
    if instance.polygons is not None:
        scale = np.array([width / record.width, height / record.height])
        rings = []
        for ring in instance.polygons:
            points = ring.reshape(-1, 2) * scale
            if flip:
                points[:, 0] = width - points[:, 0]
            rings.append(points.ravel())
        return MaskCrop(*crop_rle(polygons_to_rle(rings, height, width), height, width))
    if instance.rle is None:
        return None
    bitmap = rasterise(instance.rle, record.height, record.width)
    if bitmap.shape != size_hw:
        bitmap = F.interpolate(torch.from_numpy(bitmap)[None, None], size=size_hw, mode="nearest")[0, 0].numpy()
    return MaskCrop(*crop(np.ascontiguousarray(bitmap[:, ::-1]) if flip else bitmap))


def transform(record: Record, picture: PictureConfig, augment: AugmentConfig, rng: np.random.Generator) -> Sample:
    """Decode, resize and perhaps flip a record; crowd and ignored regions and objects under a pixel are left out."""
    edges = augment.short_edges_px or (picture.short_edge_px,)
    size_hw = resized_hw(record.height, record.width, int(edges[rng.integers(len(edges))]), picture)
    flip = bool(rng.random() < augment.flip)
    pixels = resize(picture_tensor(record), size_hw)
    if flip:
        pixels = pixels.flip(2)
    height, width = size_hw
    scale = np.array([width / record.width, height / record.height] * 2)
    boxes, labels, masks = [], [], []
    for instance in record.instances:
        if instance.crowd or instance.ignore:
            continue
        x1, y1, x2, y2 = np.array(instance.box_xyxy) * scale
        if flip:
            x1, x2 = width - x2, width - x1
        if x2 - x1 < 1 or y2 - y1 < 1:
            continue
        boxes.append((x1, y1, x2, y2))
        labels.append(instance.label)
        masks.append(_mask_crop(instance, record, size_hw, flip))
    return Sample(
        pixels,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        tuple(masks),
    )
