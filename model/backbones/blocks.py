"""The parts of a ResNet: convolutions, shortcut, residual block, non-local block."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import BackboneConfig
from model.norms import FrozenBatchNorm, build_norm, conv_norm
from model.ops.conv import Conv2d
from model.ops.deform_conv import deform_conv2d

NormLayer = Callable[[int], nn.Module]


def norm_layer(config: BackboneConfig) -> NormLayer:
    """The constructor of the backbone's normalisation, called with the number of channels."""

    def make(channels: int) -> nn.Module:
        norm = build_norm(config.norm, channels, config.norm_eps)
        assert norm is not None, "a backbone is normalised"
        return norm

    return make


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> Conv2d:
    """A convolution without bias, padded so that only the stride changes the size."""
    padding = dilation * (kernel // 2)
    return Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)


class DeformableConv(nn.Conv2d):
    """A 3 x 3 convolution whose taps move by offsets that a second convolution predicts, zero at first."""

    def __init__(
        self, channels: int, stride: int, dilation: int, groups: int, offset_groups: int, modulated: bool
    ) -> None:
        """Take the width, which it keeps, and whether the samples are weighed too (version 2)."""
        super().__init__(channels, channels, 3, stride, dilation, dilation, groups, bias=False)
        self.num_offsets = 18 * offset_groups
        outputs = (27 if modulated else 18) * offset_groups
        self.offset = nn.Conv2d(channels, outputs, 3, stride, dilation, dilation)

    def reset_offsets(self) -> None:
        """Set the offsets to zero, which is where training starts."""
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, C, H / stride, W / stride]."""
        moves = self.offset(x)
        offset, mask = moves[:, : self.num_offsets], moves[:, self.num_offsets :]
        weights = mask.sigmoid() if mask.shape[1] else None
        stride, dilation = (self.stride[0], self.stride[1]), (self.dilation[0], self.dilation[1])
        # The padding is the dilation, so that only the stride changes the size.
        return deform_conv2d(x, self.weight, offset, weights, stride, dilation, dilation)


class Shortcut(nn.Module):
    """1 x 1 projection where a block changes width or stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormLayer) -> None:
        """Build the convolution and its normalisation."""
        super().__init__()
        self.conv = conv(inputs, outputs, 1, stride)
        self.norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Project x [B, C, H, W]."""
        return conv_norm(self.conv, self.norm, x)


class Block(nn.Module):
    """A residual block: a chain of convolutions beside a shortcut."""

    def __init__(
        self, layers: list[nn.Conv2d], shortcut: nn.Module, norm: NormLayer, non_local: nn.Module | None = None
    ) -> None:
        """Take the convolutions in order, each followed by a normalisation, and what looks at the input first."""
        super().__init__()
        self.non_local = non_local
        self.num_convs = len(layers)
        for i, layer in enumerate(layers, start=1):
            self.add_module(f"conv{i}", layer)
            self.add_module(f"norm{i}", norm(layer.out_channels))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to the block's width and stride."""
        # In place where no gradient needs the values: a fresh map costs a CPU more than the arithmetic on it.
        if self.non_local is not None:
            x = self.non_local(x)
        out = x
        for i in range(1, self.num_convs + 1):
            out = conv_norm(getattr(self, f"conv{i}"), getattr(self, f"norm{i}"), out)
            if i < self.num_convs:
                out = F.relu(out, inplace=True)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class NonLocalBlock(nn.Module):
    """Attention of every cell to every other, added to the map (Wang et al. 2018, embedded Gaussian)."""

    def __init__(self, channels: int, norm: NormLayer) -> None:
        """Take the width, which it keeps."""
        super().__init__()
        inner = channels // 2
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        self.norm = norm(channels)

    def reset_output(self) -> None:
        """Make the block the identity, so that it can be put into a trained network.

        A trained norm would bring the smallest output to unit size, so there its factor is what starts at zero.
        """
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        is_constant = isinstance(self.norm, FrozenBatchNorm)
        weight = self.out.weight if is_constant else self.norm.weight
        assert isinstance(weight, Tensor)
        nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to the same shape."""
        batch, _, height, width = x.shape
        query, key, value = (part(x).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value))
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        out: Tensor = self.norm(self.out(seen.transpose(1, 2).reshape(batch, -1, height, width)))
        return x + out
