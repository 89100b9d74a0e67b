"""Rules that weights do not tell: from the file's own metadata, a preset, or a question in one line."""

import dataclasses
import json
import textwrap

import pytest
import torch

from model.build import build_detector
from model.config import ChannelOrder, DetectorConfig, FeatureKind, Norm, RoIKind, StrideIn
from model.convert import Framework, describe, observe
from model.convert.mmdetection_config import lay_over, parse, style
from model.convert.origins import Evidence, rules_of
from model.presets import heads, rules
from model.presets.detectron2 import DETECTRON2
from model.presets.torchvision import TORCHVISION
from model.settings import override, to_dict

ZOO = {"__author__": "Detectron2 Model Zoo"}


def weights(config):
    with torch.device("meta"):
        return build_detector(config).state_dict()


def imported(config, framework, **evidence):
    """The configuration found for the weights of `config`."""
    state = weights(config)
    base, _ = rules_of(framework, observe(state, framework), Evidence(**evidence))
    return describe(state, framework, base)[0]


@pytest.mark.parametrize(
    "name",
    [
        "detectron2_mask_rcnn_r50_c4",
        "detectron2_mask_rcnn_r101_dc5",
        "detectron2_mask_rcnn_r50_fpn",
        "detectron2_faster_rcnn_x101_32x8d_fpn",
    ],
)
def test_files_of_detectron2s_zoo_get_its_rules(name):
    wanted = DETECTRON2[name]()
    found = imported(wanted, Framework.DETECTRON2, metadata=ZOO)
    if not wanted.mask.enabled:  # the absent head's settings are of no account
        found = dataclasses.replace(found, mask=wanted.mask)
    assert found == wanted


def test_keypoints_and_cascades_of_detectron2s_zoo():
    base = rules.detectron2()
    keypoints = imported(heads.without_masks(heads.with_keypoints(base)), Framework.DETECTRON2, metadata=ZOO)
    assert (keypoints.box.smooth_l1_beta, keypoints.rpn.post_nms_train, keypoints.num_classes) == (0.5, 1500, 1)
    cascade = heads.detectron2_cascade(base)
    assert imported(cascade, Framework.DETECTRON2, metadata=ZOO) == cascade


@pytest.mark.parametrize(
    ("changes", "metadata"),
    [({}, {}), ({}, {"__author__": "me"}), ({"backbone.norm": Norm.GROUP}, ZOO), ({"backbone.depth": 152}, {})],
)
def test_other_files_of_detectron2_ask_for_a_preset(changes, metadata):
    config = rules.detectron2()
    for path, value in changes.items():
        config = override(config, path, value)
    with pytest.raises(ValueError, match=r"Detectron2 do not say where the stride is, .*: give --preset"):
        imported(config, Framework.DETECTRON2, metadata=metadata)


def test_a_preset_answers_everything():
    config = rules.detectron2()
    assert imported(config, Framework.DETECTRON2, preset=config) == config


def test_torchvisions_published_files_are_known_by_their_hash():
    config = TORCHVISION["torchvision_mask_rcnn_r50_fpn"]()
    found = imported(config, Framework.TORCHVISION, sha256="bf2d0c1e" + "0" * 56)
    assert found == override(config, "backbone.norm_eps", 0.0)
    with pytest.raises(ValueError, match=r"do not say their epsilon: give --norm-eps 0 .* or --norm-eps 1e-5 "):
        imported(config, Framework.TORCHVISION, sha256="0" * 64)
    assert imported(config, Framework.TORCHVISION, norm_eps=1e-5) == override(config, "backbone.norm_eps", 1e-5)


def test_torchvisions_version_2_needs_no_question():
    config = TORCHVISION["torchvision_mask_rcnn_r50_fpn_v2"]()
    # Whether statistics were shared by workers leaves no trace in weights, and makes no difference to detections.
    assert imported(config, Framework.TORCHVISION) == heads.with_norm(config, Norm.BATCH)


def test_what_maskray_wrote_itself_is_known_exactly():
    config = override(rules.mmdetection_caffe(), "box.nms_iou", 0.37)
    text = json.dumps(to_dict(config))
    assert imported(config, Framework.MMDETECTION, metadata={"meta": {"maskray": text}}) == config
    assert imported(config, Framework.MMDETECTION, metadata={"maskray": text}) == config
    for wrong in ("{", "[]", '{"unknown": 1}', '{"num_classes": "x"}'):
        with pytest.raises(ValueError, match="own settings do not fit this version of maskray"):
            imported(config, Framework.MMDETECTION, metadata={"maskray": wrong})


MM2 = textwrap.dedent("""
    model = dict(
        type='MaskRCNN',
        backbone=dict(type='ResNet', depth=50, frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False),
                      norm_eval=True, style='caffe'),
        neck=dict(type='FPN'),
        rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.25)),
        roi_head=dict(
            bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False)),
            bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.5, 0.5]), loss_bbox=dict(type='L1Loss'))),
        test_cfg=dict(rcnn=dict(score_thr=0.07, nms=dict(type='nms', iou_threshold=0.6), max_per_img=50)))
    train_cfg = dict(rpn=dict(allowed_border=0), rcnn=dict(sampler=dict(num=64)))
    img_norm_cfg = dict(mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 2.0], to_rgb=False)
    test_pipeline = [dict(type='LoadImageFromFile'),
                     dict(type='MultiScaleFlipAug', img_scale=(700, 400), transforms=[dict(type='Resize')])]
    optimizer = build(lr=1)
    work_dir = './x' if True else None
""")
MM3 = textwrap.dedent("""
    model = dict(
        data_preprocessor=dict(mean=[10, 20, 30], std=[4, 5, 6], bgr_to_rgb=True, pad_size_divisor=64),
        backbone=dict(style='pytorch', norm_cfg=dict(type='SyncBN', requires_grad=True), norm_eval=False),
        roi_head=dict(bbox_head=[dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.5))] * 1,
                      semantic_head=dict(loss_seg=dict(ignore_index=0, loss_weight=0.3))))
    test_pipeline = [{'type': 'Resize', 'scale': (2000, 1500), 'keep_ratio': True}]
""")


def meta(text):
    return {"meta": {"config": text}}


def test_a_config_of_mmdetection_2_in_the_file():
    config = imported(rules.mmdetection_caffe(), Framework.MMDETECTION, metadata=meta(MM2))
    assert config.picture == dataclasses.replace(
        rules.mmdetection_caffe().picture,
        mean=(1.0, 2.0, 3.0),
        std=(1.0, 1.0, 2.0),
        long_edge_px=700,
        short_edge_px=400,
    )
    assert (config.backbone.stride_in, config.backbone.norm) == (StrideIn.FIRST_1X1, Norm.FROZEN)
    assert (config.rpn.smooth_l1_beta, config.rpn.border_px) == (0.25, 0)
    assert (config.pooler.sampling_ratio, config.pooler.aligned) == (2, False)
    box = config.box
    assert (box.score_threshold, box.nms_iou, box.max_detections, box.samples) == (0.07, 0.6, 50, 64)
    assert (box.smooth_l1_beta, box.delta_weights) == (0.0, (10.0, 10.0, 2.0, 2.0))


def test_a_config_of_mmdetection_3_in_the_file():
    semantic = dataclasses.replace(heads.COCO_STUFF, num_classes=7)
    detector = override(heads.htc(rules.mmdetection(), semantic), "backbone.norm", Norm.BATCH)
    config = imported(detector, Framework.MMDETECTION, metadata=meta(MM3))
    assert config.picture.mean == (10.0, 20.0, 30.0)
    assert config.picture.channel_order is ChannelOrder.RGB
    assert (config.picture.size_divisor, config.picture.long_edge_px, config.picture.short_edge_px) == (64, 2000, 1500)
    assert config.backbone.norm is Norm.SYNC
    assert (config.semantic.ignore_label, config.semantic.loss_weight, config.semantic.num_classes) == (0, 0.3, 7)
    assert (config.roi, config.box.score_threshold) == (RoIKind.HTC, 0.001)
    # What is no literal is unknown, and leaves the rule as it was.
    assert config.box.smooth_l1_beta == 1.0


@pytest.mark.parametrize(
    ("backbone", "features"),
    [
        ("style='caffe', strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)", FeatureKind.DC5),
        ("style='caffe'", FeatureKind.C5),
    ],
)
def test_the_config_tells_whether_a_single_map_is_dilated(backbone, features):
    detector = dataclasses.replace(rules.mmdetection_caffe(), features=FeatureKind.DC5)
    text = f"model = dict(backbone=dict({backbone}))"
    assert imported(detector, Framework.MMDETECTION, metadata=meta(text)).features is features


def test_mmdetection_without_a_config_asks():
    for metadata in ({}, {"meta": {}}, {"meta": {"config": 3}}, meta("model = dict(backbone=dict(style='other'))")):
        with pytest.raises(ValueError, match=r"do not say their style \(pytorch or caffe\), .*: give --preset"):
            imported(rules.mmdetection(), Framework.MMDETECTION, metadata=metadata)


@pytest.mark.parametrize(
    "text", ["model = dict(", "\0", "x = " + "(" * 5000 + ")" * 5000, "x = " + "-" * 100_000 + "1", "x" * 1_000_001]
)
def test_a_text_that_is_no_config_is_refused(text):
    with pytest.raises(ValueError, match=r"config (has 1000001 characters|is not an MMDetection config)"):
        parse(text)


def test_a_config_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parse(
        "import os\nx = os.mkdir('run')\ny = dict(a=__import__('os').mkdir('run'), **dict(b=1), c=-2)\nz = [1, 'a']"
    )
    assert found == {"x": None, "y": {"a": None, "c": -2}, "z": [1, "a"]}
    assert not (tmp_path / "run").exists()


def test_values_of_another_kind_mean_nothing():
    text = textwrap.dedent("""
        model = dict(
            backbone=dict(style=3, frozen_stages='a', norm_eval=1),
            rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta='x')),
            roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0, 1, 1, 1]))),
            test_cfg=dict(rcnn=[], rpn=3))
        img_norm_cfg = dict(mean=[1, 2], std='x', to_rgb=None)
        test_pipeline = [dict(img_scale=[(1, 2)]), dict(scale=(0, 5))]
    """)
    base = rules.mmdetection()
    assert style(parse(text)) is None
    assert lay_over(base, parse(text)) == (base, ())
    with pytest.raises(ValueError, match="score_threshold"):
        lay_over(base, parse("model = dict(test_cfg=dict(rcnn=dict(score_thr=7.0)))"))
    assert isinstance(base, DetectorConfig)
