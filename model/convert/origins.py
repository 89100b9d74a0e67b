"""The rules that weights do not tell, from what is known of their origin; where nothing is known, the user is asked."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.config import DetectorConfig, FeatureKind, Norm, RoIKind
from model.convert import mmdetection_config
from model.convert.architecture import Found
from model.convert.conversion import Framework
from model.presets import heads, rules
from model.presets.backbones import resnext_32x8d
from model.settings import from_dict, override

# The beginnings of the sha256 that torchvision puts into the names of its published v1 files: Mask, Keypoint and Faster
# R-CNN, all COCO_V1, which torchvision evaluates with a norm epsilon of 0.
_TORCHVISION_V1 = ("bf2d0c1e", "fc266e95", "258fb6c6")
_ZOO_AUTHOR = "Detectron2 Model Zoo"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of some weights besides their names and shapes.

    Attributes:
        metadata: what else the file holds.
        sha256: of the file.
        preset: rules the user chose.
        norm_eps: epsilon of the backbone's norms as the user knows it.
    """

    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sha256: str = ""
    preset: DetectorConfig | None = None
    norm_eps: float | None = None


def rules_of(
    framework: Framework, found: Sequence[Found], evidence: Evidence
) -> tuple[DetectorConfig, tuple[Found, ...]]:
    """The rules for weights of this framework, and how they are known.

    Raises:
        ValueError: nothing says them; the message names what to give.
    """
    told = {item.path: item.value for item in found}
    known: tuple[Found, ...]
    if evidence.preset is not None:
        base, known = evidence.preset, (Found("rules", "preset", "--preset"),)
    elif isinstance(own := _own_settings(evidence.metadata), str):
        base, known = _written_by_maskray(own), (Found("rules", "maskray", "the settings in the file"),)
    elif framework is Framework.TORCHVISION:
        base, known = _torchvision(told, evidence)
    elif framework is Framework.DETECTRON2:
        base, known = _detectron2(told, evidence)
    else:
        base, known = _mmdetection(told, evidence)
    if evidence.norm_eps is not None:
        base = override(base, "backbone.norm_eps", evidence.norm_eps)
        known = (*known, Found("backbone.norm_eps", evidence.norm_eps, "--norm-eps"))
    return base, known


def _own_settings(metadata: Mapping[str, Any]) -> object:
    """What `maskray export-weights` wrote beside the weights."""
    meta = metadata.get("meta")
    return metadata.get("maskray", meta.get("maskray") if isinstance(meta, Mapping) else None)


def _written_by_maskray(settings: str) -> DetectorConfig:
    try:
        return from_dict(DetectorConfig, json.loads(settings))
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise ValueError(
            f"the file's own settings do not fit this version of maskray ({error}): give --preset"
        ) from error


def _torchvision(told: Mapping[str, Any], evidence: Evidence) -> tuple[DetectorConfig, tuple[Found, ...]]:
    base = rules.torchvision()
    known = [Found("rules", "torchvision", "its detectors have one set of rules")]
    if told["fpn_norm"] is not Norm.NONE:
        base = override(base, "backbone.frozen_statistics", False)
        known.append(Found("backbone.frozen_statistics", False, "norms in the pyramid: version 2"))
    if told["backbone.norm"] is not Norm.FROZEN or evidence.norm_eps is not None:
        return base, tuple(known)
    if not evidence.sha256.startswith(_TORCHVISION_V1):
        raise ValueError(
            "weights of torchvision with constant norms do not say their epsilon: give --norm-eps 0 (COCO_V1 weights, "
            "and what was fine-tuned from them) or --norm-eps 1e-5 (trained from a backbone), or --preset"
        )
    known.append(Found("backbone.norm_eps", 0.0, f"sha256 {evidence.sha256[:8]}: torchvision's published v1 file"))
    return override(base, "backbone.norm_eps", 0.0), tuple(known)


def _detectron2(told: Mapping[str, Any], evidence: Evidence) -> tuple[DetectorConfig, tuple[Found, ...]]:
    grouped = told.get("backbone.groups", 1) > 1
    is_known = told["backbone.norm"] is Norm.FROZEN and (not grouped or told["backbone.depth"] == 101)
    if evidence.metadata.get("__author__") != _ZOO_AUTHOR or not is_known:
        raise ValueError(
            "weights of Detectron2 do not say where the stride is, their colours, nor their thresholds (files of its "
            f"model zoo do, by __author__ {_ZOO_AUTHOR!r}, with constant norms and a ResNet or ResNeXt-101): give "
            "--preset, one of `maskray list presets detectron2`"
        )
    # The comparison with Detectron has the same names and shapes, and other rules.
    known = [Found("rules", "detectron2", "__author__ is its zoo's; for its comparison with Detectron give --preset")]
    base = rules.detectron2()
    if grouped:
        base = resnext_32x8d(base)
        known.append(Found("backbone.stride_in", base.backbone.stride_in, "groups: the zoo's ResNeXt"))
        known.append(Found("picture.std", base.picture.std, "groups: the zoo's ResNeXt"))
    features = told.get("features")
    if features is not FeatureKind.FPN:
        base = heads.detectron2_single_map(base)
        base = heads.c4(base) if features is FeatureKind.C4 else heads.dc5(base)
        if features is None:
            known.append(Found("features", FeatureKind.DC5, "the zoo's single maps of the fifth stage are dilated"))
    if told["roi"] is RoIKind.CASCADE:
        base = heads.detectron2_cascade(base)
    if told["keypoint.enabled"]:
        # The zoo's keypoint detectors: a smooth box loss, and more proposals in training.
        base = override(override(base, "box.smooth_l1_beta", 0.5), "rpn.post_nms_train", 1500)
    return base, tuple(known)


def _mmdetection(told: Mapping[str, Any], evidence: Evidence) -> tuple[DetectorConfig, tuple[Found, ...]]:
    meta = evidence.metadata.get("meta")
    text = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    config = mmdetection_config.parse(text) if isinstance(text, str) else {}
    style = mmdetection_config.style(config)
    if style is None:
        raise ValueError(
            "weights of MMDetection do not say their style (pytorch or caffe), colours and thresholds, and this file "
            "holds no config: give --preset, one of `maskray list presets mmdet`"
        )
    base = rules.mmdetection() if style == "pytorch" else rules.mmdetection_caffe()
    if told["roi"] is RoIKind.STANDARD:
        base = heads.mmdetection_c4(base) if told.get("features") is FeatureKind.C4 else base
    else:
        base = heads.htc_without_semantic(base) if told["roi"] is RoIKind.HTC else heads.mmdetection_cascade(base)
    if "features" not in told:
        base = heads.c5(base)
    base, said = mmdetection_config.lay_over(base, config)
    return base, (Found("rules", f"mmdet, {style} style", "config in the file: model.backbone.style"), *said)
