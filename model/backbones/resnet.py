"""ResNet (He et al. 2015) and ResNeXt (Xie et al. 2017) as feature extractors: maps C2..C5 at strides 4 to 32."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.blocks import Block, DeformableConv, NonLocalBlock, NormLayer, Shortcut, conv, norm_layer
from model.config import BackboneConfig, StrideIn
from model.norms import conv_norm

# Blocks of the four stages, and whether they are bottlenecks.
_STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_FOURTH = 2  # index of the stage that is called the fourth, res4


class Stem(nn.Module):
    """7 x 7 convolution and 3 x 3 max pool; stride 4 in all."""

    def __init__(self, channels: int, norm: NormLayer) -> None:
        """Build the convolution and its normalisation."""
        super().__init__()
        self.conv = conv(3, channels, 7, 2)
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [B, 3, H, W] to [B, channels, H / 4, W / 4]."""
        return F.max_pool2d(F.relu(conv_norm(self.conv, self.norm, x), inplace=True), 3, stride=2, padding=1)


def stage_channels(config: BackboneConfig, index: int) -> int:
    """Width of the map that stage `index` (0 for C2) puts out."""
    return (config.stem_channels << index) * (4 if _STAGES[config.depth][1] else 1)


def build_stage(config: BackboneConfig, index: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """One stage with fresh weights.

    Args:
        config: the ResNet.
        index: 0 for C2 up to 3 for C5.
        stride: of its first block.
        dilation: of its 3 x 3 convolutions.
    """
    norm = norm_layer(config)
    outputs = stage_channels(config, index)
    inputs = stage_channels(config, index - 1) if index else config.stem_channels
    blocks: list[nn.Module] = []
    count = _STAGES[config.depth][0][index]
    for number in range(count):
        step = stride if number == 0 else 1
        shortcut: nn.Module = nn.Identity()
        if step != 1 or inputs != outputs:
            shortcut = Shortcut(inputs, outputs, step, norm)
        is_seen = config.non_local and index == _FOURTH and number == count - 1
        non_local = NonLocalBlock(inputs, norm) if is_seen else None
        blocks.append(Block(_block_convs(config, index, inputs, step, dilation), shortcut, norm, non_local))
        inputs = outputs
    stage = nn.Sequential(*blocks)
    _initialise(stage)
    return stage


def _block_convs(config: BackboneConfig, index: int, inputs: int, stride: int, dilation: int) -> list[nn.Conv2d]:
    outputs = stage_channels(config, index)
    if not _STAGES[config.depth][1]:
        return [conv(inputs, outputs, 3, stride, dilation), conv(outputs, outputs, 3, dilation=dilation)]
    groups = config.groups
    width = (groups * config.group_width or config.stem_channels) << index
    first, second = (stride, 1) if config.stride_in is StrideIn.FIRST_1X1 else (1, stride)
    if index + 2 in config.deformable_stages:
        middle: nn.Conv2d = DeformableConv(width, second, dilation, groups, config.deformable_groups, config.modulated)
    else:
        middle = conv(width, width, 3, second, dilation, groups)
    return [conv(inputs, width, 1, first), middle, conv(width, outputs, 1)]


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    for part in module.modules():
        if isinstance(part, DeformableConv):
            part.reset_offsets()
        elif isinstance(part, NonLocalBlock):
            part.reset_output()


class ResNet(nn.Module):
    """Stem and stages.

    Attributes:
        out_channels: widths of the stages' maps, finest first.
        strides: their strides.
    """

    def __init__(self, config: BackboneConfig, num_stages: int = 4, dilated: bool = False) -> None:
        """Build and initialise (He et al., fan out); apply the configured freezing.

        Args:
            config: the ResNet.
            num_stages: 4, or 3 where the fifth stage (C5) belongs to the heads.
            dilated: the last stage keeps its input's stride and dilates instead (DC5).
        """
        super().__init__()
        self.stem = Stem(config.stem_channels, norm_layer(config))
        _initialise(self.stem)
        steps = [1, 2, 2, 1 if dilated else 2][:num_stages]
        stages = [
            build_stage(config, i, step, dilation=2 if dilated and i == num_stages - 1 else 1)
            for i, step in enumerate(steps)
        ]
        self.stages = nn.ModuleList(stages)
        self.out_channels = tuple(stage_channels(config, i) for i in range(num_stages))
        self.strides = tuple(4 * math.prod(steps[: i + 1]) for i in range(num_stages))
        frozen = [self.stem, *stages][: config.frozen_stages]
        self._still = frozen if config.frozen_statistics else []
        for part in frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "ResNet":
        """Set training mode; frozen stages stay in evaluation mode so that their statistics do not move."""
        super().train(mode)
        for part in self._still:
            part.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of pictures [B, 3, H, W], each [B, C, H / stride, W / stride], finest first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
