"""One feature map instead of a pyramid: C4, C5 and DC5."""

from torch import Tensor, nn

from model.backbones.resnet import ResNet


class SingleMap(nn.Module):
    """The last map of a backbone.

    Attributes:
        out_channels: its width.
        strides: its stride, alone in a tuple.
        roi_strides: the same.
    """

    def __init__(self, backbone: ResNet) -> None:
        """Take the backbone."""
        super().__init__()
        self.backbone = backbone
        self.out_channels = backbone.out_channels[-1]
        self.strides = backbone.strides[-1:]
        self.roi_strides = self.strides

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[map [B, out_channels, h, w]] of normalised pictures [B, 3, H, W]."""
        maps: list[Tensor] = self.backbone(pixels)
        return maps[-1:]
