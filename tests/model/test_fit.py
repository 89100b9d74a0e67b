"""Settings that are sound alone but not together are refused when a detector is built, in one line."""

import dataclasses

import pytest
import torch

from model.build import build_detector
from model.config import DetectorConfig, require_fit
from model.presets import DETECTORS
from model.settings import override

C4 = {"features": "c4", "box.num_fcs": 0}
HTC = {"roi": "htc"}

REFUSED = {
    "five-levels": (
        {"anchors.sizes_px": (32.0, 64.0)},
        r"anchors\.sizes_px must be five sizes, .*got \(32\.0, 64\.0\)",
    ),
    "cascade-c4": ({**C4, "roi": "cascade"}, "features must be fpn with roi cascade, got 'c4'"),
    "htc-dc5": ({**HTC, "features": "dc5"}, "features must be fpn with roi htc, got 'dc5'"),
    "cascade-keypoints": (
        {"roi": "cascade", "keypoint.enabled": True},
        r"keypoint\.enabled must be false with roi cascade, got True",
    ),
    "semantic-standard": ({"semantic.enabled": True}, r"roi must be htc with semantic\.enabled, got 'standard'"),
    "semantic-cascade": (
        {"roi": "cascade", "semantic.enabled": True},
        r"roi must be htc with semantic\.enabled, got 'cascade'",
    ),
    "htc-boxes": ({**HTC, "mask.enabled": False}, r"mask\.enabled must be true with roi htc, got False"),
    "htc-mlp": ({**HTC, "mask.kind": "mlp"}, r"mask\.kind must be fcn with roi htc, .*got 'mlp'"),
    "htc-one-mask": (
        {**HTC, "cascade.mask_each_stage": False},
        r"cascade\.mask_each_stage must be true with roi htc, got False",
    ),
    "htc-keeps": ({**HTC, "cascade.resample": False}, r"cascade\.resample must be true with roi htc, got False"),
    "htc-gradient": (
        {**HTC, "cascade.feature_gradient": 0.5},
        r"cascade\.feature_gradient must be 1 with roi htc, got 0\.5",
    ),
    "htc-width": (
        {**HTC, "semantic.enabled": True, "semantic.channels": 128},
        r"semantic\.channels must be fpn_channels \(256\), .*got 128",
    ),
    "c4-fcs": ({"features": "c4"}, r"box\.num_fcs \+ box\.num_convs must be 0 with features c4, .*got 2"),
    "c4-convs": ({**C4, "box.num_convs": 4}, r"box\.num_fcs \+ box\.num_convs must be 0 with features c4, .*got 4"),
    "c4-keypoints": ({**C4, "keypoint.enabled": True}, r"keypoint\.enabled must be false with features c4, got True"),
    "c4-batch-norm": (
        {**C4, "backbone.norm": "batch"},
        r"backbone\.norm must be frozen, fixed or group with features c4, .*got 'batch'",
    ),
    "adaptive-max": (
        {"pooler.reduction": "max"},
        r"pooler\.sampling_ratio must be > 0 with the maximum .*got 0",
    ),
    "adaptive-max-warp": (
        {"pooler.reduction": "max", "pooler.operation": "warp"},
        r"pooler\.sampling_ratio must be > 0 with the maximum .*got 0",
    ),
    "agnostic-softmax": (
        {"mask.class_agnostic": True, "mask.activation": "softmax"},
        r"mask\.activation must be sigmoid with mask\.class_agnostic, got 'softmax'",
    ),
    "group-width": ({"backbone.groups": 32}, r"backbone\.group_width must be > 0 with 32 groups, got 0"),
    "grouped-r18": (
        {"backbone.depth": 18, "backbone.groups": 32, "backbone.group_width": 4},
        r"backbone\.depth must be >= 50 with groups or deformable convolutions, .*got 18",
    ),
    "deformable-r34": (
        {"backbone.depth": 34, "backbone.deformable_stages": (5,)},
        r"backbone\.depth must be >= 50 with groups or deformable convolutions, .*got 34",
    ),
    "timm-without-name": ({"backbone.kind": "timm"}, r"backbone\.timm_name must be the network's name .*got ''"),
    "name-without-timm": (
        {"backbone.timm_name": "convnext_tiny"},
        r"backbone\.timm_name must be .* empty without, got 'convnext_tiny'",
    ),
    "timm-c5": (
        {"backbone.kind": "timm", "backbone.timm_name": "convnext_tiny", "features": "c5"},
        r"features must be fpn with backbone\.kind timm, got 'c5'",
    ),
}


def changed(settings):
    config = DetectorConfig()
    for path, value in settings.items():
        config = override(config, path, value)
    return config


@pytest.mark.parametrize(("settings", "match"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_together_says_what_to_change(settings, match):
    config = changed(settings)
    for check in (require_fit, build_detector):
        with pytest.raises(ValueError, match=f"^{match}$") as error:
            check(config)
        assert "\n" not in str(error.value)


ALLOWED = {
    "c4": C4,
    "c4-group-norm": {**C4, "backbone.norm": "group"},
    "c4-odd-crop-mlp": {**C4, "mask.kind": "mlp", "pooler.box_size": 7},
    "c5-keypoints": {"features": "c5", "keypoint.enabled": True},
    "dc5-deformable": {"features": "dc5", "backbone.deformable_stages": (5,)},
    "cascade-boxes-only": {"roi": "cascade", "mask.enabled": False},
    "htc": HTC,
    "htc-semantic": {**HTC, "semantic.enabled": True},
    "pool-max": {"pooler.operation": "pool", "pooler.reduction": "max"},
    "warp-max": {"pooler.operation": "warp", "pooler.reduction": "max", "pooler.sampling_ratio": 2},
    "resnext": {"backbone.groups": 32, "backbone.group_width": 4},
}


@pytest.mark.parametrize("settings", ALLOWED.values(), ids=ALLOWED)
def test_what_fits_is_built(settings):
    config = changed(settings)
    with torch.device("meta"):
        detector = build_detector(config)
    assert detector.config == config


@pytest.mark.parametrize("make", DETECTORS.values(), ids=DETECTORS)
def test_presets_fit(make):
    require_fit(make())
    require_fit(dataclasses.replace(make(), num_classes=3))
