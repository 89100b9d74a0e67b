"""The keypoint head: a heat map of each keypoint for each RoI (Mask R-CNN, section 5)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import KeypointHeadConfig, KeypointScore
from model.ops.conv import Conv2d
from model.structures import SampledRoIs


class KeypointHead(nn.Module):
    """Convolutions, a 4 x 4 deconvolution to one channel a keypoint, and bilinear upsampling by two."""

    def __init__(self, in_channels: int, config: KeypointHeadConfig) -> None:
        """Take the width of a RoI crop."""
        super().__init__()
        widths = [in_channels] + [config.channels] * config.num_convs
        self.convs = nn.ModuleList(Conv2d(widths[i], widths[i + 1], 3, padding=1) for i in range(config.num_convs))
        self.deconv = nn.ConvTranspose2d(widths[-1], config.num_keypoints, 4, stride=2, padding=1)
        for layer in [*self.convs, self.deconv]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, crops: Tensor) -> Tensor:
        """Heat-map logits [R, J, 4 s, 4 s], float32, of RoI crops [R, C, s, s]."""
        x = crops
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return F.interpolate(self.deconv(x).float(), scale_factor=2.0, mode="bilinear", align_corners=False)


def keypoint_loss(logits: Tensor, targets: SampledRoIs, keypoints: Tensor) -> Tensor:
    """Cross entropy over the cells of a heat map, mean over the visible keypoints inside positive RoIs; 0 without.

    Args:
        logits: [B * R, J, S, S].
        targets: the sampled RoIs [B, R].
        keypoints: float32 [B, G, J, 3], (x, y, visibility) in network-input pixels.
    """
    side = logits.shape[-1]
    index = targets.objects[..., None, None].expand(-1, -1, *keypoints.shape[2:])
    own = keypoints.gather(1, index).flatten(0, 1)
    rois = targets.rois.reshape(-1, 1, 4)
    cells = []
    for axis in range(2):
        low, high, value = rois[..., axis], rois[..., axis + 2], own[..., axis]
        cell = ((value - low) * (side / (high - low).clamp(min=1e-6))).floor()
        # A keypoint exactly on the far edge belongs to the last cell.
        cells.append(torch.where(value == high, side - 1.0, cell))
    x, y = cells
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    used = inside & (own[..., 2] > 0) & targets.positive.reshape(-1, 1)
    cell = torch.where(used, y * side + x, 0.0).to(torch.int64)
    loss = F.cross_entropy(logits.flatten(0, 1).flatten(1), cell.flatten(), reduction="none").view(used.shape)
    weight = targets.weights.expand(targets.positive.shape).reshape(-1, 1)
    return torch.where(used, loss * weight, loss.new_zeros(())).sum() / used.sum().clamp(min=1)


def decode_keypoints(logits: Tensor, boxes: Tensor, score: KeypointScore) -> Tensor:
    """Keypoints [D, J, 3] (x, y, score) of heat maps [D, J, S, S] on boxes [D, 4], in the boxes' pixels.

    Each map is resized to its box (bicubic, as all published frameworks do) before the peak is taken, so each
    detection has a shape of its own: for the detections kept, outside any compiled graph.
    """
    if not len(boxes):
        return logits.new_zeros((0, logits.shape[1], 3))
    return torch.stack([_decode_one(maps, box, score) for maps, box in zip(logits, boxes, strict=True)])


def _decode_one(maps: Tensor, box: Tensor, score: KeypointScore) -> Tensor:
    width, height = ((box[axis + 2] - box[axis]).clamp(min=1) for axis in range(2))
    columns, rows = math.ceil(float(width)), math.ceil(float(height))
    resized = F.interpolate(maps[None], size=(rows, columns), mode="bicubic", align_corners=False)[0]
    peak, place = resized.flatten(1).max(dim=1)
    x = box[0] + (place % columns + 0.5) * (width / columns)
    y = box[1] + (place // columns + 0.5) * (height / rows)
    if score is KeypointScore.PROBABILITY:
        # Its share of the map before the resize, so that a large box has no smaller probabilities.
        peak = 1 / (maps - peak[:, None, None]).exp().sum(dim=(1, 2))
    return torch.stack([x, y, peak], dim=1)
