"""Any network of the timm library as a backbone (extra `timm`)."""

from typing import Any

from torch import Tensor, nn

_STRIDES = (4, 8, 16, 32)


class TimmBackbone(nn.Module):
    """The maps of a timm network at strides 4, 8, 16 and 32.

    Attributes:
        out_channels: widths of the maps, finest first.
        strides: their strides.
    """

    def __init__(self, name: str) -> None:
        """Build the network of that name with fresh weights.

        Raises:
            ImportError: timm is not installed.
            ValueError: timm has no such network, or it lacks a map at one of the strides.
        """
        super().__init__()
        try:
            import timm  # type: ignore[import-not-found] # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise ImportError(
                f"backbone.kind timm ({name}) needs the timm library: pip install 'maskray[timm]'"
            ) from error
        if not timm.is_model(name):
            similar = timm.list_models(f"*{name.split('_', maxsplit=1)[0]}*")[:5]
            close = ", ".join(similar) or "timm.list_models() names them"
            raise ValueError(f"timm has no network {name!r}: choose another backbone.timm_name, for example {close}")
        network = _create(timm, name)
        reductions = network.feature_info.reduction()
        if not set(_STRIDES) <= set(reductions):
            raise ValueError(f"timm's {name} has maps at strides {reductions}, wanted 4, 8, 16 and 32: choose another "
                             "backbone.timm_name")  # fmt: skip
        self._places = [reductions.index(stride) for stride in _STRIDES]
        channels = network.feature_info.channels()
        self.network = network
        self._is_channels_last = network.output_fmt == "NHWC"
        self.out_channels = tuple(channels[place] for place in self._places)
        self.strides = _STRIDES

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of pictures [B, 3, H, W], each [B, C, H / stride, W / stride], finest first."""
        maps = self.network(x)
        found = [maps[place] for place in self._places]
        return [map_.permute(0, 3, 1, 2) for map_ in found] if self._is_channels_last else found


def _create(timm: Any, name: str) -> Any:
    given = {"features_only": True, "pretrained": False}
    try:
        # Swin takes pictures of one size unless told otherwise; what has no such limit refuses the setting.
        return timm.create_model(name, **given, strict_img_size=False)
    except TypeError:
        return timm.create_model(name, **given)
