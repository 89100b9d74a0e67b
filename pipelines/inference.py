"""From pictures to detections in original-picture pixels, in one view or in several; ordinary functions, no Ray."""

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.config import PasteRule
from model.detector import Detector
from model.heads.keypoint import decode_keypoints
from model.merge import Found, Merge, Merged, MergeRule, mask_agreement, merge_boxes
from model.ops.masks import mask_rle
from model.views import View, rescale, view_hw
from pipelines.config import Precision
from pipelines.looking import Seen, Source, by_size, complete, look, moved
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
        merge: how views' boxes become one set.
        precision: of the network; boxes, scores and masks stay float32.
    """

    views: tuple[View, ...] = ()
    voting_iou: float = 0.8
    precision: Precision = Precision.FP32
    merge: Merge = Merge.VOTE

    def views_of(self, detector: Detector) -> tuple[View, ...]:
        """The views, the detector's own where none are given."""
        return self.views or (View(detector.config.picture.short_edge_px),)


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

    The features of all views of all pictures are held at a time. A size and its mirror are one pass of the network.

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
        pixels = moved(sources, detector, device)
        seen = [look(detector, pixels, size, device) for size in by_size(views)]
        merged = [_merge(detector, seen, source, i, method) for i, source in enumerate(sources)]
        of_views, heatmaps = _looks(detector, seen, sources, merged)
    masks, agreement = _mean_masks(of_views, detector)
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


def _merge(detector: Detector, seen: Sequence[Seen], source: Source, i: int, method: Method) -> Merged:
    parts, count = [], 0
    for part in seen:
        for view in range(len(part.views)):
            boxes = rescale(part.boxes_of(view, i), part.sizes_hw[i], source.size_hw)
            number, count = torch.full((len(boxes),), count), count + 1
            scores, labels = part.of(part.found.scores, view, i), part.of(part.found.labels, view, i)
            parts.append(Found(boxes, scores, labels, number))
    box = detector.config.box
    rule = MergeRule(box.nms_iou, method.voting_iou, box.max_detections, method.merge)
    return merge_boxes(Found(*(torch.cat(values) for values in zip(*parts, strict=True))), count, rule)


def _looks(
    detector: Detector, seen: Sequence[Seen], sources: Sequence[Source], merged: Sequence[Merged]
) -> tuple[Tensor | None, Tensor | None]:
    """Masks [V, B, D, M, M] of the merged boxes in all views, and their mean heat maps [B, D, J, S, S]."""
    most = max((len(one.scores) for one in merged), default=0)
    count = sum(len(part.views) for part in seen)
    masks, total = [], None
    for part in seen:
        made = complete(detector, part, sources, merged, most, alone=count == 1)
        masks += [] if made.masks is None else [made.masks]
        if made.heatmaps is not None:  # added up at once: a view's maps of a hundred people are 20 MB
            for one in made.heatmaps:
                total = one if total is None else total.add_(one)
    return torch.cat(masks) if masks else None, None if total is None else total / count


def _mean_masks(views: Tensor | None, detector: Detector) -> tuple[Tensor | None, Tensor | None]:
    """The mean masks [B, D, M, M], and each one's agreement [B, D] with the views'."""
    if views is None:
        return None, None
    merged = views.mean(dim=0)
    agreement = mask_agreement(views.flatten(1, 2), merged.flatten(0, 1), detector.config.mask.threshold)
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
    detector: Detector, seen: Sequence[Seen], source: Source, merged: Merged, i: int
) -> tuple[tuple[int, int], Tensor]:
    """The detector's own size of a picture, in which its heat maps are read, and its boxes there."""
    (own_hw,) = network_sizes([source.size_hw], detector)
    if len(seen) == 1 and len(seen[0].views) == 1 and seen[0].sizes_hw[i] == own_hw:
        return own_hw, seen[0].boxes_of(0, i)
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
