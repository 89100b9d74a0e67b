"""Detectron2's model zoo."""

from collections.abc import Callable
from dataclasses import replace

from model.config import DetectorConfig, Norm, StrideIn
from model.presets.backbones import RESNEXT_32X8D_STD, deformable, from_scratch, resnet, resnext, resnext_32x8d
from model.presets.heads import (
    c4,
    dc5,
    detectron2_cascade,
    detectron2_single_map,
    with_keypoints,
    with_norm,
    with_normalised_heads,
    without_masks,
)
from model.presets.rules import detectron2


def _c4(depth: int) -> DetectorConfig:
    return detectron2_single_map(c4(resnet(detectron2(), depth)))


def _dc5(depth: int) -> DetectorConfig:
    return detectron2_single_map(dc5(resnet(detectron2(), depth)))


def _fpn(depth: int) -> DetectorConfig:
    return resnet(detectron2(), depth)


def _x101() -> DetectorConfig:
    return resnext_32x8d(detectron2())


def _keypoints(config: DetectorConfig) -> DetectorConfig:
    """Plain L1 costs keypoint AP (not box AP); more proposals make up for a defect of Detectron that helped."""
    changed = without_masks(with_keypoints(config))
    return replace(
        changed,
        box=replace(changed.box, smooth_l1_beta=0.5),
        rpn=replace(changed.rpn, post_nms_train=1500),
    )


def _detectron_rules(config: DetectorConfig) -> DetectorConfig:
    """Detectron2's comparison with Detectron: smooth L1, RoIAlign unaligned with two samples a bin and axis."""
    return replace(
        config,
        rpn=replace(config.rpn, smooth_l1_beta=0.1111),
        box=replace(config.box, smooth_l1_beta=1.0),
        pooler=replace(config.pooler, aligned=False, sampling_ratio=2),
    )


def _norm(norm: Norm, stride_in: StrideIn) -> DetectorConfig:
    changed = with_norm(detectron2(), norm)
    return replace(changed, backbone=replace(changed.backbone, stride_in=stride_in))


def _scratch(norm: Norm) -> DetectorConfig:
    """The models of the longest schedule divide by the pictures' own deviation too."""
    changed = from_scratch(_norm(norm, StrideIn.CONV_3X3))
    return replace(changed, picture=replace(changed.picture, std=RESNEXT_32X8D_STD))


def _large_scale_jitter(depth: int) -> DetectorConfig:
    changed = from_scratch(with_norm(resnet(detectron2(), depth), Norm.SYNC))
    return replace(changed, rpn=replace(changed.rpn, num_convs=2))


def _x152() -> DetectorConfig:
    """ResNeXt-152 32 x 8d of Detectron, trained on ImageNet-5k; the eight mask convolutions and the head are normed."""
    backbone = deformable(resnext(detectron2(), groups=32, group_width=8, depth=152))
    changed = with_normalised_heads(detectron2_cascade(backbone), Norm.GROUP)
    return replace(changed, mask=replace(changed.mask, num_convs=8))


def _agnostic() -> DetectorConfig:
    base = detectron2()
    return replace(base, box=replace(base.box, class_agnostic=True), mask=replace(base.mask, class_agnostic=True))


DETECTRON2: dict[str, Callable[[], DetectorConfig]] = {
    "detectron2_faster_rcnn_r50_c4": lambda: without_masks(_c4(50)),
    "detectron2_faster_rcnn_r50_dc5": lambda: without_masks(_dc5(50)),
    "detectron2_faster_rcnn_r50_fpn": lambda: without_masks(_fpn(50)),
    "detectron2_faster_rcnn_r101_c4": lambda: without_masks(_c4(101)),
    "detectron2_faster_rcnn_r101_dc5": lambda: without_masks(_dc5(101)),
    "detectron2_faster_rcnn_r101_fpn": lambda: without_masks(_fpn(101)),
    "detectron2_faster_rcnn_x101_32x8d_fpn": lambda: without_masks(_x101()),
    "detectron2_mask_rcnn_r50_c4": lambda: _c4(50),
    "detectron2_mask_rcnn_r50_dc5": lambda: _dc5(50),
    "detectron2_mask_rcnn_r50_fpn": lambda: _fpn(50),
    "detectron2_mask_rcnn_r101_c4": lambda: _c4(101),
    "detectron2_mask_rcnn_r101_dc5": lambda: _dc5(101),
    "detectron2_mask_rcnn_r101_fpn": lambda: _fpn(101),
    "detectron2_mask_rcnn_x101_32x8d_fpn": _x101,
    "detectron2_keypoint_rcnn_r50_fpn": lambda: _keypoints(_fpn(50)),
    "detectron2_keypoint_rcnn_r101_fpn": lambda: _keypoints(_fpn(101)),
    "detectron2_keypoint_rcnn_x101_32x8d_fpn": lambda: _keypoints(_x101()),
    "detectron2_mask_rcnn_r50_fpn_dconv_c3_c5": lambda: deformable(_fpn(50)),
    "detectron2_mask_rcnn_r50_fpn_cls_agnostic": _agnostic,
    "detectron2_cascade_mask_rcnn_r50_fpn": lambda: detectron2_cascade(_fpn(50)),
    "detectron2_mask_rcnn_r50_fpn_gn": lambda: _norm(Norm.GROUP, StrideIn.CONV_3X3),
    "detectron2_mask_rcnn_r50_fpn_syncbn": lambda: _norm(Norm.SYNC, StrideIn.FIRST_1X1),
    "detectron2_scratch_mask_rcnn_r50_fpn_gn": lambda: from_scratch(_norm(Norm.GROUP, StrideIn.CONV_3X3)),
    "detectron2_scratch_mask_rcnn_r50_fpn_gn_std": lambda: _scratch(Norm.GROUP),
    "detectron2_scratch_mask_rcnn_r50_fpn_syncbn_std": lambda: _scratch(Norm.SYNC),
    "detectron2_cascade_mask_rcnn_x152_32x8d_fpn_in5k_gn_dconv": _x152,
    "detectron2_mask_rcnn_r50_fpn_lsj": lambda: _large_scale_jitter(50),
    "detectron2_mask_rcnn_r101_fpn_lsj": lambda: _large_scale_jitter(101),
    "detectron2_faster_rcnn_r50_fpn_noaug": lambda: without_masks(_detectron_rules(_fpn(50))),
    "detectron2_mask_rcnn_r50_fpn_noaug": lambda: _detectron_rules(_fpn(50)),
    "detectron2_keypoint_rcnn_r50_fpn_detectron1": lambda: _detectron_rules(_keypoints(_fpn(50))),
}
