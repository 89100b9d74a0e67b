"""Detectors of street scenes: nuImages by MMDetection3D's rules, Cityscapes by three frameworks'."""

from collections.abc import Callable
from dataclasses import replace

from model.config import DetectorConfig
from model.presets.backbones import deformable, resnet, resnext
from model.presets.heads import NUIMAGES_SURFACES, htc, htc_without_semantic, mmdetection_cascade
from model.presets.rules import detectron, detectron2, mmdetection, mmdetection_caffe


def _nuimages(config: DetectorConfig) -> DetectorConfig:
    """Ten classes, and pictures of 1600 x 900 as they are.

    In the order of MMDetection3D from 0.7 on: car, truck, trailer, bus, construction_vehicle, bicycle, motorcycle,
    pedestrian, traffic_cone, barrier.
    """
    return replace(config, num_classes=10, picture=replace(config.picture, short_edge_px=900, long_edge_px=1600))


def _cityscapes(config: DetectorConfig) -> DetectorConfig:
    """Eight classes (person, rider, car, truck, bus, train, motorcycle, bicycle), and pictures of 2048 x 1024."""
    return replace(config, num_classes=8, picture=replace(config.picture, short_edge_px=1024, long_edge_px=2048))


def _mmdetection_cityscapes() -> DetectorConfig:
    config = mmdetection()
    return _cityscapes(replace(config, box=replace(config.box, smooth_l1_beta=1.0)))


def _paper_cityscapes() -> DetectorConfig:
    config = detectron()
    return _cityscapes(replace(config, box=replace(config.box, nms_iou=0.3)))


def _r50() -> DetectorConfig:
    return _nuimages(mmdetection())


def _r101() -> DetectorConfig:
    return resnet(_r50(), 101)


def _x101_32x4d() -> DetectorConfig:
    return resnext(_r50(), groups=32, group_width=4)


def _x101_64x4d_dconv() -> DetectorConfig:
    return deformable(resnext(_r50(), groups=64, group_width=4))


DRIVING: dict[str, Callable[[], DetectorConfig]] = {
    "nuimages_mask_rcnn_r50_fpn": _r50,
    "nuimages_mask_rcnn_r50_caffe_fpn": lambda: _nuimages(mmdetection_caffe()),
    "nuimages_mask_rcnn_r101_fpn": _r101,
    "nuimages_mask_rcnn_x101_32x4d_fpn": _x101_32x4d,
    "nuimages_cascade_mask_rcnn_r50_fpn": lambda: mmdetection_cascade(_r50()),
    "nuimages_cascade_mask_rcnn_r101_fpn": lambda: mmdetection_cascade(_r101()),
    "nuimages_cascade_mask_rcnn_x101_32x4d_fpn": lambda: mmdetection_cascade(_x101_32x4d()),
    "nuimages_htc_without_semantic_r50_fpn": lambda: htc_without_semantic(_r50()),
    "nuimages_htc_r50_fpn": lambda: htc(_r50(), NUIMAGES_SURFACES),
    "nuimages_htc_x101_64x4d_fpn_dconv_c3_c5": lambda: htc(_x101_64x4d_dconv(), NUIMAGES_SURFACES),
    "cityscapes_paper_mask_rcnn_r50_fpn": _paper_cityscapes,
    "cityscapes_detectron2_mask_rcnn_r50_fpn": lambda: _cityscapes(detectron2()),
    "cityscapes_mmdet_mask_rcnn_r50_fpn": _mmdetection_cityscapes,
}
