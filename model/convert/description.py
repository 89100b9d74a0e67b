"""The detector's whole configuration: what the weights tell, laid over the rules that they do not tell."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import DetectorConfig, FeatureKind, Norm, require_fit
from model.convert.architecture import Found, observe
from model.convert.conversion import Framework
from model.settings import override

_COUNTED = (Norm.FIXED, Norm.BATCH, Norm.SYNC)


def describe(
    state: Mapping[str, Tensor], framework: Framework, base: DetectorConfig
) -> tuple[DetectorConfig, tuple[Found, ...]]:
    """The configuration of the detector whose weights these are.

    Args:
        state: weights under our names.
        framework: whose they were.
        base: the rules that names and shapes do not tell: a preset.

    Returns:
        The configuration, and what of it the weights told.

    Raises:
        ValueError: a detector that maskray does not have, or rules that are another kind of detector's.
    """
    found = observe(state, framework)
    told = {item.path: item.value for item in found}
    _check_kind(told, base)
    config = base
    if told.get("keypoint.num_keypoints", 17) != base.keypoint.num_keypoints:
        config = override(config, "keypoint.flip_pairs", ())
    kept = []
    for item in found:
        value = _fitting_norm(item.value, _field(base, item.path), framework)
        config = override(config, item.path, value)
        kept.append(item._replace(value=value))
    _check_anchors(len(state["rpn.head.objectness.weight"]), config)
    require_fit(config)
    return config, tuple(kept)


def _field(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _fitting_norm(value: Any, wanted: Any, framework: Framework) -> Any:
    """The preset's own kind of batch norm where the weights show one that it may be."""
    constant = (Norm.FROZEN,) if framework is Framework.MMDETECTION else ()
    return wanted if value is Norm.BATCH and wanted in (*_COUNTED, *constant) else value


def _check_kind(told: Mapping[str, Any], base: DetectorConfig) -> None:
    single = (FeatureKind.C5, FeatureKind.DC5)
    features = told.get("features")
    if features is None and base.features not in single:
        raise ValueError(
            "the weights have neither a pyramid nor a fifth stage in the heads: their single map is the fifth stage's "
            f"at stride 32 (c5) or dilated (dc5), and the preset has features {base.features.value}: give --preset of "
            "such a detector"
        )
    if told["roi"] is not base.roi or (features is not None and features is not base.features):
        found = "c5 or dc5" if features is None else features.value
        raise ValueError(
            f"these are weights of a detector with roi {told['roi'].value} and features {found}, the preset has roi "
            f"{base.roi.value} and features {base.features.value}: give --preset of the same kind"
        )


def _check_anchors(rows: int, config: DetectorConfig) -> None:
    sizes = 1 if config.features is FeatureKind.FPN else len(config.anchors.sizes_px)
    if rows != sizes * len(config.anchors.ratios):
        raise ValueError(
            f"rpn.head.objectness has {rows} anchors a cell, the preset has {sizes} sizes of "
            f"{len(config.anchors.ratios)} ratios: give --preset of a detector with as many"
        )
