"""MMDetection's Mask R-CNN, Cascade Mask R-CNN, HTC and deformable models."""

from collections.abc import Callable
from dataclasses import replace

from model.config import DetectorConfig
from model.presets.backbones import deformable, resnet, resnext, resnext_32x8d
from model.presets.heads import COCO_STUFF, htc, htc_without_semantic, mmdetection_c4, mmdetection_cascade
from model.presets.rules import mmdetection, mmdetection_caffe


def _caffe(depth: int) -> DetectorConfig:
    return resnet(mmdetection_caffe(), depth)


def _pytorch(depth: int) -> DetectorConfig:
    return resnet(mmdetection(), depth)


def _x101_32x4d() -> DetectorConfig:
    return resnext(mmdetection(), groups=32, group_width=4)


def _x101_64x4d() -> DetectorConfig:
    return resnext(mmdetection(), groups=64, group_width=4)


def _x101_32x8d() -> DetectorConfig:
    return resnext_32x8d(mmdetection())


def _version_1() -> DetectorConfig:
    """The rules of version 1 in version 2's code: smooth L1 and the unaligned RoIAlign."""
    base = mmdetection_caffe()
    return replace(
        base,
        rpn=replace(base.rpn, smooth_l1_beta=1 / 9),
        box=replace(base.box, smooth_l1_beta=1.0),
        pooler=replace(base.pooler, aligned=False, sampling_ratio=2),
    )


MMDETECTION: dict[str, Callable[[], DetectorConfig]] = {
    "mmdet_mask_rcnn_r50_caffe_c4": lambda: mmdetection_c4(_caffe(50)),
    "mmdet_mask_rcnn_r50_caffe_fpn": lambda: _caffe(50),
    "mmdet_mask_rcnn_r50_caffe_fpn_v1": _version_1,
    "mmdet_mask_rcnn_r101_caffe_fpn": lambda: _caffe(101),
    "mmdet_mask_rcnn_r18_fpn": lambda: _pytorch(18),
    "mmdet_mask_rcnn_r50_fpn": lambda: _pytorch(50),
    "mmdet_mask_rcnn_r101_fpn": lambda: _pytorch(101),
    "mmdet_mask_rcnn_x101_32x4d_fpn": _x101_32x4d,
    "mmdet_mask_rcnn_x101_64x4d_fpn": _x101_64x4d,
    "mmdet_mask_rcnn_x101_32x8d_fpn": _x101_32x8d,
    "mmdet_mask_rcnn_r50_fpn_dconv_c3_c5": lambda: deformable(_pytorch(50)),
    "mmdet_mask_rcnn_r50_fpn_mdconv_c3_c5": lambda: deformable(_pytorch(50), modulated=True),
    "mmdet_mask_rcnn_r101_fpn_dconv_c3_c5": lambda: deformable(_pytorch(101)),
    "mmdet_cascade_mask_rcnn_r50_caffe_fpn": lambda: mmdetection_cascade(_caffe(50)),
    "mmdet_cascade_mask_rcnn_r50_fpn": lambda: mmdetection_cascade(_pytorch(50)),
    "mmdet_cascade_mask_rcnn_r101_caffe_fpn": lambda: mmdetection_cascade(_caffe(101)),
    "mmdet_cascade_mask_rcnn_r101_fpn": lambda: mmdetection_cascade(_pytorch(101)),
    "mmdet_cascade_mask_rcnn_x101_32x4d_fpn": lambda: mmdetection_cascade(_x101_32x4d()),
    "mmdet_cascade_mask_rcnn_x101_64x4d_fpn": lambda: mmdetection_cascade(_x101_64x4d()),
    "mmdet_cascade_mask_rcnn_x101_32x8d_fpn": lambda: mmdetection_cascade(_x101_32x8d()),
    "mmdet_cascade_mask_rcnn_r50_fpn_dconv_c3_c5": lambda: mmdetection_cascade(deformable(_pytorch(50))),
    "mmdet_cascade_mask_rcnn_r101_fpn_dconv_c3_c5": lambda: mmdetection_cascade(deformable(_pytorch(101))),
    "mmdet_cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3_c5": lambda: mmdetection_cascade(deformable(_x101_32x4d())),
    "mmdet_htc_without_semantic_r50_fpn": lambda: htc_without_semantic(_pytorch(50)),
    "mmdet_htc_r50_fpn": lambda: htc(_pytorch(50), COCO_STUFF),
    "mmdet_htc_r101_fpn": lambda: htc(_pytorch(101), COCO_STUFF),
    "mmdet_htc_x101_32x4d_fpn": lambda: htc(_x101_32x4d(), COCO_STUFF),
    "mmdet_htc_x101_64x4d_fpn": lambda: htc(_x101_64x4d(), COCO_STUFF),
    "mmdet_htc_x101_64x4d_fpn_dconv_c3_c5": lambda: htc(deformable(_x101_64x4d()), COCO_STUFF),
}
