"""One set of detections out of several views' (data distillation, Radosavovic et al. 2017), and how far they agree.

Boxes and masks are a picture's own: boxes in its original pixels, masks as probabilities in their box.
"""

import dataclasses
import enum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.boxes import pairwise_iou
from model.fusion import fuse
from model.ops.nms import nms

_SAME_OBJECT_IOU = 0.5


class Merge(enum.Enum):
    """How the boxes of several views become one set."""

    VOTE = "vote"  # NMS, then each box the mean of those that overlap it (the distillation paper)
    NONE = "none"  # NMS alone
    WBF = "wbf"  # weighted box fusion; see `model.fusion`


@dataclasses.dataclass(frozen=True)
class MergeRule:
    """How the union of the views' boxes becomes one set.

    Attributes:
        nms_iou: class-wise NMS suppresses above this overlap.
        voting_iou: a kept box becomes the score-weighted mean of its class's boxes that overlap it at least so much.
        max_detections: kept a picture.
        merge: how.
    """

    nms_iou: float
    voting_iou: float
    max_detections: int
    merge: Merge = Merge.VOTE


class Found(NamedTuple):
    """What the views found on one picture, N boxes in all.

    Attributes:
        boxes: float32 [N, 4].
        scores: float32 [N].
        labels: int64 [N].
        views: int64 [N], the view of each.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    views: Tensor


class Merged(NamedTuple):
    """Detections on one picture, best first.

    Attributes:
        boxes: float32 [D, 4].
        scores: float32 [D].
        labels: int64 [D].
        view_agreement: float32 [D] in 0..1, share of the views with a box of the class at an IoU of 0.5 or more.
        box_spread: float32 [D], standard deviation of those boxes' edges over the side of the box, mean of the four.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    view_agreement: Tensor
    box_spread: Tensor


def merge_boxes(found: Found, num_views: int, rule: MergeRule) -> Merged:
    """Union, then NMS and voting, or fusion; the order of the views does not matter.

    One view is left as it is: its own NMS has been.

    Args:
        found: on the CPU, original pixels.
        num_views: all of them, those that found nothing included.
        rule: how.
    """
    if num_views == 1:
        count = len(found.scores)
        return Merged(*found[:3], torch.ones(count), torch.zeros(count))
    # By value, so that equal scores do not stand in the order of the views.
    keys = [*found.boxes.numpy().T, found.labels.numpy(), -found.scores.numpy()]
    order = torch.from_numpy(np.lexsort(keys))
    ranked = Found(*(value[order] for value in found))
    if rule.merge is Merge.WBF:
        fused = fuse(*ranked[:3], num_views)
        boxes, scores, labels = (values[: rule.max_detections] for values in fused)
    else:
        valid = torch.ones(1, len(order), dtype=torch.bool)
        keep = nms(ranked.boxes[None], ranked.scores[None], ranked.labels[None], valid, rule.nms_iou)[0]
        kept = keep.nonzero()[: rule.max_detections, 0]
        boxes, scores, labels = ranked.boxes[kept], ranked.scores[kept], ranked.labels[kept]
    is_same_class = labels[:, None] == ranked.labels
    if rule.merge is Merge.VOTE:
        boxes = _vote(boxes, ranked, is_same_class, rule.voting_iou)
    agreement, spread = _agreement(boxes, ranked, is_same_class, num_views)
    return Merged(boxes, scores, labels, agreement, spread)


def _vote(boxes: Tensor, ranked: Found, is_same_class: Tensor, iou: float) -> Tensor:
    weights = (is_same_class & (pairwise_iou(boxes, ranked.boxes) >= iou)) * ranked.scores.double()
    total = weights.sum(dim=1, keepdim=True)
    # In float64 the mean of equal boxes is that box to the last bit. Without a score there is no mean.
    return torch.where(total > 0, weights @ ranked.boxes.double() / total, boxes.double()).float()


def _agreement(boxes: Tensor, ranked: Found, is_same_class: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
    iou = torch.where(is_same_class, pairwise_iou(boxes, ranked.boxes), -1.0)
    matched, edges = [], []
    for view in range(num_views):
        own = (ranked.views == view).nonzero()[:, 0]
        if not len(own):
            continue
        best, place = iou[:, own].max(dim=1)
        matched.append(best >= _SAME_OBJECT_IOU)
        edges.append(ranked.boxes[own[place]].double())
    if not len(boxes):
        return boxes.new_zeros(0), boxes.new_zeros(0)
    weights, corners = torch.stack(matched)[..., None].double(), torch.stack(edges)  # [V, D, 1], [V, D, 4]
    count = weights.sum(dim=0)
    mean = (weights * corners).sum(dim=0) / count.clamp(min=1)
    deviation = ((weights * (corners - mean).square()).sum(dim=0) / count.clamp(min=1)).sqrt()
    side = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6).repeat(1, 2)
    return (count[:, 0] / num_views).float(), (deviation / side).mean(dim=1).float()


def mask_agreement(views: Tensor, merged: Tensor, threshold: float) -> Tensor:
    """Mean IoU [D] of each view's mask with the merged one, cell by cell; two empty masks agree.

    Args:
        views: probabilities [V, D, M, M].
        merged: probabilities [D, M, M].
        threshold: from which a cell belongs to the mask.
    """
    one, other = views >= threshold, (merged >= threshold)[None]
    union = (one | other).sum(dim=(2, 3))
    overlap = (one & other).sum(dim=(2, 3)) / union.clamp(min=1)
    return torch.where(union > 0, overlap, 1.0).mean(dim=0)
