"""Feature pyramid network (Lin et al. 2017): levels P2..P6 of one width."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import Norm
from model.norms import ConvNorm


class FeaturePyramid(nn.Module):
    """A backbone with lateral and top-down connections.

    Attributes:
        out_channels: width of every level.
        strides: strides of P2..P6.
        roi_strides: strides of the levels the heads look at (P2..P5).
    """

    def __init__(
        self, backbone: nn.Module, in_channels: Sequence[int], out_channels: int, norm: Norm = Norm.NONE
    ) -> None:
        """Take the backbone, the widths of its maps (finest first), the pyramid's width and its normalisation."""
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(ConvNorm(width, out_channels, 1, norm) for width in in_channels)
        self.output = nn.ModuleList(ConvNorm(out_channels, out_channels, 3, norm) for _ in in_channels)
        self.out_channels = out_channels
        self.strides = (4, 8, 16, 32, 64)
        self.roi_strides = self.strides[:-1]
        for conv in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # Caffe2's Xavier fill
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Levels P2..P6, each [B, out_channels, h, w], of normalised pictures [B, 3, H, W]."""
        maps = self.backbone(pixels)
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = merged[i] + F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest")
        levels = [output(feature) for output, feature in zip(self.output, merged, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]
