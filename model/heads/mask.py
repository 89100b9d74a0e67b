"""The mask head: an M x M mask of each class for each RoI (Mask R-CNN, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import MaskActivation, MaskHeadConfig, MaskKind, MaskTarget
from model.norms import ConvNorm
from model.ops.masks import mask_targets
from model.structures import PackedMasks, SampledRoIs


def num_outputs(num_classes: int, config: MaskHeadConfig) -> int:
    """Channels of the logits: one a class, one for all, or with a softmax one more for the background."""
    if config.class_agnostic:
        return 1
    return num_classes + (config.activation is MaskActivation.SOFTMAX)


class MaskHead(nn.Module):
    """Convolutions, a 2 x 2 deconvolution and one logit a class and cell."""

    def __init__(self, in_channels: int, num_classes: int, config: MaskHeadConfig, takes_flow: bool = False) -> None:
        """Take the width of a RoI crop, the number of foreground classes, and whether another head's features enter."""
        super().__init__()
        widths = [in_channels] + [config.channels] * config.num_convs
        self.convs = nn.ModuleList(ConvNorm(widths[i], widths[i + 1], 3, config.norm) for i in range(config.num_convs))
        self.deconv = nn.ConvTranspose2d(widths[-1], config.channels, 2, stride=2)
        self.logits = nn.Conv2d(config.channels, num_outputs(num_classes, config), 1)
        self.flow = nn.Conv2d(config.channels, in_channels, 1) if takes_flow else None
        for layer in [*self.convs, self.deconv, self.logits, *([self.flow] if self.flow is not None else [])]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def features(self, crops: Tensor, valid: Tensor | None = None, flow: Tensor | None = None) -> Tensor:
        """What the convolutions make of crops [R, C, s, s]: [R, channels, s, s].

        Args:
            crops: RoI crops.
            valid: bool [R], which RoIs are real, for batch statistics; None: all.
            flow: the features of the head before this one in a chain (HTC); None without.
        """
        x = crops
        if flow is not None:
            assert self.flow is not None, "built without flow"
            x = x + F.relu(self.flow(flow))
        for conv in self.convs:
            x = F.relu(conv(x, valid), inplace=True)
        return x

    def upsample(self, features: Tensor) -> Tensor:
        """Mask logits [R, K, 2 s, 2 s] of features [R, channels, s, s]."""
        rois, width, side, _ = features.shape
        # The deconvolution's windows do not overlap, so it is one matrix product, and what follows is by cell alone.
        # Cells are put in their places last, where they have fewest channels.
        kernel, bias = self.deconv.weight, self.deconv.bias
        assert bias is not None
        outputs = kernel.shape[1]
        cells = F.linear(
            features.permute(0, 2, 3, 1), kernel.permute(2, 3, 1, 0).reshape(4 * outputs, width), bias.repeat(4)
        )
        cells = F.relu(cells, inplace=True).view(rois, side, side, 2, 2, outputs)
        logits = F.linear(cells, self.logits.weight.flatten(1), self.logits.bias)
        return logits.permute(0, 5, 1, 3, 2, 4).reshape(rois, -1, 2 * side, 2 * side)

    def forward(self, crops: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mask logits [R, K, 2 s, 2 s] of RoI crops [R, C, s, s]; `valid` as in `features`."""
        return self.upsample(self.features(crops, valid))


class MaskPerceptron(nn.Module):
    """Fully connected layers instead of convolutions (table 2e of the paper)."""

    def __init__(self, in_channels: int, roi_size: int, num_classes: int, config: MaskHeadConfig) -> None:
        """Take the width and side of a RoI crop and the number of foreground classes."""
        super().__init__()
        self.side = 2 * roi_size
        self.outputs = num_outputs(num_classes, config)
        inputs = in_channels * roi_size * roi_size
        width = config.hidden_channels
        layers = [nn.Linear(width if i else inputs, width) for i in range(config.hidden_layers)]
        self.fcs = nn.ModuleList(layers)
        self.logits = nn.Linear(config.hidden_channels, self.outputs * self.side * self.side)
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.normal_(self.logits.weight, std=0.001)
        for layer in (*layers, self.logits):
            nn.init.zeros_(layer.bias)

    def forward(self, crops: Tensor, valid: Tensor | None = None) -> Tensor:
        """Mask logits [R, K, 2 s, 2 s] of RoI crops [R, C, s, s]; padding does not matter without batch statistics."""
        x = crops.flatten(start_dim=1)
        for layer in self.fcs:
            x = F.relu(layer(x), inplace=True)
        out: Tensor = self.logits(x)
        return out.view(crops.shape[0], self.outputs, self.side, self.side)


def build_mask_head(in_channels: int, roi_size: int, num_classes: int, config: MaskHeadConfig) -> nn.Module:
    """The head of the configured kind."""
    if config.kind is MaskKind.MLP:
        return MaskPerceptron(in_channels, roi_size, num_classes, config)
    return MaskHead(in_channels, num_classes, config)


def _own_channel(logits: Tensor, labels: Tensor) -> Tensor:
    side = logits.shape[-1]
    index = labels.clamp(max=logits.shape[1] - 1)[:, None, None, None].expand(-1, 1, side, side)
    return logits.gather(1, index).squeeze(1)


def mask_probabilities(logits: Tensor, labels: Tensor, config: MaskHeadConfig) -> Tensor:
    """Probability [R, M, M], float32, that a cell belongs to an object of the RoI's class.

    Args:
        logits: [R, K, M, M].
        labels: int64 [R].
        config: the head's settings.
    """
    if config.activation is MaskActivation.SOFTMAX:
        return _own_channel(logits.float().softmax(dim=1), labels)
    return _own_channel(logits, labels).float().sigmoid()


def mask_loss(logits: Tensor, targets: SampledRoIs, masks: PackedMasks, config: MaskHeadConfig) -> Tensor:
    """Mean cross entropy over the cells of the positive RoIs' masks, binary or over classes; 0 without positives.

    Args:
        logits: [B * R, K, M, M].
        targets: the sampled RoIs [B, R].
        masks: ground-truth masks of the batch.
        config: the head's settings.
    """
    side = logits.shape[-1]
    batch, num_objects = masks.offsets.shape
    first_of_picture = torch.arange(batch, device=logits.device)[:, None] * num_objects
    crop_index = (targets.objects + first_of_picture).flatten()
    # An object without a known mask teaches the mask head nothing; an empty mask would teach it wrongly.
    used = targets.positive.flatten() & (masks.offsets.flatten()[crop_index] >= 0)
    crop_index = torch.where(used, crop_index, -1)
    soft = config.target is MaskTarget.SOFT
    wanted = mask_targets(
        masks.data,
        masks.offsets.flatten().clamp(min=0),
        masks.extents.flatten(0, 1),
        targets.rois.reshape(-1, 4),
        crop_index,
        side,
        aligned=not soft,
        binarise=not soft,
    )
    labels = targets.labels.flatten()
    if config.activation is MaskActivation.SOFTMAX:
        background = logits.shape[1] - 1
        classes = torch.where(wanted >= 0.5, labels.clamp(max=background)[:, None, None], background)
        # As a list of cells: on maps the loss has no deterministic form on a GPU.
        cells = logits.float().permute(0, 2, 3, 1).flatten(0, 2)
        loss = F.cross_entropy(cells, classes.flatten(), reduction="none").view(classes.shape)
    else:
        own = _own_channel(logits, labels).float()
        loss = F.binary_cross_entropy_with_logits(own, wanted, reduction="none")
    weight = targets.weights.expand(targets.positive.shape).reshape(-1, 1, 1)
    loss = torch.where(used[:, None, None], loss * weight, loss.new_zeros(()))
    return loss.sum() / (used.sum().clamp(min=1) * side * side)
