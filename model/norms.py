"""Normalisation layers, and convolutions that carry one."""

from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn

from model.config import Norm
from model.ops.conv import Conv2d, Geometry, conv2d

_GROUPS = 32


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants."""

    def __init__(self, channels: int, eps: float) -> None:
        """Start as the identity (up to eps)."""
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift x [B, C, H, W]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are constants while its affine parameters are trained (MMDetection)."""

    def train(self, mode: bool = True) -> "FixedBatchNorm":
        """Stay in evaluation mode, where nothing moves the statistics."""
        super().train(False)
        return self


class MaskedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the real entries of a padded batch, and over all training workers if `sync`.

    RoIs come padded to a fixed number; statistics over the padding would depend on how much of it there is.
    torch's SyncBatchNorm knows neither a mask nor a CPU.
    """

    def __init__(self, channels: int, eps: float, sync: bool) -> None:
        """Start as torch's BatchNorm2d does."""
        super().__init__(channels, eps=eps)
        self.sync = sync

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise x [N, C, H, W]; `valid` bool [N] says which entries count (None: all)."""
        is_shared = self.sync and torch.distributed.is_available() and torch.distributed.is_initialized()
        if not self.training or (valid is None and not is_shared):
            return super().forward(x)
        wide = x.float()
        weight = torch.ones_like(wide[:, :1, :1, :1]) if valid is None else valid.to(wide.dtype)[:, None, None, None]
        count = weight.sum() * (x.shape[2] * x.shape[3])
        sums = torch.cat([(wide * weight).sum((0, 2, 3)), count[None]])
        if is_shared:
            sums = _sum_over_workers(sums)
        count = sums[-1].clamp(min=1)
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        squares = (centred * centred * weight).sum((0, 2, 3))
        variance = (_sum_over_workers(squares) if is_shared else squares) / count
        self._track(mean.detach(), variance.detach(), sums[-1].detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        # A batch without real entries says nothing about the statistics.
        known = count > 0
        share = known * self.momentum
        self.num_batches_tracked.add_(known)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)


class _SumOverWorkers(torch.autograd.Function):
    """The sum of all workers' values; each worker's gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        torch.distributed.all_reduce(total)
        return total


def _sum_over_workers(values: Tensor) -> Tensor:
    return cast(Tensor, _SumOverWorkers.apply(values))


def build_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module | None:
    """The layer of that kind for maps of `channels`; None for no normalisation.

    Raises:
        ValueError: the channels do not divide into groups.
    """
    if norm is Norm.NONE:
        return None
    if norm is Norm.FROZEN:
        return FrozenBatchNorm(channels, eps)
    if norm is Norm.FIXED:
        return FixedBatchNorm(channels, eps=eps)
    if norm is Norm.GROUP:
        groups = min(_GROUPS, channels)
        if channels % groups:
            raise ValueError(f"group norm divides channels into {groups} groups, got {channels} channels: "
                             "choose a width that is a multiple of it")  # fmt: skip
        return nn.GroupNorm(groups, channels, eps=eps)
    return MaskedBatchNorm(channels, eps, sync=norm is Norm.SYNC)


def _as_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and shift [C] of a batch normalisation whose statistics stand still now; None of any other layer."""
    is_still = isinstance(norm, FrozenBatchNorm) or (isinstance(norm, nn.BatchNorm2d) and not norm.training)
    if not is_still:
        return None
    layer = cast(FrozenBatchNorm, norm)  # a BatchNorm2d has the same four tensors
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    return scale, layer.bias - layer.running_mean * scale


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Convolve x [N, C, H, W], without bias, and normalise.

    In training, constant statistics make the normalisation a factor a channel, which goes into the weights (and the
    gradient through it): the map is written once instead of three times. At test time the operations keep the order of
    the frameworks that detections are compared with.
    """
    affine = _as_affine(norm) if type(conv) is Conv2d and torch.is_grad_enabled() else None
    if affine is None:
        return cast(Tensor, norm(conv(x)))
    scale, shift = affine
    weight = conv.weight * scale[:, None, None, None]
    geometry = cast(Geometry, (conv.stride, conv.padding, conv.dilation))
    return conv2d(x, weight, shift, *geometry, conv.groups)


class ConvNorm(Conv2d):
    """A convolution that keeps the size, with a normalisation instead of its bias if one is asked for."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: Norm = Norm.NONE) -> None:
        """Take the widths, the odd side of the kernel and the kind of normalisation."""
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=norm is Norm.NONE)
        self.norm = build_norm(norm, outputs)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """The output for x [N, C, H, W]; of a padded batch, `valid` bool [N] says which entries are real."""
        out = super().forward(x)
        if self.norm is None:
            return out
        is_masked = isinstance(self.norm, MaskedBatchNorm)
        return cast(Tensor, self.norm(out, valid) if is_masked else self.norm(out))
