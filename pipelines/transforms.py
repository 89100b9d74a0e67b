"""One record as a training sample: picture, objects and maps placed together.

Geometric transforms act on polygons; masks become tight bitmap crops only afterwards.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import DetectorConfig, PictureConfig
from pipelines.decode import UNKNOWN_CLASS, decode_map, decode_rgb_fast
from pipelines.geometry import AugmentConfig, Placement, draw_placement, jitter_colour
from pipelines.masks import crop, crop_polygons, rasterise
from pipelines.records import Instance, Record

_MIN_SIDE_PX = 1


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a detector learns from beside boxes, classes and masks; what it does not want is not loaded.

    Attributes:
        keypoints: most keypoints an object has; 0 for none.
        semantic: classes that a semantic branch tells apart; 0 for none.
        ignore: boxes of crowds and ignored regions, as neither object nor background; else they are left out.
        weights: the objects' loss weights.
    """

    keypoints: int = 0
    semantic: int = 0
    ignore: bool = False
    weights: bool = False

    @classmethod
    def by(cls, detector: DetectorConfig) -> "Wanted":
        """What a detector of that configuration learns from."""
        keypoints = detector.keypoint.num_keypoints if detector.keypoint.enabled else 0
        semantic = detector.semantic.num_classes if detector.semantic.enabled else 0
        return cls(keypoints=keypoints, semantic=semantic)


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
        keypoints: float32 [G, J, 3] of x, y and visibility; None where not wanted.
        semantic: uint8 [H, W], 255 where not known; None where not wanted.
        ignored: float32 [I, 4], boxes that are neither object nor background; None where not wanted.
        weights: float32 [G]; None where not wanted.
    """

    pixels: Tensor
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: tuple[MaskCrop | None, ...]
    keypoints: npt.NDArray[np.float32] | None = None
    semantic: npt.NDArray[np.uint8] | None = None
    ignored: npt.NDArray[np.float32] | None = None
    weights: npt.NDArray[np.float32] | None = None


class _Object(NamedTuple):
    instance: Instance
    box: npt.NDArray[np.float64]
    mask: MaskCrop | None


def picture_tensor(record: Record) -> Tensor:
    """The decoded, upright picture uint8 [3, H, W], RGB; of any size that was accepted when the data were prepared.

    Raises:
        DecodeError: the bytes are not a picture that can be decoded.
    """
    return torch.from_numpy(decode_rgb_fast(record.image, record.height * record.width)).permute(2, 0, 1)


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """For each keypoint the one it becomes in a mirror: left_eye becomes right_eye, nose stays."""
    places = {name: number for number, name in enumerate(names)}
    swap = {"left": "right", "right": "left"}
    found = []
    for number, name in enumerate(names):
        side = next((word for word in swap if word in name), None)
        found.append(places.get(name.replace(side, swap[side]), number) if side else number)
    return tuple(found)


def transform(
    record: Record,
    picture: PictureConfig,
    augment: AugmentConfig,
    rng: np.random.Generator,
    wanted: Wanted = Wanted(),
    swaps: Sequence[Sequence[int]] = (),
) -> Sample:
    """Decode a record and place it at random.

    Crowds, ignored regions, objects under a pixel and objects that a crop leaves nothing of are no objects of the
    sample. Boxes end where the picture does; that of an object that a crop cuts is the box of what is left of its mask.

    Args:
        record: the picture and its objects.
        picture: the detector's picture settings.
        augment: what may happen.
        rng: of this sample.
        wanted: what to load.
        swaps: by label, `mirrored` of the class's keypoints; needed where keypoints are wanted.
    """
    placement = draw_placement((record.height, record.width), picture, augment, rng)
    pixels = placement.pixels(picture_tensor(record))
    if augment.colour:
        pixels = jitter_colour(pixels, augment.colour, rng)
    objects = [o for i in record.instances if not (i.crowd or i.ignore) and (o := _object(i, record, placement))]
    boxes = np.array([o.box for o in objects], np.float32).reshape(-1, 4)
    labels = np.array([o.instance.label for o in objects], np.int64)
    sample = Sample(pixels, boxes, labels, tuple(o.mask for o in objects))
    if wanted.keypoints:
        points = [_keypoints(o.instance, placement, wanted.keypoints, swaps) for o in objects]
        sample = sample._replace(keypoints=np.array(points, np.float32).reshape(-1, wanted.keypoints, 3))
    if wanted.semantic:
        sample = sample._replace(semantic=_semantic(record, placement))
    if wanted.ignore:
        regions = [_clipped(placement.box(i.box_xyxy), placement) for i in record.instances if i.crowd or i.ignore]
        kept = [box for box in regions if _is_visible(box)]
        sample = sample._replace(ignored=np.array(kept, np.float32).reshape(-1, 4))
    if wanted.weights:
        sample = sample._replace(weights=np.array([o.instance.loss_weight for o in objects], np.float32))
    return sample


def _object(instance: Instance, record: Record, placement: Placement) -> _Object | None:
    """An object on the placed picture; None where too little of it is left."""
    box = placement.box(instance.box_xyxy)
    # Clipped always, as every framework of origin does: annotated boxes may reach outside of their picture.
    shown = _clipped(box, placement)
    is_cut = placement.crops and bool((box != shown).any())
    if not _is_visible(shown):
        return None
    mask = _mask_crop(instance, record, placement)
    if is_cut and mask is not None:
        height, width = mask.bits.shape
        shown = np.array([mask.x0, mask.y0, mask.x0 + width, mask.y0 + height], np.float64)
    return _Object(instance, shown, mask) if _is_visible(shown) else None


def _clipped(box: npt.NDArray[np.float64], placement: Placement) -> npt.NDArray[np.float64]:
    height, width = placement.size_hw
    return np.clip(box, 0, [width, height, width, height])


def _is_visible(box: npt.NDArray[np.float64]) -> bool:
    return bool(box[2] - box[0] >= _MIN_SIDE_PX and box[3] - box[1] >= _MIN_SIDE_PX)


def _mask_crop(instance: Instance, record: Record, placement: Placement) -> MaskCrop | None:
    """The object's mask on the placed picture; None where it has none."""
    if instance.polygons is not None:
        rings = [placement.points(ring.reshape(-1, 2)).ravel() for ring in instance.polygons]
        return MaskCrop(*crop_polygons(rings, *placement.size_hw))
    if instance.rle is None:
        return None
    return MaskCrop(*crop(placement.values(rasterise(instance.rle, record.height, record.width))))


def _keypoints(
    instance: Instance, placement: Placement, count: int, swaps: Sequence[Sequence[int]]
) -> npt.NDArray[np.float32]:
    """Keypoints [count, 3] on the placed picture; unlabelled ones, and those cut off, are zeros."""
    made = np.zeros((count, 3), np.float32)
    if instance.keypoints is None:
        return made
    points = instance.keypoints.astype(np.float64)
    # Annotated by the index of a pixel, whose centre lies half a pixel further in continuous coordinates.
    points[:, :2] = placement.points(points[:, :2] + 0.5)
    height, width = placement.size_hw
    inside = (points[:, 0] >= 0) & (points[:, 0] <= width) & (points[:, 1] >= 0) & (points[:, 1] <= height)
    points[~inside | (points[:, 2] == 0)] = 0
    if placement.flip:
        points = points[list(swaps[instance.label])]
    made[: len(points)] = points[:count]
    return made


def _semantic(record: Record, placement: Placement) -> npt.NDArray[np.uint8]:
    if record.semantic is None:
        return np.full(placement.size_hw, UNKNOWN_CLASS, np.uint8)
    return placement.values(decode_map(record.semantic, record.height * record.width))
