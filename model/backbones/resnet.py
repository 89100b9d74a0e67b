"""ResNet (He et al. 2015) as a feature extractor: maps C2..C5 at strides 4, 8, 16 and 32."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import BackboneConfig, Norm, StrideIn

NormLayer = Callable[[int], nn.Module]

# Blocks of the four stages, and whether they are bottlenecks.
_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


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


def norm_layer(config: BackboneConfig) -> NormLayer:
    """The constructor of the configured normalisation, called with the number of channels."""
    layers: dict[Norm, NormLayer] = {
        Norm.FROZEN: lambda channels: FrozenBatchNorm(channels, config.norm_eps),
        Norm.BATCH: lambda channels: nn.BatchNorm2d(channels, eps=config.norm_eps),
        Norm.SYNC: lambda channels: nn.SyncBatchNorm(channels, eps=config.norm_eps),
        Norm.GROUP: lambda channels: nn.GroupNorm(min(32, channels), channels, eps=config.norm_eps),
    }
    return layers[config.norm]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class Shortcut(nn.Module):
    """1 x 1 projection where a block changes width or stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormLayer) -> None:
        """Build the convolution and its normalisation."""
        super().__init__()
        self.conv = _conv(inputs, outputs, 1, stride)
        self.norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Project x [B, C, H, W]."""
        out: Tensor = self.norm(self.conv(x))
        return out


class Block(nn.Module):
    """A residual block: a chain of convolutions beside a shortcut."""

    def __init__(self, layers: list[nn.Conv2d], shortcut: nn.Module, norm: NormLayer) -> None:
        """Take the convolutions in order; each is followed by a normalisation."""
        super().__init__()
        self.num_convs = len(layers)
        for i, conv in enumerate(layers, start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"norm{i}", norm(conv.out_channels))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to the block's width and stride."""
        out = x
        for i in range(1, self.num_convs + 1):
            out = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(out))
            if i < self.num_convs:
                out = F.relu(out)
        return F.relu(out + self.shortcut(x))


class Stem(nn.Module):
    """7 x 7 convolution and 3 x 3 max pool; stride 4 in all."""

    def __init__(self, channels: int, norm: NormLayer) -> None:
        """Build the convolution and its normalisation."""
        super().__init__()
        self.conv = _conv(3, channels, 7, 2)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [B, 3, H, W] to [B, channels, H / 4, W / 4]."""
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 3, stride=2, padding=1)


class ResNet(nn.Module):
    """Stem and four stages.

    Attributes:
        out_channels: widths of C2..C5.
        strides: strides of C2..C5.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, config: BackboneConfig) -> None:
        """Build and initialise (He et al., fan out); apply the configured freezing."""
        super().__init__()
        norm = norm_layer(config)
        blocks, bottleneck = _STAGES[config.depth]
        self.stem = Stem(config.stem_channels, norm)
        inputs = config.stem_channels
        stages: list[nn.Module] = []
        widths = []
        for i, count in enumerate(blocks):
            width = config.stem_channels << i
            outputs = width * 4 if bottleneck else width
            stage = []
            for b in range(count):
                stride = 2 if b == 0 and i > 0 else 1
                shortcut: nn.Module = nn.Identity()
                if stride != 1 or inputs != outputs:
                    shortcut = Shortcut(inputs, outputs, stride, norm)
                stage.append(Block(_block_convs(inputs, width, outputs, stride, config), shortcut, norm))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
            widths.append(outputs)
        self.stages = nn.ModuleList(stages)
        self.out_channels = tuple(widths)
        self._frozen = [self.stem, *stages][: config.frozen_stages]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "ResNet":
        """Set training mode; frozen stages stay in evaluation mode so that their statistics do not move."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps C2..C5 of pictures [B, 3, H, W], each [B, C, H / stride, W / stride]."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _block_convs(inputs: int, width: int, outputs: int, stride: int, config: BackboneConfig) -> list[nn.Conv2d]:
    if outputs == width:
        return [_conv(inputs, width, 3, stride), _conv(width, width, 3)]
    first, second = (stride, 1) if config.stride_in is StrideIn.FIRST_1X1 else (1, stride)
    return [_conv(inputs, width, 1, first), _conv(width, width, 3, second), _conv(width, outputs, 1)]
