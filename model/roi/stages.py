"""What Cascade R-CNN and HTC share: three box heads, each on the boxes that the one before refined."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model import boxes as box_ops
from model.config import BoxHeadConfig, CascadeConfig, CascadeMerge
from model.heads.box import BoxDetections, BoxHead, own_deltas, select_detections
from model.structures import Proposals, SampledRoIs


class _ScaleGradient(torch.autograd.Function):
    """The input, with its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself; what flows back is multiplied by `factor`."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)


class Refined(NamedTuple):
    """Boxes [B, S, 4] for the next stage, of which valid [B, S] are real."""

    boxes: Tensor
    valid: Tensor


class BoxStages:
    """The box heads' arithmetic of a cascade; the modules stay with the cascade, this holds settings only."""

    def __init__(self, num_classes: int, box: BoxHeadConfig, cascade: CascadeConfig) -> None:
        """Take the number of foreground classes and the settings of the heads and of the cascade."""
        self.num_classes = num_classes
        self.box = box
        self.cascade = cascade

    def decode(self, stage: int, deltas: Tensor, logits: Tensor, rois: Tensor, sizes_hw: Tensor) -> Tensor:
        """Each RoI's box [B, S, 4] after the stage, by its best foreground class, clipped to the picture.

        Args:
            stage: 0, 1 or 2.
            deltas: [B * S, K or 1, 4].
            logits: [B * S, K + 1].
            rois: [B, S, 4].
            sizes_hw: int64 [B, 2].
        """
        chosen = own_deltas(deltas, logits[:, :-1].argmax(dim=1)).view(rois.shape)
        boxes = box_ops.decode(chosen, rois, self.cascade.delta_weights[stage], self.box.limit_shrink)
        return box_ops.clip(boxes, sizes_hw)

    @torch.no_grad()
    def refine(self, stage: int, deltas: Tensor, logits: Tensor, sampled: SampledRoIs, sizes_hw: Tensor) -> Refined:
        """The sampled RoIs after the stage, in training."""
        # A positive is moved by its true class, as MMDetection does; with class-agnostic deltas it is all one.
        classes = torch.arange(logits.shape[1], device=logits.device)
        is_true = (classes == sampled.labels.reshape(-1, 1)) & sampled.positive.reshape(-1, 1)
        boxes = self.decode(stage, deltas, torch.where(is_true, torch.inf, logits), sampled.rois, sizes_hw)
        if self.cascade.resample:
            # The next draw adds the objects again, so their copies leave here.
            return Refined(boxes, sampled.valid & ~sampled.is_object)
        size = boxes[..., 2:] - boxes[..., :2]
        return Refined(boxes, sampled.valid & (size > 0).all(dim=-1))

    def merged(self, logits: Sequence[Tensor]) -> Tensor:
        """Class probabilities [R, K + 1] from the stages' logits."""
        if self.cascade.merge is CascadeMerge.LOGITS:
            return (sum(logits, start=torch.zeros_like(logits[0])) / len(logits)).softmax(dim=1)
        probabilities = [stage.softmax(dim=1) for stage in logits]
        return sum(probabilities, start=torch.zeros_like(logits[0])) / len(logits)

    def detect(
        self, heads: nn.ModuleList, crops: Callable[[Tensor], Tensor], proposals: Proposals, sizes_hw: Tensor
    ) -> BoxDetections:
        """Run all stages at test time.

        Args:
            heads: the three box heads.
            crops: from boxes [B, P, 4] to the box heads' crops.
            proposals: where the first stage begins.
            sizes_hw: int64 [B, 2].
        """
        boxes, all_logits = proposals.boxes, []
        for stage, head in enumerate(heads):
            assert isinstance(head, BoxHead)
            logits, deltas = head(crops(boxes))
            all_logits.append(logits)
            if stage < len(heads) - 1:
                boxes = self.decode(stage, deltas, logits, boxes, sizes_hw)
        return select_detections(
            self.merged(all_logits), deltas, boxes, proposals.valid, sizes_hw, self.box, self.cascade.delta_weights[-1]
        )
