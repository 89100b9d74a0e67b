"""The keypoint head: a heat map of each keypoint for each RoI (Mask R-CNN, section 5)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import KeypointHeadConfig, KeypointScore
from model.ops.conv import Conv2d
from model.structures import SampledRoIs

_SMALL_PX = 4096
# A cubic's absolute weights sum to 1.375 at most (half way between two values), those of both axes to 1.375 ** 2: the
# positive ones make (1.890625 + 1) / 2, the negative ones (1.890625 - 1) / 2.
_OVERSHOOT = (1.375**2 - 1) / 2
_TOLERANCE = 1e-5


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

    The peak is that of the map resized to its box (bicubic, as all published frameworks do). Each detection has a shape
    of its own: for the detections kept, outside any compiled graph.
    """
    if not len(boxes):
        return logits.new_zeros((0, logits.shape[1], 3))
    return torch.stack([_decode_one(maps, box, score) for maps, box in zip(logits, boxes, strict=True)])


def _decode_one(maps: Tensor, box: Tensor, score: KeypointScore) -> Tensor:
    width, height = ((box[axis + 2] - box[axis]).clamp(min=1) for axis in range(2))
    columns, rows = math.ceil(float(width)), math.ceil(float(height))
    peak, place = peaks_of_resized(maps, (rows, columns))
    x = box[0] + (place % columns + 0.5) * (width / columns)
    y = box[1] + (place // columns + 0.5) * (height / rows)
    if score is KeypointScore.PROBABILITY:
        # Its share of the map before the resize, so that a large box has no smaller probabilities.
        peak = 1 / (maps - peak[:, None, None]).exp().sum(dim=(1, 2))
    return torch.stack([x, y, peak], dim=1)


def peaks_of_resized(maps: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Highest value [J] and its flat place [J] in maps [J, S, S] resized to a size, the first of equal ones.

    As of the whole resize, but only what is around the coarse peak is resized, where it can be shown that no pixel
    elsewhere is as high. Where that is too much of the map, or the second highest pixel is equal but for rounding, the
    map is resized whole.
    """
    side = maps.shape[-1]
    if size_hw[0] * size_hw[1] <= _SMALL_PX:
        return _whole_peaks(maps, size_hw)
    (cells_y, weights_y), (cells_x, weights_x) = (_cubic_weights(count, side, maps) for count in size_hw)
    bounds, best = _upper_bounds(maps), maps.flatten(1).argmax(dim=1).tolist()
    tolerance = (_TOLERANCE * maps.flatten(1).abs().amax(dim=1)).tolist()
    peaks, places, hard = [0.0] * len(maps), [0] * len(maps), []
    for joint, (values, coarse) in enumerate(zip(maps, best, strict=True)):
        y, x = divmod(coarse, side)
        around = (max(y - 1, 0), y + 1), (max(x - 1, 0), x + 1)
        # The best around the coarse peak is a lower bound of the highest pixel; only cells that may reach it count.
        least, _, _ = _best_inside(values, around, (cells_y, weights_y), (cells_x, weights_x))
        reach = (bounds[joint] >= least - tolerance[joint]).nonzero()
        (y1, x1), (y2, x2) = reach.amin(dim=0).tolist(), reach.amax(dim=0).tolist()
        if (y2 - y1 + 1) * (x2 - x1 + 1) * 2 > side * side:
            hard.append(joint)
            continue
        peaks[joint], second, place = _best_inside(
            values, ((y1, y2), (x1, x2)), (cells_y, weights_y), (cells_x, weights_x)
        )
        places[joint] = place
        if peaks[joint] - second <= tolerance[joint]:
            hard.append(joint)
    peak, place_of = maps.new_tensor(peaks), torch.tensor(places, device=maps.device)
    if hard:
        peak[hard], place_of[hard] = _whole_peaks(maps[hard], size_hw)
    return peak, place_of


def _whole_peaks(maps: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    resized = F.interpolate(maps[None], size=size_hw, mode="bicubic", align_corners=False)[0]
    peak, place = resized.flatten(1).max(dim=1)
    return peak, place


def _cubic_weights(count: int, side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """How `F.interpolate` makes `count` pixels of `side` values: the cell [count] of each, its weights [count, side].

    Cell 0 is before the first value, cell k between the values k - 1 and k.
    """
    at = (torch.arange(count, dtype=torch.float32, device=like.device) + 0.5) * (side / count) - 0.5
    floor = at.floor()
    near = at - floor
    distances = torch.stack([near + 1, near, 1 - near, 2 - near], dim=1)
    a = -0.75  # torch's
    inner = ((a + 2) * distances - (a + 3)) * distances * distances + 1
    outer = ((a * distances - 5 * a) * distances + 8 * a) * distances - 4 * a
    values = torch.where(distances <= 1, inner, outer).to(like.dtype)
    places = (floor[:, None].long() + torch.arange(-1, 3, device=like.device)).clamp(0, side - 1)
    weights = like.new_zeros(count, side).scatter_add_(1, places, values)
    return floor.long() + 1, weights


def _upper_bounds(maps: Tensor) -> Tensor:
    """No pixel in a cell is higher [J, S + 1, S + 1]: of the 16 values around it, by the sums of a cubic's weights."""
    high = low = F.pad(maps[None], (2, 2, 2, 2), mode="replicate")[0]
    for axis in (1, 2):
        for step in (1, 2):  # four neighbours as two pairs, several times as fast as a pool
            size = high.shape[axis] - step
            high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, step, size))
            low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, step, size))
    return high + _OVERSHOOT * (high - low)


def _best_inside(
    values: Tensor,
    cells: tuple[tuple[int, int], tuple[int, int]],
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
) -> tuple[float, float, int]:
    """Highest and second highest pixel of a range of cells, and the flat place of the highest in the whole map."""
    spans = []
    for (first, last), (of_pixel, _) in zip(cells, (rows, columns), strict=True):
        start, end = torch.searchsorted(of_pixel, torch.tensor([first, last + 1], device=values.device)).tolist()
        spans.append((start, end))
    (y1, y2), (x1, x2) = spans
    part = (rows[1][y1:y2] @ values @ columns[1][x1:x2].T).flatten()
    if not len(part):
        return -math.inf, -math.inf, 0
    top = part.topk(min(2, len(part)))
    y, x = divmod(int(top.indices[0]), x2 - x1)
    second = float(top.values[1]) if len(part) > 1 else -math.inf
    return float(top.values[0]), second, (y1 + y) * len(columns[0]) + x1 + x
