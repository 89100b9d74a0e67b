"""Hybrid Task Cascade (Chen et al. 2019): masks interleaved with the boxes, mask features handed on, semantics."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import MaskHeadConfig
from model.heads.box import BoxDetections, box_losses
from model.heads.mask import MaskHead, mask_loss, mask_probabilities
from model.heads.semantic import SemanticHead
from model.pooler import PyramidPooler
from model.roi.sampling import first_positives, sample_rois
from model.roi.stages import BoxStages, Refined
from model.structures import Detections, Proposals, SampledRoIs, Targets

_SAMPLE_STREAM = 2  # of the first stage's boxes, then of its masks; the other stages follow


class _Maps(NamedTuple):
    """The pyramid's levels and the semantic branch's embedding, where there is one."""

    levels: list[Tensor]
    embedding: Tensor | None


class HybridTaskCascade(nn.Module):
    """Three pairs of box and mask heads, and a semantic branch whose features both see."""

    def __init__(
        self,
        pooler: PyramidPooler,
        semantic_pooler: PyramidPooler,
        box_heads: nn.ModuleList,
        mask_heads: nn.ModuleList,
        semantic: SemanticHead | None,
        stages: BoxStages,
        mask_config: MaskHeadConfig,
    ) -> None:
        """Take the built parts and their settings; `semantic_pooler` looks at the semantic branch's one level."""
        super().__init__()
        self.pooler = pooler
        self.semantic_pooler = semantic_pooler
        self.box_heads = box_heads
        self.mask_heads = mask_heads
        self.semantic = semantic
        self.stages = stages
        self.mask_config = mask_config

    def losses(
        self, features: Sequence[Tensor], proposals: Proposals, targets: Targets, sizes_hw: Tensor
    ) -> dict[str, Tensor]:
        """The losses of all stages and of the semantic branch; pictures of sizes_hw [B, 2]."""
        losses: dict[str, Tensor] = {}
        maps = _Maps(list(features), None)
        if self.semantic is not None:
            if targets.semantic is None:
                raise ValueError("the detector has a semantic branch, the targets have no semantic map: train it on a "
                                 "data set with one, or set semantic.enabled=false")  # fmt: skip
            logits, embedding = self.semantic(features)
            losses["semantic"] = self.semantic.loss(logits, targets.semantic)
            maps = _Maps(list(features), embedding)
        candidates = Refined(proposals.boxes, proposals.valid)
        for stage, weight in enumerate(self.stages.cascade.loss_weights):
            sampled, _ = self._sample(2 * stage, candidates, targets)
            logits, deltas = self.box_heads[stage](self._box_crops(maps, sampled.rois), sampled.valid.flatten())
            found = box_losses(logits, deltas, sampled, self.stages.box, self.stages.cascade.delta_weights[stage])
            losses.update({f"stage{stage}_{name}": value * weight for name, value in found.items()})
            candidates = self.stages.refine(stage, deltas, logits, sampled, sizes_hw)
            # The mask head trains on the refined boxes, drawn again at the same overlap.
            sampled, available = self._sample(2 * stage + 1, candidates, targets)
            positives = first_positives(sampled, self.stages.box, available)
            mask_logits = self._mask_logits(maps, positives.rois, positives.positive.flatten(), stage)[-1]
            loss = mask_loss(mask_logits, positives, targets.masks, self.mask_config)
            losses[f"stage{stage}_mask"] = loss * weight
        return losses

    def _sample(self, draw: int, candidates: Refined, targets: Targets) -> tuple[SampledRoIs, int]:
        background = self.stages.num_classes
        sampled = sample_rois(
            candidates.boxes, candidates.valid, targets, background, self.stages.box,
            self.stages.cascade.ious[draw // 2], _SAMPLE_STREAM + draw,
        )  # fmt: skip
        return sampled, candidates.boxes.shape[1] + targets.boxes.shape[1]

    def _box_crops(self, maps: _Maps, boxes: Tensor) -> Tensor:
        size = self.pooler.config
        crops: Tensor = self.pooler(maps.levels, boxes, size.box_size)
        if maps.embedding is None:
            return crops
        semantic = self.semantic_pooler([maps.embedding], boxes, size.mask_size)
        window, rest = divmod(size.mask_size, size.box_size)
        if rest:
            return crops + F.adaptive_avg_pool2d(semantic, size.box_size)
        # The same means; the gradient of the adaptive form is not deterministic on a GPU.
        return crops + F.avg_pool2d(semantic, window)

    def _mask_logits(self, maps: _Maps, boxes: Tensor, valid: Tensor | None, last: int) -> list[Tensor]:
        """Mask logits of the heads 0..last, each handed the features of the one before."""
        crops = self.pooler(maps.levels, boxes, self.pooler.config.mask_size)
        if maps.embedding is not None:
            crops = crops + self.semantic_pooler([maps.embedding], boxes, self.pooler.config.mask_size)
        flow: Tensor | None = None
        logits = []
        for stage in range(last + 1):
            head = self.mask_heads[stage]
            assert isinstance(head, MaskHead)
            flow = head.features(crops, valid, flow)
            # In training only the last head's output is used; at test time every head's.
            logits.append(flow if self.training and stage < last else head.upsample(flow))
        return logits

    def prepare(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's levels, and after them the semantic embedding if there is one: computed once for both steps."""
        return [*features] if self.semantic is None else [*features, self.semantic(features)[1]]

    def _maps(self, features: Sequence[Tensor]) -> _Maps:
        return _Maps(list(features), None) if self.semantic is None else _Maps(list(features[:-1]), features[-1])

    def detect(self, features: Sequence[Tensor], proposals: Proposals, sizes_hw: Tensor) -> BoxDetections:
        """Detections without masks, [B, D], of proposals [B, P] on pictures of sizes_hw [B, 2], of `prepare`."""
        return self.stages.detect(self.box_heads, lambda boxes: self.crops(features, boxes), proposals, sizes_hw)

    def crops(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The box heads' crops of boxes [B, R, 4], of `prepare`."""
        return self._box_crops(self._maps(features), boxes)

    def mask_logits(self, features: Sequence[Tensor], boxes: Tensor) -> list[Tensor]:
        """Logits [B * R, K, M, M] of each mask head on boxes [B, R, 4], of `prepare`."""
        return self._mask_logits(self._maps(features), boxes, None, len(self.mask_heads) - 1)

    def complete(self, features: Sequence[Tensor], found: BoxDetections) -> Detections:
        """Add to detections [B, D] the mean of the three heads' probabilities of their own class; features as prepared.

        MMDetection 3.3 takes the last head alone by mistake; the published figures are of the mean.
        """
        labels = found.labels.flatten()
        logits = self.mask_logits(features, found.boxes)
        masks = [mask_probabilities(stage, labels, self.mask_config) for stage in logits]
        return Detections(*found, torch.stack(masks).mean(dim=0).view(*found.valid.shape, *masks[0].shape[1:]))
