"""Convolution that is fast on a CPU: 3 x 3 ones by Winograd's minimal filtering, 1 x 1 ones by a product of our own.

N maps, C channels in, K channels out.  All others, and all on a GPU and in 16 bits, are torch's convolution.
"""

import platform
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.ops import extension

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Stride, padding and dilation, each along y and x."""

_MIN_CHANNELS = 64
_MIN_CELLS, _MIN_ROWS = 512, 2048
"""Cells of all maps together, of 3 x 3 and 1 x 1 filters; below these bounds our ways save little or nothing."""

extension.load()

_HAS_FUSED = platform.machine() not in ("x86_64", "AMD64") or torch.ops.maskray.simd_variants() > 1


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv2d``, faster on a CPU.

    Large float32 maps on a CPU go through Winograd's F(4 x 4, 3 x 3) where the filters are 3 x 3 with stride, padding
    and dilation 1: a quarter of the multiplications, forward and backward, and results four times as far from the
    exact ones as those of torch (up to 1e-5 of the largest). Maps under 1 x 1 filters are one matrix product. Both are
    the same from run to run, with any number of threads, on every machine that has fused multiply-adds; the others
    (x86-64 before AVX2) leave it to torch.

    Args:
        x: [N, C, H, W].
        weight: [K, C / groups, h, w].
        bias: [K], or None.
        stride: Along y and x.
        padding: Along y and x, with zeros.
        dilation: Along y and x.
        groups: Of channels.

    Returns:
        [N, K, H', W'], channels last where one of our ways was taken.
    """
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    kernel = tuple(weight.shape[2:])
    if stride == dilation == (1, 1) and groups == 1 and _has_channels(x, weight):
        cells = x.shape[0] * x.shape[2] * x.shape[3]
        if kernel == (1, 1) and padding == (0, 0) and cells >= _MIN_ROWS:
            return cast(Tensor, torch.ops.maskray.pointwise_conv(x, weight, bias))
        if kernel == (3, 3) and padding == (1, 1) and cells >= _MIN_CELLS and weight.shape[0] >= _MIN_CHANNELS:
            return cast(Tensor, torch.ops.maskray.winograd_conv(x, weight, bias, False))
    if kernel == (3, 3) and torch.is_grad_enabled() and weight.requires_grad and x.dim() == 4:
        return cast(Tensor, _Conv2d.apply(x, weight, bias, stride, padding, dilation, groups))
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _has_channels(x: Tensor, weight: Tensor) -> bool:
    """Whether there are enough channels to earn back what it costs to prepare the filters."""
    return _HAS_FUSED and x.dim() == 4 and x.shape[1] == weight.shape[1] >= _MIN_CHANNELS


class _Conv2d(torch.autograd.Function):
    """torch's convolution, whose filters' gradient is not taken from channels-last maps.

    oneDNN without AVX-512 takes two to five times as long for it there as from contiguous copies, which cost little.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = (stride, padding, dilation, False, (0, 0), groups)
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]

        def gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> list[Tensor]:
            backward = torch.ops.aten.convolution_backward
            return cast("list[Tensor]", backward(grad, x, weight, [weight.shape[0]], *ctx.settings, wanted))

        of_x = gradients(grad, x, weight, [True, False, False])[0] if wants_x else None
        of_weight = of_bias = None
        if wants_weight:
            of_weight = gradients(grad.contiguous(), x.contiguous(), weight.contiguous(), [False, True, False])[1]
        if wants_bias:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None, None, None


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` by :func:`conv2d`; zero padding only."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        geometry = cast(Geometry, (self.stride, self.padding, self.dilation))
        return conv2d(input, weight, bias, *geometry, self.groups)


def _winograd_fake(x: Tensor, filters: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    shape = (x.shape[0], filters.shape[1 if transposed else 0], *x.shape[2:])
    return x.new_empty(shape).to(memory_format=torch.channels_last)


def _filter_grad_fake(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty((grad.shape[1], x.shape[1], 3, 3)).to(memory_format=torch.channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, filters, bias, transposed = inputs
    ctx.save_for_backward(x, filters)
    ctx.has_bias, ctx.transposed = bias is not None, transposed


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, filters = ctx.saved_tensors
    wants_x, wants_filters, wants_bias, _ = ctx.needs_input_grad
    of_x = torch.ops.maskray.winograd_conv(grad, filters, None, not ctx.transposed) if wants_x else None
    ends = (grad, x) if ctx.transposed else (x, grad)
    of_filters = torch.ops.maskray.winograd_filter_grad(*ends) if wants_filters else None
    return of_x, of_filters, grad.sum((0, 2, 3)) if ctx.has_bias and wants_bias else None, None


def _pointwise_fake(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], filters.shape[0], *x.shape[2:])).to(memory_format=torch.channels_last)


def _save_pointwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, filters, bias = inputs
    ctx.save_for_backward(x, filters)
    ctx.has_bias = bias is not None


def _differentiate_pointwise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, filters = ctx.saved_tensors
    wants_x, wants_filters, wants_bias = ctx.needs_input_grad
    of_x = torch.ops.maskray.pointwise_conv(grad, filters.transpose(0, 1), None) if wants_x else None
    of_filters = None
    if wants_filters:
        rows, seen = (m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in (grad, x))
        of_filters = (rows.t() @ seen)[:, :, None, None]
    return of_x, of_filters, grad.sum((0, 2, 3)) if ctx.has_bias and wants_bias else None


torch.library.register_autograd("maskray::pointwise_conv", _differentiate_pointwise, setup_context=_save_pointwise)
torch.library.register_fake("maskray::pointwise_conv", _pointwise_fake)
torch.library.register_autograd("maskray::winograd_conv", _differentiate, setup_context=_save)
torch.library.register_fake("maskray::winograd_conv", _winograd_fake)
torch.library.register_fake("maskray::winograd_filter_grad", _filter_grad_fake)
