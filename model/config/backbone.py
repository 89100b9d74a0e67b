"""Settings of the picture pipeline, the backbone and the neck."""

import dataclasses

from model.config.check import require, require_fields
from model.config.switches import BackboneKind, ChannelOrder, Norm, ResizeKernel, ResizeRounding, StrideIn


@dataclasses.dataclass(frozen=True)
class PictureConfig:
    """From decoded picture to network input.

    Attributes:
        short_edge_px: length of the shorter side after the resize at test time.
        long_edge_px: upper limit of the longer side.
        kernel: interpolation of the resize.
        rounding: how scaled sides become whole pixels.
        channel_order: order of the channels that enter the network; `mean` and `std` are in this order.
        mean: subtracted from values in 0..255.
        std: divides after the subtraction.
        size_divisor: inputs are padded (bottom, right, with zeros after normalising) to multiples of this.
    """

    short_edge_px: int = 800
    long_edge_px: int = 1333
    kernel: ResizeKernel = ResizeKernel.FLOAT_BILINEAR
    rounding: ResizeRounding = ResizeRounding.HALF_UP
    channel_order: ChannelOrder = ChannelOrder.RGB
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisor: int = 32

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.short_edge_px > 0, "picture.short_edge_px", self.short_edge_px, "> 0")
        require(self.long_edge_px >= self.short_edge_px, "picture.long_edge_px", self.long_edge_px, ">= short_edge_px")
        require(min(self.std) > 0, "picture.std", self.std, "> 0 in each channel")
        require(self.size_divisor > 0, "picture.size_divisor", self.size_divisor, "> 0")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A ResNet or ResNeXt (or a network of timm) and what of it is trained.

    Attributes:
        kind: ResNet family, or a network of the timm library.
        timm_name: name of the network where `kind` is timm; its own layers and norms, all of it trained.
        depth: number of layers: 18, 34, 50, 101 or 152.
        stem_channels: width of the stem; 64 in every published network, less for small experiments.
        groups: groups of the 3 x 3 convolutions of the bottlenecks; 32 in ResNeXt.
        group_width: channels of a group in the first stage, doubling stage by stage (ResNeXt 32x4d: 4); 0 divides
            `stem_channels` among the groups (ResNet).
        stride_in: place of the stride in a bottleneck (depth 50 and more).
        norm: kind of normalisation.
        norm_eps: epsilon of the normalisation. torchvision's COCO weights were evaluated with 0.
        frozen_stages: 0 trains all; 1 freezes the stem, 2 the stem and the first stage, and so on up to 5.
        frozen_statistics: batch statistics of frozen stages stand still too; torchvision lets them move.
        deformable_stages: stages, out of 3, 4 and 5, whose 3 x 3 convolutions are deformable (Dai et al. 2017).
        modulated: the deformable convolutions weigh their samples too (version 2, Zhu et al. 2019).
        deformable_groups: groups of channels with offsets of their own.
        non_local: one non-local block before the last block of the fourth stage (Wang et al. 2018; the paper's
            enhanced recipe).
    """

    kind: BackboneKind = BackboneKind.RESNET
    timm_name: str = ""
    depth: int = 50
    stem_channels: int = 64
    groups: int = 1
    group_width: int = 0
    stride_in: StrideIn = StrideIn.CONV_3X3
    norm: Norm = Norm.FROZEN
    norm_eps: float = 1e-5
    frozen_stages: int = 2
    frozen_statistics: bool = True
    deformable_stages: tuple[int, ...] = ()
    modulated: bool = False
    deformable_groups: int = 1
    non_local: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.depth in (18, 34, 50, 101, 152), "backbone.depth", self.depth, "one of 18, 34, 50, 101, 152")
        require_fields(self, "backbone", ("stem_channels", "groups", "deformable_groups"), 1)
        require_fields(self, "backbone", ("norm_eps", "group_width"), 0)
        require_fields(self, "backbone", ("frozen_stages",), 0, 5)
        require(self.norm is not Norm.NONE, "backbone.norm", self.norm.value, "a normalisation; a ResNet has one")
        require(set(self.deformable_stages) <= {3, 4, 5}, "backbone.deformable_stages", self.deformable_stages,
                "stages out of 3, 4, 5")  # fmt: skip
