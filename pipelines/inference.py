"""From pictures to detections in original-picture pixels, in one view or in several; ordinary functions, no Ray."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.config import PasteRule
from model.detector import Detector
from model.heads.box import BoxDetections
from model.heads.keypoint import decode_keypoints
from model.merge import Found, Merged, MergeRule, mask_agreement, merge_boxes
from model.ops.masks import mask_rle
from model.picture import pad, resize, tight_hw
from model.structures import Images
from model.views import View, flip_boxes, flip_heatmaps, rescale, view_hw
from pipelines.config import Precision
from pipelines.predictions import PicturePrediction
from pipelines.records import Record
from pipelines.transforms import picture_tensor

_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


@dataclasses.dataclass(frozen=True)
class Method:
    """How pictures are looked at.

    Attributes:
        views: sizes and mirrors whose detections are merged; none for the detector's own size alone.
        voting_iou: see `model.merge.MergeRule`.
        precision: of the network; boxes, scores and masks stay float32.
    """

    views: tuple[View, ...] = ()
    voting_iou: float = 0.8
    precision: Precision = Precision.FP32

    def views_of(self, detector: Detector) -> tuple[View, ...]:
        """The views, the detector's own where none are given."""
        return self.views or (View(detector.config.picture.short_edge_px),)


class Source(NamedTuple):
    """A decoded picture: uint8 pixels [3, H, W], RGB, upright."""

    image_id: int
    pixels: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])


class _Seen(NamedTuple):
    """A batch in one view: each picture's size in it, the features on the device, the boxes found on the CPU."""

    view: View
    sizes_hw: list[tuple[int, int]]
    features: list[Tensor]
    found: BoxDetections


class _Completed(NamedTuple):
    """Masks [B, D, M, M] and heat maps [B, D, J, S, S] of one view, turned back, on the CPU."""

    masks: Tensor | None
    heatmaps: Tensor | None


def decode(record: Record) -> Source:
    """A record's picture.

    Raises:
        DecodeError: the bytes are not a picture that can be decoded.
    """
    return Source(record.image_id, picture_tensor(record))


def network_sizes(sizes_hw: Sequence[tuple[int, int]], detector: Detector) -> list[tuple[int, int]]:
    """Height and width each picture is resized to in the detector's own view."""
    picture = detector.config.picture
    own = View(picture.short_edge_px)
    return [view_hw(height, width, own, picture) for height, width in sizes_hw]


def cut_batches(sizes_hw: Sequence[tuple[int, int]], detector: Detector, batch: int) -> list[list[int]]:
    """Indices of pictures grouped into batches of like resized shape, so that little is padded.

    A function of the sizes alone: the same pictures make the same batches whoever predicts them.
    """
    sizes = network_sizes(sizes_hw, detector)
    order = sorted(range(len(sizes)), key=lambda i: (*sizes[i], i))
    return [order[first : first + batch] for first in range(0, len(order), batch)]


def predict_batch(
    detector: Detector, records: Sequence[Record], device: torch.device, method: Method | None = None
) -> list[PicturePrediction]:
    """Decode pictures and detect on them together; see `predict_sources`.

    Raises:
        DecodeError: a picture cannot be decoded.
    """
    return predict_sources(detector, [decode(record) for record in records], device, method)


def predict_sources(
    detector: Detector, sources: Sequence[Source], device: torch.device, method: Method | None = None
) -> list[PicturePrediction]:
    """Detect on pictures together: boxes in each view, merged, then masks and keypoints of the merged boxes in each.

    The features of all views of all pictures are held at a time.

    Args:
        detector: in evaluation mode, on `device`.
        sources: the pictures.
        device: where the network runs.
        method: how; None for one view in float32.

    Returns:
        One prediction a picture, in order; boxes, masks and keypoints in pixels of the original picture, best first.

    Raises:
        ValueError: a picture is too narrow for a view.
    """
    if not sources:
        return []
    method = method or Method()
    views = method.views_of(detector)
    cast = _AUTOCAST.get(method.precision)
    with torch.autocast(device.type, cast) if cast else contextlib.nullcontext():
        seen = [_look(detector, sources, view, device) for view in views]
        merged = [_merge(detector, seen, source, i, method) for i, source in enumerate(sources)]
        most = max((len(one.scores) for one in merged), default=0)
        completed = [_complete(detector, part, sources, merged, most, alone=len(seen) == 1) for part in seen]
    masks, agreement = _mean_masks(completed, detector)
    heatmaps = _mean([part.heatmaps for part in completed])
    found = []
    for i, (source, boxes) in enumerate(zip(sources, merged, strict=True)):
        made = _with_boxes(source, boxes)
        if detector.config.mask.enabled:
            made = _with_masks(made, boxes.boxes, _of(masks, i, boxes), _of(agreement, i, boxes), detector)
        if detector.config.keypoint.enabled:
            own_hw, own = _reference(detector, seen, source, boxes, i)
            made = _with_keypoints(made, own, own_hw, _of(heatmaps, i, boxes), detector)
        found.append(made)
    return found


def _look(detector: Detector, sources: Sequence[Source], view: View, device: torch.device) -> _Seen:
    picture = detector.config.picture
    sizes = [view_hw(*source.size_hw, view, picture) for source in sources]
    pixels = [resize(source.pixels, size, picture.kernel) for source, size in zip(sources, sizes, strict=True)]
    images = pad([part.flip(-1) if view.flip else part for part in pixels], tight_hw(sizes, picture))
    features, found = detector.detect(Images(*(value.to(device) for value in images)))
    return _Seen(view, sizes, features, BoxDetections(*(value.cpu() for value in found)))


def _boxes_of(seen: _Seen, i: int) -> Tensor:
    """The boxes found on a picture [N, 4], in the pixels of the view turned back."""
    boxes = seen.found.boxes[i, seen.found.valid[i]]
    return flip_boxes(boxes, seen.sizes_hw[i][1]) if seen.view.flip else boxes


def _merge(detector: Detector, seen: Sequence[_Seen], source: Source, i: int, method: Method) -> Merged:
    parts = []
    for number, part in enumerate(seen):
        boxes = rescale(_boxes_of(part, i), part.sizes_hw[i], source.size_hw)
        valid = part.found.valid[i]
        parts.append(Found(boxes, part.found.scores[i, valid], part.found.labels[i, valid],
                           torch.full((len(boxes),), number)))  # fmt: skip
    box = detector.config.box
    rule = MergeRule(box.nms_iou, method.voting_iou, box.max_detections)
    return merge_boxes(Found(*(torch.cat(values) for values in zip(*parts, strict=True))), len(seen), rule)


def _complete(
    detector: Detector, seen: _Seen, sources: Sequence[Source], merged: Sequence[Merged], most: int, *, alone: bool
) -> _Completed:
    """Masks and heat maps of the merged boxes, as many a picture as the fullest one has (`most`), in one view."""
    if not most:
        return _Completed(None, None)
    found = seen.found
    if alone:  # its own boxes, not what rounding on the way to the picture and back makes of them
        padded = BoxDetections(*(value[:, :most] for value in found))
    else:
        shape = (len(sources), most)
        padded = BoxDetections(torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64),
                               torch.zeros(shape, dtype=torch.bool))  # fmt: skip
        for i, (source, boxes) in enumerate(zip(sources, merged, strict=True)):
            count = len(boxes.scores)
            own = rescale(boxes.boxes, source.size_hw, seen.sizes_hw[i])
            padded.boxes[i, :count] = flip_boxes(own, seen.sizes_hw[i][1]) if seen.view.flip else own
            padded.scores[i, :count], padded.labels[i, :count] = boxes.scores, boxes.labels
            padded.valid[i, :count] = True
    device = seen.features[0].device
    whole = detector.complete(seen.features, BoxDetections(*(value.to(device) for value in padded)))
    masks = None if whole.masks is None else whole.masks.float().cpu()
    heatmaps = None if whole.heatmaps is None else whole.heatmaps.float().cpu()
    seen.features.clear()  # they are by far the largest thing held
    if seen.view.flip:
        masks = None if masks is None else masks.flip(-1)
        pairs = detector.config.keypoint.flip_pairs
        if heatmaps is not None:
            heatmaps = flip_heatmaps(heatmaps.flatten(0, 1), pairs).view(heatmaps.shape)
    return _Completed(masks, heatmaps)


def _mean(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known).mean(dim=0) if known else None


def _mean_masks(completed: Sequence[_Completed], detector: Detector) -> tuple[Tensor | None, Tensor | None]:
    """The mean masks [B, D, M, M], and each one's agreement [B, D] with the views'."""
    merged = _mean([part.masks for part in completed])
    if merged is None:
        return None, None
    views = torch.stack([part.masks.flatten(0, 1) for part in completed if part.masks is not None])
    agreement = mask_agreement(views, merged.flatten(0, 1), detector.config.mask.threshold)
    return merged, agreement.view(merged.shape[:2])


def _of(values: Tensor | None, i: int, boxes: Merged) -> Tensor | None:
    """A picture's share of a batch's values [B, D, ...]; None where nothing was found on any picture."""
    return None if values is None else values[i, : len(boxes.scores)]


def _with_boxes(source: Source, found: Merged) -> PicturePrediction:
    height, width = source.size_hw
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).double()
    return PicturePrediction(
        image_id=source.image_id,
        height=height,
        width=width,
        boxes_xyxy=found.boxes.numpy().astype(np.float32),
        scores=found.scores.numpy(),
        labels=found.labels.numpy(),
        rles=None,
        areas=sides.prod(dim=1).round().to(torch.int64).numpy(),
        view_agreement=found.view_agreement.numpy(),
        box_spread=found.box_spread.numpy(),
    )


def _with_masks(
    made: PicturePrediction, boxes: Tensor, masks: Tensor | None, agreement: Tensor | None, detector: Detector
) -> PicturePrediction:
    if masks is None or agreement is None:
        masks, agreement = torch.zeros(0, 1, 1), torch.zeros(0)
    mask = detector.config.mask
    sizes = torch.tensor([made.height, made.width]).expand(len(boxes), 2)
    padded = mask.paste is PasteRule.PADDED_RESIZE
    runs = mask_rle(masks, boxes, sizes, threshold=mask.threshold, padded=padded)
    return dataclasses.replace(
        made, rles=tuple(runs.counts), areas=runs.areas.numpy(), mask_agreement=agreement.numpy()
    )


def _reference(
    detector: Detector, seen: Sequence[_Seen], source: Source, merged: Merged, i: int
) -> tuple[tuple[int, int], Tensor]:
    """The detector's own size of a picture, in which its heat maps are read, and its boxes there."""
    (own_hw,) = network_sizes([source.size_hw], detector)
    if len(seen) == 1 and seen[0].sizes_hw[i] == own_hw:
        return own_hw, _boxes_of(seen[0], i)
    return own_hw, rescale(merged.boxes, source.size_hw, own_hw)


def _with_keypoints(
    made: PicturePrediction, boxes: Tensor, own_hw: tuple[int, int], heatmaps: Tensor | None, detector: Detector
) -> PicturePrediction:
    keypoint = detector.config.keypoint
    if heatmaps is None:
        return dataclasses.replace(made, keypoints=np.zeros((0, keypoint.num_keypoints, 3), np.float32))
    points = decode_keypoints(heatmaps, boxes, keypoint.score)
    factors = torch.tensor([made.width / own_hw[1], made.height / own_hw[0], 1.0])
    return dataclasses.replace(made, keypoints=(points * factors).numpy())
