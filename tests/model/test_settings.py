"""Configs as plain values and back, and every field of every preset by its dotted name."""

import dataclasses
import enum
import json
import math
import re

import pytest

from model.config import DetectorConfig, LevelRule, Norm, RpnConfig
from model.presets import DETECTORS
from model.settings import from_dict, override, to_dict
from pipelines.config import TrainConfig
from pipelines.presets import PRESETS

ALL = {
    **{f"detector-{name}": make for name, make in DETECTORS.items()},
    **{f"training-{name}": make for name, make in PRESETS.items()},
}
# Presets share their fields; these differ most.
CONFIGS = {
    name: ALL[name]
    for name in (
        "detector-torchvision_mask_rcnn_r50_fpn",
        "detector-detectron2_mask_rcnn_r50_c4",
        "detector-nuimages_htc_x101_64x4d_fpn_dconv_c3_c5",
        "training-small_mask_rcnn_r18_fpn",
        "training-paper_keypoint_mask_rcnn_r50_fpn",
        "training-mmdet_cascade_mask_rcnn_r50_fpn_ms_3x",
        "training-mmdet_mask_rcnn_r50_fpn_amp_lsj_200e",
    )
}


def leaves(config, prefix=""):
    """(dotted name, value) of every field that is not a dataclass."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


# Fields that the rule by type below cannot change: choices, and fields that must agree with another.
SPECIAL = {
    "backbone.depth": lambda value: 34 if value != 34 else 18,
    "backbone.frozen_stages": lambda value: 5 - value,
    "backbone.deformable_stages": lambda value: [4, 5],
    "backbone.norm": lambda value: "group" if value is not Norm.GROUP else "batch",
    "res5_stride": lambda value: 3 - value,
    "keypoint.flip_pairs": lambda value: [[0, 1]],
    "keypoint.num_keypoints": lambda value: value + 1,
    "semantic.ignore_label": lambda value: 0 if value else 255,
    "cascade.delta_weights": lambda value: [[2 * factor for factor in stage] for stage in value],
    "picture.short_edge_px": lambda value: value - 1,
    "train": lambda value: ["a", "b"],
    "execution.workers": lambda value: 2,
    "optim.batch": lambda value: 2 * value,
    "anchors.sizes_px": lambda value: [size + 1 for size in value],
    "optim.milestones": lambda value: [*value, 10**9],
    "augment.short_edges_px": lambda value: [10, 20],
    "augment.long_edges_px": lambda value: [2000, 2100],
    "augment.jitter": lambda value: [0.2, 1.5],
    "sampling.classes": lambda value: ["dog"],
}
# Fields that need another one first.
FIRST = {
    "ratio": ("train", ["a", "b"]),
    "augment.jitter": ("augment.crop_px", 640),
    "pseudo.augment.jitter": ("pseudo.augment.crop_px", 640),
}

CHANGES = {  # bool before int: it is one
    bool: lambda value: not value,
    enum.Enum: lambda value: next_kind(value).value,
    int: lambda value: value + 1,
    float: lambda value: value / 2 if value else 0.25,
    tuple: lambda value: [item / 2 for item in value],
    str: lambda value: f"{value}x",
}


def next_kind(value):
    kinds = list(type(value))
    return kinds[(kinds.index(value) + 1) % len(kinds)]


def changed(path, value):
    """Another legal value of a field, as plain JSON."""
    path = path.removeprefix("detector.").removeprefix("pseudo.")
    if path in SPECIAL:
        return SPECIAL[path](value)
    for kind, change in CHANGES.items():
        if isinstance(value, kind):
            return change(value)
    raise AssertionError(f"no rule for {path}")


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_plain_values_are_json_and_come_back_as_they_were(make):
    config = make()
    values = to_dict(config)
    assert from_dict(type(config), json.loads(json.dumps(values, allow_nan=False))) == config


def assert_settable(config, path, value):
    """The value arrives at the field, and nowhere else."""
    new = override(config, path, value)
    old = dict(leaves(config))
    plain = to_dict(new)
    for name in path.split("."):
        plain = plain[name]
    assert plain == value, path
    only_kind = isinstance(old[path], enum.Enum) and len(type(old[path])) == 1
    differing = [name for name, value in leaves(new) if value != old[name]]
    assert differing == ([] if only_kind else [path])
    assert override(new, path, old[path]) == config, path
    assert from_dict(type(config), to_dict(new)) == new, path


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
def test_each_field_can_be_set_by_its_dotted_name(make):
    config = make()
    for path, value in leaves(config):
        start = override(config, *FIRST[path]) if path in FIRST else config
        assert_settable(start, path, [2, 1] if path == "ratio" else changed(path, value))


@pytest.mark.parametrize("make", CONFIGS.values(), ids=CONFIGS)
def test_values_of_another_type_are_refused_by_the_field_s_name(make):
    config = make()
    for path, _ in leaves(config):
        name = path.split(".")[-1]
        for value in (object(), None, {}):
            with pytest.raises((TypeError, ValueError), match=rf"{name} is .*got {re.escape(repr(value))}"):
                override(config, path, value)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        pytest.param("rnp.nms_iou", r"DetectorConfig has no field 'rnp'; it has \['num_classes',", id="first-part"),
        pytest.param("rpn.nms", "RpnConfig has no field 'nms'; it has .*'nms_iou'", id="last-part"),
        pytest.param("", "DetectorConfig has no field ''", id="empty"),
        pytest.param("rpn.nms_iou ", "RpnConfig has no field 'nms_iou '", id="blank"),
        pytest.param("rpn.__class__", "RpnConfig has no field '__class__'", id="dunder"),
        pytest.param("rpn.__post_init__", "RpnConfig has no field '__post_init__'", id="method"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_ones(path, match):
    with pytest.raises(KeyError, match=match):
        override(DetectorConfig(), path, 0.5)


@pytest.mark.parametrize("path", ["rpn.nms_iou.", "rpn.nms_iou.value", "backbone.norm.name", "anchors.ratios.0"])
def test_a_path_that_goes_on_below_a_plain_value_is_refused(path):
    with pytest.raises(KeyError, match=r"holds no fields"):
        override(DetectorConfig(), path, 0.5)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        pytest.param("rpn.samples", 1.5, r"RpnConfig.samples is int, got 1.5", id="float-for-int"),
        pytest.param("rpn.samples", "256", r"RpnConfig.samples is int, got '256'", id="text-for-int"),
        pytest.param("rpn.samples", True, r"RpnConfig.samples is int, got True", id="bool-for-int"),
        pytest.param("rpn.nms_iou", False, r"RpnConfig.nms_iou is float, got False", id="bool-for-float"),
        pytest.param("rpn.reassign_best", 1, r"RpnConfig.reassign_best is bool, got 1", id="int-for-bool"),
        pytest.param("anchors.sizes_px", 3.0, r"AnchorConfig.sizes_px is tuple", id="number-for-tuple"),
        pytest.param("anchors.sizes_px", "12345", r"AnchorConfig.sizes_px is tuple", id="text-for-tuple"),
        pytest.param("anchors.ratios", [1, "2"], r"AnchorConfig.ratios is float, got '2'", id="text-in-tuple"),
        pytest.param("picture.mean", [1.0, 2.0], r"PictureConfig.mean is tuple\[.*got \[1.0, 2.0\]", id="too-few"),
        pytest.param("picture.mean", [1.0] * 4, r"PictureConfig.mean is tuple", id="too-many"),
        pytest.param("rpn", 3, r"DetectorConfig.rpn is RpnConfig, got 3", id="number-for-config"),
        pytest.param("rpn", DetectorConfig(), r"DetectorConfig.rpn is RpnConfig", id="another-config"),
        pytest.param("rpn", {"samples": "x"}, r"DetectorConfig.rpn.samples is int, got 'x'", id="nested"),
        pytest.param("backbone.norm", "frosted", r"norm is one of \['none', .*\], got 'frosted'", id="enum-text"),
        pytest.param("backbone.norm", LevelRule.TORCHVISION, "norm is one of", id="another-enum"),
    ],
)
def test_wrong_types_say_what_is_wanted(path, value, match):
    with pytest.raises((TypeError, ValueError), match=match):
        override(DetectorConfig(), path, value)


OUT_OF_RANGE = {
    "num_classes": 0,
    "fpn_channels": 0,
    "picture.short_edge_px": 0,
    "picture.long_edge_px": 10,
    "picture.std": (1.0, 0.0, 1.0),
    "picture.size_divisor": 0,
    "backbone.depth": 20,
    "backbone.stem_channels": 0,
    "backbone.norm_eps": -1e-5,
    "backbone.frozen_stages": 6,
    "anchors.sizes_px": (1.0, -2.0),
    "res5_stride": 3,
    "box.num_fcs": -1,
    "cascade.ious": (0.5, 0.6, 1.7),
    "cascade.feature_gradient": -1.0,
    "keypoint.num_keypoints": 0,
    "keypoint.flip_pairs": ((1, 1),),
    "semantic.fusion_level": 5,
    "backbone.deformable_stages": (2,),
    "pooler.keypoint_size": 0,
    "anchors.ratios": (),
    "rpn.positive_iou": 0.2,
    "rpn.min_best_iou": 1.5,
    "rpn.smooth_l1_beta": -0.1,
    "rpn.min_size_px": -1.0,
    "rpn.negative_iou": 0.8,
    "rpn.positive_share": 1.1,
    "rpn.nms_iou": -0.1,
    "rpn.samples": 0,
    "rpn.pre_nms_train": 0,
    "rpn.pre_nms_test": 0,
    "rpn.post_nms_train": 0,
    "rpn.post_nms_test": 0,
    "pooler.box_size": 0,
    "pooler.mask_size": 0,
    "pooler.sampling_ratio": -1,
    "box.channels": 0,
    "box.samples": 0,
    "box.max_detections": 0,
    "box.positive_iou": 1.1,
    "box.positive_share": -0.1,
    "box.score_threshold": 1.5,
    "box.smooth_l1_beta": -0.1,
    "box.min_size_px": -1.0,
    "box.delta_weights": (10.0, 10.0, 5.0, 0.0),
    "box.nms_iou": 2.0,
    "mask.channels": 0,
    "mask.num_convs": -1,
    "mask.threshold": 1.0,
}


@pytest.mark.parametrize(("path", "value"), OUT_OF_RANGE.items(), ids=OUT_OF_RANGE)
def test_values_out_of_range_say_which_field(path, value):
    name = path if path != "rpn.positive_iou" else "rpn.negative_iou"  # one check of the pair, under one name
    with pytest.raises(ValueError, match=rf"^{name} must be "):
        override(DetectorConfig(), path, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_numbers_that_are_not_finite_are_refused(value):
    for path, old in leaves(TrainConfig()):
        if isinstance(old, float):
            with pytest.raises(ValueError, match=rf"{path.split('.')[-1]} must be finite, got {value}"):
                override(TrainConfig(), path, value)
    with pytest.raises(ValueError, match=r"PictureConfig\.mean must be finite"):
        override(DetectorConfig(), "picture.mean", [0.0, value, 0.0])


def test_integers_become_floats_and_lists_tuples():
    config = override(override(DetectorConfig(), "rpn.nms_iou", 1), "anchors.sizes_px", [1, 2, 3, 4, 5])
    assert type(config.rpn.nms_iou) is float
    assert config.anchors.sizes_px == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert all(type(size) is float for size in config.anchors.sizes_px)


def test_a_whole_part_can_be_replaced_and_defaults_fill_what_is_not_named():
    by_value = override(DetectorConfig(), "rpn", RpnConfig(samples=8))
    assert override(DetectorConfig(), "rpn", {"samples": 8}) == by_value
    assert from_dict(DetectorConfig, {"rpn": {"samples": 8}, "backbone": {"norm": Norm.GROUP}}).rpn.samples == 8


def test_unknown_names_in_plain_values_are_refused():
    with pytest.raises(KeyError, match="RpnConfig has no field 'sample'"):
        from_dict(TrainConfig, {"detector": {"rpn": {"sample": 8}}})
