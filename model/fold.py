"""Normalisations whose statistics are constants, worked into the convolutions before them: for inference alone."""

import torch
from torch import nn

from model.backbones.blocks import Block, DeformableConv, NonLocalBlock, Shortcut
from model.backbones.resnet import Stem
from model.norms import ConvNorm, FrozenBatchNorm


def fold_norms(module: nn.Module) -> None:
    """Fold batch normalisations of ResNets, pyramids and heads into their convolutions, in place.

    What the module computes in evaluation mode is the same up to rounding. It cannot be trained or saved any more.
    Group norms, deformable convolutions and foreign backbones are left as they are.

    Raises:
        ValueError: the module is in training mode, where batch statistics move.
    """
    if module.training:
        raise ValueError("norms are folded for inference alone and the module is in training mode: call eval() first")
    for part in [*module.modules()]:
        if isinstance(part, Block):
            for number in range(1, part.num_convs + 1):
                _fold_named(part, f"conv{number}", f"norm{number}")
        elif isinstance(part, Stem | Shortcut):
            _fold_named(part, "conv", "norm")
        elif isinstance(part, NonLocalBlock):
            _fold_named(part, "out", "norm")
        elif isinstance(part, ConvNorm) and _fold(part, part.norm):
            part.norm = None


def _fold_named(part: nn.Module, conv: str, norm: str) -> None:
    if _fold(getattr(part, conv), getattr(part, norm)):
        setattr(part, norm, nn.Identity())


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module | None) -> bool:
    """Scale the weights and shift the bias; False where that is not possible."""
    if not isinstance(norm, FrozenBatchNorm | nn.BatchNorm2d) or isinstance(conv, DeformableConv):
        return False
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    # In float64: the folded weights are rounded once.
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    bias = norm.bias.double() - mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    conv.weight.copy_((conv.weight.double() * scale[:, None, None, None]).to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    return True
