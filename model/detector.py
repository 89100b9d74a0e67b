"""The detector: normalise, features, proposals, heads. Fixed shapes from the batch to the loss."""

import torch
from torch import Tensor, nn

from model.backbones.fpn import FeaturePyramid
from model.backbones.single import SingleMap
from model.config import ChannelOrder, DetectorConfig, RoIKind
from model.roi.cascade import CascadeRoI
from model.roi.htc import HybridTaskCascade
from model.roi.standard import StandardRoI
from model.rpn import RegionProposals
from model.structures import Detections, Images, Proposals, Targets


def loss_names(config: DetectorConfig) -> tuple[str, ...]:
    """The losses of a training step of such a detector, in order."""
    rpn = () if config.separate_rpn else ("rpn_cls", "rpn_box")
    if config.roi is RoIKind.STANDARD:
        heads = (("mask", config.mask.enabled), ("keypoint", config.keypoint.enabled))
        return (*rpn, "cls", "box", *(name for name, enabled in heads if enabled))
    semantic = ("semantic",) if config.semantic.enabled else ()
    names = []
    for stage in range(len(config.cascade.ious)):
        has_mask = config.mask.enabled and (config.cascade.mask_each_stage or stage == 0)
        parts = ("cls", "box", "mask") if has_mask else ("cls", "box")
        names += [f"stage{stage}_{part}" for part in parts]
    return (*rpn, *semantic, *names)


RoIStage = StandardRoI | CascadeRoI | HybridTaskCascade


def normalise(images: Images, mean: Tensor, std: Tensor, order: ChannelOrder) -> Tensor:
    """Network input [B, 3, H, W] float32, channels last: mean and std [3, 1, 1] applied, padding set to zero."""
    pixels = images.pixels.to(torch.float32)
    if order is ChannelOrder.BGR:
        pixels = pixels.flip(1)
    height, width = pixels.shape[-2:]
    inside_y = torch.arange(height, device=pixels.device) < images.sizes_hw[:, 0, None]
    inside_x = torch.arange(width, device=pixels.device) < images.sizes_hw[:, 1, None]
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    values = torch.where(inside, (pixels - mean) / std, 0.0)
    return values.contiguous(memory_format=torch.channels_last)


class Detector(nn.Module):
    """Mask R-CNN of built parts.

    Attributes:
        config: the configuration it was built from; saved beside its weights.
    """

    def __init__(
        self,
        config: DetectorConfig,
        pyramid: FeaturePyramid | SingleMap,
        rpn: RegionProposals,
        roi: RoIStage,
        rpn_pyramid: FeaturePyramid | SingleMap | None = None,
    ) -> None:
        """Take the built parts; `config` is kept for the record and for the picture pipeline.

        With an `rpn_pyramid` the proposals come from its maps, and neither it nor the `rpn` is trained.
        """
        super().__init__()
        self.config = config
        self.pyramid = pyramid
        self.rpn = rpn
        self.roi = roi
        self.rpn_pyramid = rpn_pyramid
        if rpn_pyramid is not None:
            rpn_pyramid.requires_grad_(False)
            rpn.requires_grad_(False)
        # On the device, so that a step never waits for a copy; not in checkpoints, since the config fixes them.
        self.register_buffer("mean", torch.tensor(config.picture.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.picture.std)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def features(self, images: Images) -> list[Tensor]:
        """The feature maps of a batch, finest first: P2..P6 of a pyramid, or the one map."""
        levels: list[Tensor] = self.pyramid(normalise(images, self.mean, self.std, self.config.picture.channel_order))
        return levels

    def train(self, mode: bool = True) -> "Detector":
        """Set training mode; maps that serve the proposals alone stay in evaluation mode."""
        super().train(mode)
        if self.rpn_pyramid is not None:
            self.rpn_pyramid.eval()
        return self

    @torch.no_grad()
    def _separate_proposals(self, images: Images) -> Proposals:
        assert self.rpn_pyramid is not None
        values = normalise(images, self.mean, self.std, self.config.picture.channel_order)
        return self.rpn.proposals(self.rpn(self.rpn_pyramid(values)), images.sizes_hw)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """The losses of a training step, scalars named as `loss_names` says; their sum is the objective."""
        features = self.features(images)
        losses: dict[str, Tensor] = {}
        if self.rpn_pyramid is not None:
            proposals = self._separate_proposals(images)
        else:
            output = self.rpn(features)
            losses = self.rpn.losses(output, targets, images.sizes_hw)
            proposals = self.rpn.proposals(output, images.sizes_hw)
        losses.update(self.roi.losses(features, proposals, targets, images.sizes_hw))
        return losses

    @torch.no_grad()
    def predict(self, images: Images) -> Detections:
        """Detections of a batch with mask probabilities and heat maps, in network-input pixels."""
        features = self.features(images)
        if self.rpn_pyramid is not None:
            proposals = self._separate_proposals(images)
        else:
            proposals = self.rpn.proposals(self.rpn(features), images.sizes_hw)
        features = self.roi.prepare(features)
        return self.roi.complete(features, self.roi.detect(features, proposals, images.sizes_hw))

    def forward(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """The training step's losses: what a data-parallel wrapper calls."""
        return self.losses(images, targets)
