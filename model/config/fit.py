"""Whether the parts of a detector's configuration fit together.

Apart from the dataclasses, so that fields can be set one after the other: what matters is how they end.
"""

from model.config.backbone import BackboneConfig
from model.config.check import require
from model.config.detector import DetectorConfig
from model.config.switches import (
    BackboneKind,
    FeatureKind,
    MaskActivation,
    MaskKind,
    Norm,
    PoolOperation,
    PoolReduction,
    RoIKind,
)


def require_fit(config: DetectorConfig) -> None:
    """Raise ValueError, in one line, for settings that are sound alone but not together."""
    _require_backbone(config.backbone, config.features)
    kind, is_pyramid = config.features.value, config.features is FeatureKind.FPN
    require(not is_pyramid or len(config.anchors.sizes_px) == 5, "anchors.sizes_px", config.anchors.sizes_px,
            "five sizes, one for each of the levels P2..P6, with features fpn")  # fmt: skip
    if config.roi is not RoIKind.STANDARD:
        require(is_pyramid, "features", kind, f"fpn with roi {config.roi.value}")
        require(not config.keypoint.enabled, "keypoint.enabled", True, f"false with roi {config.roi.value}")
    require(not config.semantic.enabled or config.roi is RoIKind.HTC, "roi", config.roi.value,
            "htc with semantic.enabled")  # fmt: skip
    if config.roi is RoIKind.HTC:
        _require_htc(config)
    if config.features is FeatureKind.C4:
        layers = config.box.num_fcs + config.box.num_convs
        require(layers == 0, "box.num_fcs + box.num_convs", layers, "0 with features c4, whose fifth stage is the head")
        require(not config.keypoint.enabled, "keypoint.enabled", True, "false with features c4")
        require(config.backbone.norm not in (Norm.BATCH, Norm.SYNC), "backbone.norm", config.backbone.norm.value,
                "frozen, fixed or group with features c4, whose fifth stage runs on padded RoIs")  # fmt: skip
    pooler, mask = config.pooler, config.mask
    is_max = pooler.reduction is PoolReduction.MAX and pooler.operation is not PoolOperation.POOL
    require(pooler.sampling_ratio > 0 or not is_max, "pooler.sampling_ratio", pooler.sampling_ratio,
            "> 0 with the maximum of a bin's samples (the paper takes 2)")  # fmt: skip
    is_clash = mask.class_agnostic and mask.activation is MaskActivation.SOFTMAX
    require(not is_clash, "mask.activation", mask.activation.value, "sigmoid with mask.class_agnostic")


def _require_htc(config: DetectorConfig) -> None:
    """HTC's own rules, which the settings it shares with the cascade cannot change."""
    cascade, mask, semantic = config.cascade, config.mask, config.semantic
    require(mask.enabled, "mask.enabled", False, "true with roi htc")
    require(mask.kind is MaskKind.FCN, "mask.kind", mask.kind.value, "fcn with roi htc, which hands its features on")
    require(cascade.mask_each_stage, "cascade.mask_each_stage", False, "true with roi htc")
    require(cascade.resample, "cascade.resample", False, "true with roi htc")
    require(cascade.feature_gradient == 1, "cascade.feature_gradient", cascade.feature_gradient, "1 with roi htc")
    fits = not semantic.enabled or semantic.channels == config.fpn_channels
    require(fits, "semantic.channels", semantic.channels,
            f"fpn_channels ({config.fpn_channels}), since its feature is added to the pyramid's")  # fmt: skip


def _require_backbone(config: BackboneConfig, features: FeatureKind) -> None:
    require(config.groups == 1 or config.group_width > 0, "backbone.group_width", config.group_width,
            f"> 0 with {config.groups} groups")  # fmt: skip
    is_plain = config.groups == 1 and config.group_width == 0 and not config.deformable_stages
    require(config.depth >= 50 or is_plain, "backbone.depth", config.depth,
            ">= 50 with groups or deformable convolutions, which live in bottlenecks")  # fmt: skip
    is_timm = config.kind is BackboneKind.TIMM
    require(bool(config.timm_name) == is_timm, "backbone.timm_name", config.timm_name,
            "the network's name with backbone.kind timm, and empty without")  # fmt: skip
    require(not is_timm or features is FeatureKind.FPN, "features", features.value, "fpn with backbone.kind timm")
