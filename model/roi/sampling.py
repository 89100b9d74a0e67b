"""Which boxes the second stage is trained on, and towards which objects."""

import torch
from torch import Tensor

from model.config import BoxHeadConfig
from model.matching import Matches, ignored, match, object_weights, positive_quota, sample
from model.structures import SampledRoIs, Targets


def _add_objects(boxes: Tensor, valid: Tensor, targets: Targets, matches: Matches, objects: Tensor) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor
]:  # fmt: skip
    """Objects' own boxes after the candidates: (boxes, valid, overlap, object, is_object), all [B, P + G]."""
    batch, num_objects = targets.valid.shape
    own = torch.arange(num_objects, device=boxes.device).expand(batch, -1)
    return (
        torch.cat([boxes, targets.boxes], dim=1),
        torch.cat([valid, targets.valid], dim=1),
        torch.cat([matches.iou, torch.ones_like(targets.boxes[..., 0])], dim=1),
        torch.cat([objects, own], dim=1),
        torch.cat([torch.zeros_like(valid), torch.ones_like(targets.valid)], dim=1),
    )


def _matched(boxes: Tensor, targets: Targets, positive_iou: float, reassign_best: bool) -> tuple[Matches, Tensor]:
    matches = match(boxes, targets.boxes, targets.valid, positive_iou)
    objects = torch.where(matches.is_best, matches.best_of, matches.best) if reassign_best else matches.best
    return matches, objects


def _sampled(
    boxes: Tensor, valid: Tensor, positive: Tensor, objects: Tensor, is_object: Tensor, targets: Targets,
    background: int,
) -> SampledRoIs:  # fmt: skip
    labels = torch.where(positive, targets.labels.gather(1, objects), background)
    object_boxes = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
    weights = object_weights(targets, objects, positive)
    return SampledRoIs(boxes, labels, object_boxes, positive, valid, objects, is_object, weights)


@torch.no_grad()
def sample_rois(
    boxes: Tensor, valid: Tensor, targets: Targets, background: int, config: BoxHeadConfig, positive_iou: float,
    stream: int,
) -> SampledRoIs:  # fmt: skip
    """Draw RoIs from candidates and the objects' own boxes together; positives come first.

    Args:
        boxes: candidates [B, P, 4].
        valid: bool [B, P], which are real.
        targets: the objects.
        background: label of what is no object.
        config: how many are drawn and how they are matched.
        positive_iou: overlap from which a box is positive.
        stream: distinguishes the draws of one picture.
    """
    matches, objects = _matched(boxes, targets, positive_iou, config.reassign_best)
    free = ~ignored(boxes, targets).expand_as(valid)
    free = torch.cat([free, torch.ones_like(targets.valid)], dim=1)
    boxes, valid, iou, objects, is_object = _add_objects(boxes, valid, targets, matches, objects)
    positive = valid & (iou >= positive_iou)
    drawn = sample(positive, valid & ~positive & free, targets.seeds, config.samples, config.positive_share, stream)
    rois = boxes.gather(1, drawn.place[..., None].expand(-1, -1, 4))
    return _sampled(
        rois, drawn.valid, drawn.positive, objects.gather(1, drawn.place), is_object.gather(1, drawn.place), targets,
        background,
    )  # fmt: skip


@torch.no_grad()
def label_rois(
    boxes: Tensor, valid: Tensor, targets: Targets, background: int, positive_iou: float
) -> SampledRoIs:  # fmt: skip
    """All boxes [B, S, 4] of which `valid` [B, S] are real, matched again and not drawn anew (Detectron2's cascade)."""
    matches, objects = _matched(boxes, targets, positive_iou, reassign_best=False)
    positive = valid & (matches.iou >= positive_iou)
    valid = valid & (positive | ~ignored(boxes, targets))
    return _sampled(boxes, valid, positive, objects, torch.zeros_like(valid), targets, background)


def first_positives(sampled: SampledRoIs, config: BoxHeadConfig, available: int) -> SampledRoIs:
    """The slots that can hold positives: all that the mask and keypoint heads need. `available`: boxes drawn from."""
    quota = positive_quota(config.samples, config.positive_share, available)
    parts = [part[:, :quota] if part.ndim > 1 else part for part in sampled]
    return SampledRoIs(*parts)
