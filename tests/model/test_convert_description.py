"""What names and shapes tell of a detector, for the peers' weights and for every kind of part on its own."""

import dataclasses

import pytest
import torch

from model.build import build_detector
from model.config import (
    BackboneConfig,
    BoxHeadConfig,
    CascadeConfig,
    DetectorConfig,
    FeatureKind,
    KeypointHeadConfig,
    MaskHeadConfig,
    Norm,
    RoIKind,
    RpnConfig,
    SemanticHeadConfig,
)
from model.convert import Framework, convert, describe, identify, observe
from model.settings import override
from tests.oracles import parity

FIXTURES = [pytest.param(path, id=path.stem) for path in parity.files()]


def field(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("path", FIXTURES)
def test_the_peers_weights_tell_what_the_peers_say(path):
    fixture = parity.Fixture(path)
    framework = identify(fixture.weights)
    state = convert(fixture.weights, framework).state
    # All that shapes tell is wrong in the base, all else is right.
    base = fixture.config
    for name, value in {
        "num_classes": 77,
        "backbone.depth": 101,
        "backbone.stem_channels": 48,
        "backbone.groups": 7,
        "backbone.group_width": 9,
        "box.channels": 99,
        "mask.channels": 99,
        "mask.num_convs": 7,
        "rpn.num_convs": 3,
        "keypoint.channels": 9,
        "keypoint.num_convs": 9,
        "semantic.channels": 9,
        "fpn_channels": 99,
        "box.num_fcs": 3,
    }.items():
        base = override(base, name, value)
    config, found = describe(state, framework, base)
    assert {item.path: item.value for item in found} == {item.path: field(fixture.config, item.path) for item in found}
    # Parts that are absent may keep any width; the rest is as the peer's.
    absent = [name for name in ("mask", "keypoint", "semantic") if not field(fixture.config, f"{name}.enabled")]
    if fixture.config.features is not FeatureKind.FPN:
        absent.append("fpn_channels")
    if not fixture.config.box.num_fcs:
        config = override(config, "box.channels", fixture.config.box.channels)
    for name in absent:
        config = dataclasses.replace(config, **{name: field(fixture.config, name)})
    assert config == fixture.config


SMALL = DetectorConfig(
    num_classes=3,
    fpn_channels=8,
    backbone=BackboneConfig(depth=50, stem_channels=4),
    box=BoxHeadConfig(channels=12),
    mask=MaskHeadConfig(channels=8),
)
CONFIGS = {
    "resnet-18": {"backbone.depth": 18},
    "resnet-34": {"backbone.depth": 34},
    "resnet-152": {"backbone.depth": 152},
    "resnext": {"backbone.groups": 4, "backbone.group_width": 2},
    "wide": {"backbone.group_width": 8},
    "deformable": {"backbone.deformable_stages": (3, 4, 5)},
    "deformable, weighted": {"backbone.deformable_stages": (4, 5), "backbone.modulated": True},
    "deformable, weighted, four groups": {
        "backbone.deformable_stages": (5,),
        "backbone.modulated": True,
        "backbone.deformable_groups": 4,
    },
    "non-local": {"backbone.non_local": True},
    "batch norm": {"backbone.norm": Norm.BATCH},
    "group norm": {"backbone.norm": Norm.GROUP, "backbone.stem_channels": 32},
    "pyramid with norm": {"fpn_norm": Norm.BATCH},
    "pyramid with group norm": {"fpn_norm": Norm.GROUP, "fpn_channels": 32},
    "two rpn layers": {"rpn.num_convs": 2},
    "convolutional box head": {"box.num_convs": 4, "box.num_fcs": 1, "box.conv_channels": 6, "box.norm": Norm.BATCH},
    "class-agnostic": {"box.class_agnostic": True, "mask.class_agnostic": True},
    "no mask": {"mask.enabled": False},
    "masks and keypoints": {"keypoint.enabled": True, "keypoint.channels": 6, "keypoint.num_convs": 2},
    "another crop": {"pooler.box_size": 5},
    "one class": {"num_classes": 1},
    "cascade": {"roi": RoIKind.CASCADE, "box.class_agnostic": True},
    "cascade, one mask head": {"roi": RoIKind.CASCADE, "box.class_agnostic": True, "cascade.mask_each_stage": False},
    "cascade of one class": {"roi": RoIKind.CASCADE, "box.class_agnostic": True, "num_classes": 1},
    "htc": {"roi": RoIKind.HTC, "box.class_agnostic": True},
    "htc with semantic branch": {
        "roi": RoIKind.HTC,
        "box.class_agnostic": True,
        "semantic.enabled": True,
        "semantic.num_classes": 5,
        "semantic.channels": 8,
        "semantic.num_convs": 2,
    },
    "c4": {"features": FeatureKind.C4, "box.num_fcs": 0, "mask.num_convs": 0, "pooler.box_size": 14},
    "dc5": {"features": FeatureKind.DC5},
    "c5": {"features": FeatureKind.C5},
}


def configured(changes):
    config = SMALL
    for path, value in changes.items():
        config = override(config, path, value)
    return config


def weights(config):
    with torch.device("meta"):
        return build_detector(config).state_dict()


def shapes(config):
    return {name: value.shape for name, value in weights(config).items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_our_own_weights_describe_the_detector_that_made_them(name):
    wanted = configured(CONFIGS[name])
    # The rules, and nothing that shapes tell.
    base = DetectorConfig(
        features=wanted.features,
        roi=wanted.roi,
        rpn=RpnConfig(nms_iou=0.6),
        pooler=dataclasses.replace(wanted.pooler, box_size=14),
        box=BoxHeadConfig(nms_iou=0.4),
        cascade=CascadeConfig(),
        keypoint=KeypointHeadConfig(),
        semantic=SemanticHeadConfig(),
    )
    config, found = describe(weights(wanted), Framework.DETECTRON2, base)
    assert {item.path: item.value for item in found} == {item.path: field(wanted, item.path) for item in found}
    assert shapes(config) == shapes(wanted)
    assert (config.rpn.nms_iou, config.box.nms_iou) == (0.6, 0.4)


@pytest.mark.parametrize(
    ("framework", "kept"),
    [
        (Framework.MMDETECTION, [Norm.FROZEN, Norm.FIXED, Norm.BATCH, Norm.SYNC]),
        (Framework.TORCHVISION, [Norm.FIXED, Norm.BATCH, Norm.SYNC]),
    ],
)
def test_a_norm_that_shapes_do_not_tell_is_the_presets(framework, kept):
    state = weights(configured({"backbone.norm": Norm.BATCH}))
    for norm in Norm:
        if norm is not Norm.NONE:
            base = configured({"backbone.norm": norm})
            assert describe(state, framework, base)[0].backbone.norm is (norm if norm in kept else Norm.BATCH)


def test_every_finding_says_how_it_is_known():
    found = observe(weights(SMALL), Framework.DETECTRON2)
    why = {item.path: item.why for item in found}
    assert why["num_classes"] == "roi.box_head.scores has 4 rows, one is the background"
    assert why["backbone.depth"] == "3+4+6+3 blocks of three convolutions"
    assert why["roi"] == "one box head"
    assert all(why.values())


def broken(change):
    state = dict(weights(SMALL))
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("pyramid.backbone.stages.2.5.conv1.weight"), "has 3, 4, 5, 3 blocks in its stages, wanted"),
        (lambda s: s.pop("pyramid.backbone.stem.conv.weight"), r"nothing for pyramid\.backbone\.stem\.conv\.weight"),
        (
            lambda s: s.update({"roi.box_head.deltas.weight": torch.empty(7, 12)}),
            "has 7 rows of deltas and 4 of scores",
        ),
        (
            lambda s: s.update({"roi.mask_head.logits.weight": torch.empty(4, 8, 1, 1)}),
            r"roi\.mask_head\.logits has 4 rows, wanted 1 or 3",
        ),
        (
            lambda s: s.update({"roi.box_head.fcs.0.weight": torch.empty(12, 391)}),
            "has 391 inputs, wanted 8 channels of a square crop",
        ),
        (
            lambda s: s.update({"pyramid.backbone.stages.0.0.conv2.weight": torch.empty(4, 3, 3, 3)}),
            "has 4 outputs and 3 inputs a group",
        ),
        (
            lambda s: s.update({"pyramid.backbone.stages.1.0.conv2.offset.weight": torch.empty(20, 8, 3, 3)}),
            "has 20 outputs, wanted 18 or 27 for each group of its 8 inputs",
        ),
        (
            lambda s: s.update({"pyramid.lateral.0.weight": torch.empty(0, 8, 1, 1)}),
            r"has the shape \(0, 8, 1, 1\), wanted 4 dimensions, none empty",
        ),
        (lambda s: s.update({"roi.box_head.scores.weight": torch.empty(4)}), r"has the shape \(4,\), wanted 2"),
        (
            lambda s: s.update({"roi.box_heads.0.scores.weight": torch.empty(4, 2)}),
            "have 1 box heads in a row, wanted 1, or 3 of a cascade",
        ),
        (
            lambda s: s.update({"rpn.head.objectness.weight": torch.empty(5, 8, 1, 1)}),
            "has 5 anchors a cell, the preset has 1 sizes of 3 ratios",
        ),
    ],
)
def test_impossible_weights_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        describe(broken(change), Framework.DETECTRON2, SMALL)


def test_rules_of_another_kind_of_detector_are_refused():
    with pytest.raises(ValueError, match="roi standard and features fpn, the preset has roi cascade and features fpn"):
        describe(weights(SMALL), Framework.DETECTRON2, configured({"roi": RoIKind.CASCADE}))
    single = weights(configured({"features": FeatureKind.DC5}))
    with pytest.raises(ValueError, match=r"stride 32 \(c5\) or dilated \(dc5\), and the preset has features fpn"):
        describe(single, Framework.DETECTRON2, SMALL)
