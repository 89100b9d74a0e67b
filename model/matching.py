"""Which box is trained towards which object, and which boxes enter the loss.

Everything keeps its shape: N boxes in, N answers out, S samples out with a mask. Sampling uses keys computed from a
seed a picture rather than a random generator, so a picture's sample is the same eager or compiled, on CPU or GPU,
and on however many workers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from model.boxes import covered_by, pairwise_iou
from model.structures import Targets

_MASK_32 = 0xFFFFFFFF
_PART = 2048
_IGNORED_SHARE = 0.5  # of a box inside an ignored region, from which it is not background


class Matches(NamedTuple):
    """The best object of each box.

    Attributes:
        iou: float [B, N], overlap with the best object; -1 where a picture has no object.
        best: int64 [B, N], the best object; 0 where there is none.
        is_best: bool [B, N], no box overlaps some object more than this one does.
        best_of: int64 [B, N], the last object for which `is_best` holds, or -1.
    """

    iou: Tensor
    best: Tensor
    is_best: Tensor
    best_of: Tensor


def match(
    boxes: Tensor, objects: Tensor, valid: Tensor, min_best_iou: float = 0.0, taking_part: Tensor | None = None
) -> Matches:
    """Match boxes [N, 4] or [B, N, 4] to objects [B, G, 4] of which `valid` [B, G] are real.

    Args:
        boxes: anchors or proposals.
        objects: ground-truth boxes, padded.
        valid: which objects are real.
        min_best_iou: an object whose best overlap is smaller has no best box; 0 overlap never counts.
        taking_part: bool [B, N], boxes that can be an object's best; None for all.
    """

    def overlaps(part: slice) -> Tensor:
        iou = torch.where(valid[:, None, :], pairwise_iou(boxes[..., part, :], objects), -1.0)
        return iou if taking_part is None else torch.where(taking_part[:, part, None], iou, -1.0)

    parts = _parts(boxes)
    kept = overlaps(parts[0]) if len(parts) == 1 else None
    found = []
    for part in parts:
        iou = overlaps(part) if kept is None else kept
        found.append((*iou.max(dim=2), iou.amax(dim=1, keepdim=True)))
    object_best = torch.stack([of for _, _, of in found]).amax(dim=0)
    eligible = (object_best > 0) & (object_best >= min_best_iou)
    numbers = torch.arange(objects.shape[1], device=objects.device)
    best_of = []
    for part in parts:
        tied = ((overlaps(part) if kept is None else kept) == object_best) & eligible
        best_of.append(torch.where(tied, numbers, -1).amax(dim=2))
    of = torch.cat(best_of, dim=1)
    return Matches(torch.cat([best for best, _, _ in found], 1), torch.cat([at for _, at, _ in found], 1), of >= 0, of)


def _parts(boxes: Tensor) -> list[slice]:
    """All boxes [..., N, 4], on a CPU in parts whose overlaps with the objects stay in its cache."""
    count = boxes.shape[-2]
    if boxes.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, count)]
    return [slice(first, first + _PART) for first in range(0, max(count, 1), _PART)]


def ignored(boxes: Tensor, targets: Targets) -> Tensor:
    """Which boxes [N, 4] or [B, N, 4] lie in a region that is neither object nor background: bool [B, N]."""
    if targets.ignore is None:
        return torch.zeros((), dtype=torch.bool, device=boxes.device)
    # A region of no extent covers nothing.
    regions = torch.where(targets.ignore[..., None], targets.boxes, torch.zeros_like(targets.boxes))
    return covered_by(boxes, regions) >= _IGNORED_SHARE


def object_weights(targets: Targets, objects: Tensor, positive: Tensor) -> Tensor:
    """Factor [B, S] of each sample's loss: its object's weight where it is positive, else 1."""
    if targets.weights is None:
        return torch.ones((), device=positive.device)
    return torch.where(positive, targets.weights.gather(1, objects), 1.0)


def random_keys(seeds: Tensor, count: int, stream: int) -> Tensor:
    """Distinct pseudo-random int64 keys >= 0 [B, count], a pure function of seed, position and stream.

    An integer hash (two rounds of multiply and xor-shift, after C. Wellons' low-bias search) fills the upper bits;
    the position fills the lower 24, so that no two keys of a row are equal and top-k has one answer.
    """
    if count >= 1 << 24:
        raise ValueError(f"a picture has {count} boxes to sample from, at most {(1 << 24) - 1} can be: resize it")
    position = torch.arange(count, device=seeds.device)
    seed = (seeds ^ (seeds >> 32)) & _MASK_32
    x = (seed[:, None] * 0x1E3779B1 + position * 0x45EBCA6B + stream * 0x42B2AE35) & _MASK_32
    for factor in (0x7FEB352D, 0x046CA68B):
        x = ((x ^ (x >> 16)) * factor) & _MASK_32
    return ((x ^ (x >> 16)) << 24) | position


class Sample(NamedTuple):
    """S boxes a picture: positives first, then negatives, then padding.

    Attributes:
        place: int64 [B, S], position among the boxes sampled from.
        positive: bool [B, S].
        valid: bool [B, S].
    """

    place: Tensor
    positive: Tensor
    valid: Tensor


def positive_quota(count: int, positive_share: float, available: int) -> int:
    """Positives a picture can have among `count` samples drawn from `available` boxes: the first slots of a Sample."""
    return max(1, min(int(count * positive_share), available))


def sample(positive: Tensor, negative: Tensor, seeds: Tensor, count: int, positive_share: float, stream: int) -> Sample:
    """Draw up to `count` boxes a picture, at most `positive_share` of them positive; negatives fill the rest.

    Args:
        positive: bool [B, N].
        negative: bool [B, N], disjoint from `positive`.
        seeds: int64 [B].
        count: samples a picture.
        positive_share: in 0..1.
        stream: distinguishes draws of one picture (anchors, proposals, cascade stages).
    """
    available = positive.shape[1]
    keys = random_keys(seeds, available, stream)
    quota = positive_quota(count, positive_share, available)
    count = min(count, available)
    positive_keys, positive_index = torch.where(positive, keys, -1).topk(quota, dim=1)
    negative_keys, negative_index = torch.where(negative, keys, -1).topk(count, dim=1)
    num_positive = (positive_keys >= 0).sum(dim=1, keepdim=True)
    slot = torch.arange(count, device=positive.device).expand(positive.shape[0], -1)
    is_positive = slot < num_positive
    from_negative = (slot - num_positive).clamp(min=0)
    index = torch.where(
        is_positive,
        positive_index.gather(1, slot.clamp(max=quota - 1)),
        negative_index.gather(1, from_negative),
    )
    is_negative = ~is_positive & (negative_keys.gather(1, from_negative) >= 0)
    return Sample(index, is_positive, is_positive | is_negative)
