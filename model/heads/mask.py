"""The mask head: an M x M mask of each class for each RoI (Mask R-CNN, section 3)."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import MaskHeadConfig, MaskTarget
from model.ops.masks import mask_targets
from model.structures import PackedMasks


class MaskHead(nn.Module):
    """Convolutions, a 2 x 2 deconvolution and one logit a class and cell."""

    def __init__(self, in_channels: int, num_classes: int, config: MaskHeadConfig) -> None:
        """Take the width of a RoI crop and the number of foreground classes."""
        super().__init__()
        widths = [in_channels] + [config.channels] * config.num_convs
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.deconv = nn.ConvTranspose2d(widths[-1], config.channels, 2, stride=2)
        self.logits = nn.Conv2d(config.channels, num_classes, 1)
        for layer in [*self.convs, self.deconv, self.logits]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, crops: Tensor) -> Tensor:
        """Mask logits [R, K, 2 s, 2 s] of RoI crops [R, C, s, s]."""
        x = crops
        for conv in self.convs:
            x = F.relu(conv(x))
        out: Tensor = self.logits(F.relu(self.deconv(x)))
        return out


def select_class(logits: Tensor, labels: Tensor) -> Tensor:
    """The mask logits [R, M, M], float32, of each RoI's own class from logits [R, K, M, M] and labels [R]."""
    side = logits.shape[-1]
    index = labels[:, None, None, None].expand(-1, 1, side, side)
    return logits.gather(1, index).squeeze(1).float()


def mask_loss(
    logits: Tensor, rois: Tensor, objects: Tensor, labels: Tensor, positive: Tensor, masks: PackedMasks,
    config: MaskHeadConfig,
) -> Tensor:  # fmt: skip
    """Mean binary cross entropy over the cells of the positive RoIs' own-class masks; 0 without positives.

    Args:
        logits: [B * R, K, M, M].
        rois: [B, R, 4].
        objects: int64 [B, R], index of the matched object in its picture.
        labels: int64 [B, R], any value where not positive.
        positive: bool [B, R].
        masks: ground-truth masks of the batch.
        config: the head's settings.
    """
    side = logits.shape[-1]
    batch, num_objects = masks.offsets.shape
    first_of_picture = torch.arange(batch, device=rois.device)[:, None] * num_objects
    crop_index = (objects + first_of_picture).flatten()
    # An object without a known mask teaches the mask head nothing; an empty mask would teach it wrongly.
    used = positive.flatten() & (masks.offsets.flatten()[crop_index] >= 0)
    crop_index = torch.where(used, crop_index, -1)
    soft = config.target is MaskTarget.SOFT
    wanted = mask_targets(
        masks.data,
        masks.offsets.flatten().clamp(min=0),
        masks.extents.flatten(0, 1),
        rois.reshape(-1, 4),
        crop_index,
        side,
        aligned=not soft,
        binarise=not soft,
    )
    own = select_class(logits, labels.flatten().clamp(max=logits.shape[1] - 1))
    loss = F.binary_cross_entropy_with_logits(own, wanted, reduction="none")
    loss = torch.where(used[:, None, None], loss, loss.new_zeros(()))
    return loss.sum() / (used.sum().clamp(min=1) * side * side)
