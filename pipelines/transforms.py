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
from model.picture import ByteArray
from pipelines.decode import UNKNOWN_CLASS, decode_map, decode_rgb_fast
from pipelines.geometry import AugmentConfig, FloatArray, Placement, draw_placement, jitter_colour
from pipelines.mask_crops import MaskCrop, mask_crops
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


class Sample(NamedTuple):
    """A transformed picture with its trainable objects.

    Attributes:
        pixels: uint8 [3, H, W], RGB, channels last in memory.
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


def picture_tensor(record: Record) -> Tensor:
    """The decoded, upright picture uint8 [3, H, W], RGB; of any size that was accepted when the data were prepared.

    Raises:
        DecodeError: the bytes are not a picture that can be decoded.
    """
    return torch.from_numpy(_decoded(record)).permute(2, 0, 1)


def _decoded(record: Record) -> ByteArray:
    return decode_rgb_fast(record.image, record.height * record.width)


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
    """Decode a record and place it at random; see `place` for what becomes of its objects.

    Args:
        record: the picture and its objects.
        picture: the detector's picture settings.
        augment: what may happen.
        rng: of this sample.
        wanted: what to load.
        swaps: by label, `mirrored` of the class's keypoints; needed where keypoints are wanted.
    """
    placement = draw_placement((record.height, record.width), picture, augment, rng)
    return place(record, placement, augment.colour, rng, wanted, swaps)


def place(
    record: Record,
    placement: Placement,
    colour: float,
    rng: np.random.Generator,
    wanted: Wanted = Wanted(),
    swaps: Sequence[Sequence[int]] = (),
    out: ByteArray | None = None,
) -> Sample:
    """Decode a record and place it.

    Crowds, ignored regions, objects under a pixel and objects that a crop leaves nothing of are no objects of the
    sample. Boxes end where the picture does; that of an object that a crop cuts is the box of what is left of its mask.

    Args:
        record: the picture and its objects.
        placement: where it goes.
        colour: how far its colours may change, see `AugmentConfig`.
        rng: of this sample.
        wanted: what to load.
        swaps: by label, `mirrored` of the class's keypoints; needed where keypoints are wanted.
        out: uint8 [h, w, 3], the place of the pixels in a batch; None for new memory.

    Raises:
        DecodeError: the bytes are not a picture that can be decoded.
    """
    source = _decoded(record)
    if colour:
        source = jitter_colour(source, colour, rng)
    pixels = torch.from_numpy(placement.pixels(source, out)).permute(2, 0, 1)
    things = [instance for instance in record.instances if not (instance.crowd or instance.ignore)]
    things, boxes, masks = _objects(things, record, placement)
    labels = np.array([thing.label for thing in things], np.int64)
    sample = Sample(pixels, boxes.astype(np.float32), labels, tuple(masks))
    if wanted.keypoints:
        points = [_keypoints(thing, placement, wanted.keypoints, swaps) for thing in things]
        sample = sample._replace(keypoints=np.array(points, np.float32).reshape(-1, wanted.keypoints, 3))
    if wanted.semantic:
        sample = sample._replace(semantic=_semantic(record, placement))
    if wanted.ignore:
        regions = [instance for instance in record.instances if instance.crowd or instance.ignore]
        shown = _clipped(placement.boxes(_boxes(regions)), placement)
        sample = sample._replace(ignored=shown[_is_visible(shown)].astype(np.float32))
    if wanted.weights:
        sample = sample._replace(weights=np.array([thing.loss_weight for thing in things], np.float32))
    return sample


def _objects(
    things: list[Instance], record: Record, placement: Placement
) -> tuple[list[Instance], FloatArray, list[MaskCrop | None]]:
    """Those of which enough is left on the placed picture, with their boxes [n, 4] and masks there."""
    placed = placement.boxes(_boxes(things))
    # Clipped always, as every framework of origin does: annotated boxes may reach outside of their picture.
    shown = _clipped(placed, placement)
    kept = np.flatnonzero(_is_visible(shown))
    things, placed, shown = [things[number] for number in kept], placed[kept], shown[kept]
    masks = mask_crops(things, record, placement)
    if not placement.crops:
        return things, shown, masks
    for number in np.flatnonzero((placed != shown).any(axis=1)):
        if (mask := masks[number]) is not None:
            height, width = mask.bits.shape
            shown[number] = mask.x0, mask.y0, mask.x0 + width, mask.y0 + height
    kept = np.flatnonzero(_is_visible(shown))
    return [things[number] for number in kept], shown[kept], [masks[number] for number in kept]


def _boxes(things: Sequence[Instance]) -> FloatArray:
    return np.array([thing.box_xyxy for thing in things], np.float64).reshape(-1, 4)


def _clipped(boxes: FloatArray, placement: Placement) -> FloatArray:
    height, width = placement.size_hw
    return np.clip(boxes, 0, [width, height, width, height])


def _is_visible(boxes: FloatArray) -> npt.NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE_PX).all(axis=1))


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
