"""The detectors of the paper (He et al., Mask R-CNN, version 3), and Detectron's, which followed from them.

The paper trains in stages: first a proposal network, then a detector on its proposals, which `train --rpn-from` does.
Without it both are trained at once (the paper's own "end-to-end", appendix B).
"""

from collections.abc import Callable
from dataclasses import replace

from model.config import (
    DetectorConfig,
    MaskActivation,
    MaskKind,
    PoolerConfig,
    PoolOperation,
    PoolReduction,
)
from model.presets.backbones import resnet, resnext
from model.presets.heads import c4, c5, with_keypoints, without_masks
from model.presets.rules import detectron


def _fpn(depth: int) -> DetectorConfig:
    """512 RoIs a picture, 1,000 proposals at test time, NMS at 0.3."""
    base = resnet(detectron(), depth)
    return replace(base, box=replace(base.box, nms_iou=0.3))


def _x101() -> DetectorConfig:
    """The paper's ResNeXt is 64 x 4d, by a footnote of its other version."""
    return resnext(_fpn(101), groups=64, group_width=4)


def _c4(depth: int) -> DetectorConfig:
    """64 RoIs a picture, 300 proposals at test time; the fifth stage leaves a crop of 7 x 7 its size."""
    base = c4(_fpn(depth))
    return replace(
        base,
        res5_stride=1,
        pooler=replace(base.pooler, box_size=7),
        rpn=replace(base.rpn, post_nms_test=300),
        box=replace(base.box, samples=64),
    )


def _c5() -> DetectorConfig:
    return c5(_fpn(50))


def _pooled(config: DetectorConfig, operation: PoolOperation, reduction: PoolReduction) -> DetectorConfig:
    pooler: PoolerConfig = replace(config.pooler, operation=operation, reduction=reduction)
    return replace(config, pooler=pooler)


def _roi_pool(config: DetectorConfig) -> DetectorConfig:
    return _pooled(config, PoolOperation.POOL, PoolReduction.MAX)


def _softmax() -> DetectorConfig:
    base = _c4(50)
    return replace(base, mask=replace(base.mask, activation=MaskActivation.SOFTMAX))


def _agnostic() -> DetectorConfig:
    base = _c4(50)
    return replace(base, mask=replace(base.mask, class_agnostic=True))


def _perceptron(hidden_layers: int) -> DetectorConfig:
    base = _fpn(50)
    return replace(base, mask=replace(base.mask, kind=MaskKind.MLP, hidden_layers=hidden_layers))


def _person(config: DetectorConfig) -> DetectorConfig:
    """Persons; the paper's keypoint experiments suppress at 0.5."""
    return replace(config, num_classes=1, box=replace(config.box, nms_iou=0.5))


def _keypoints(config: DetectorConfig) -> DetectorConfig:
    return without_masks(with_keypoints(_person(config)))


def _updated(config: DetectorConfig) -> DetectorConfig:
    """The baseline of appendix B: NMS at 0.5."""
    return replace(config, box=replace(config.box, nms_iou=0.5))


def _x152(non_local: bool = False) -> DetectorConfig:
    changed = resnext(_updated(_fpn(101)), groups=32, group_width=8, depth=152)
    return replace(changed, backbone=replace(changed.backbone, non_local=non_local))


def _detectron_x101() -> DetectorConfig:
    return resnext(detectron(), groups=64, group_width=4)


PAPER: dict[str, Callable[[], DetectorConfig]] = {
    "paper_mask_rcnn_r50_c4": lambda: _c4(50),
    "paper_mask_rcnn_r101_c4": lambda: _c4(101),
    "paper_mask_rcnn_r50_fpn": lambda: _fpn(50),
    "paper_mask_rcnn_r101_fpn": lambda: _fpn(101),
    "paper_mask_rcnn_x101_64x4d_fpn": _x101,
    "paper_mask_rcnn_r50_c4_softmax": _softmax,
    "paper_mask_rcnn_r50_c4_class_agnostic": _agnostic,
    "paper_mask_rcnn_r50_c4_roipool_max": lambda: _roi_pool(_c4(50)),
    "paper_mask_rcnn_r50_c4_roiwarp_max": lambda: _pooled(_c4(50), PoolOperation.WARP, PoolReduction.MAX),
    "paper_mask_rcnn_r50_c4_roiwarp_ave": lambda: _pooled(_c4(50), PoolOperation.WARP, PoolReduction.AVERAGE),
    "paper_mask_rcnn_r50_c4_roialign_max": lambda: _pooled(_c4(50), PoolOperation.ALIGN, PoolReduction.MAX),
    "paper_mask_rcnn_r50_c5": _c5,
    "paper_mask_rcnn_r50_c5_roipool": lambda: _roi_pool(_c5()),
    "paper_mask_rcnn_r50_fpn_mlp_2": lambda: _perceptron(2),
    "paper_mask_rcnn_r50_fpn_mlp_3": lambda: _perceptron(3),
    "paper_faster_rcnn_r101_fpn": lambda: without_masks(_fpn(101)),
    "paper_person_faster_rcnn_r50_fpn": lambda: without_masks(_person(_fpn(50))),
    "paper_person_mask_rcnn_r50_fpn": lambda: _person(_fpn(50)),
    "paper_keypoint_rcnn_r50_fpn": lambda: _keypoints(_fpn(50)),
    "paper_keypoint_mask_rcnn_r50_fpn": lambda: with_keypoints(_person(_fpn(50))),
    "paper_keypoint_rcnn_r50_fpn_roipool": lambda: _roi_pool(_keypoints(_fpn(50))),
    "paper_keypoint_rcnn_r101_fpn": lambda: _keypoints(_fpn(101)),
    "paper_keypoint_rcnn_x101_64x4d_fpn": lambda: _keypoints(_x101()),
    "paper_enhanced_mask_rcnn_x101_64x4d_fpn": lambda: _updated(_x101()),
    "paper_enhanced_mask_rcnn_x152_32x8d_fpn": _x152,
    "paper_enhanced_mask_rcnn_x152_32x8d_fpn_nl": lambda: _x152(non_local=True),
    "detectron_mask_rcnn_r50_c4": lambda: c4(detectron()),
    "detectron_mask_rcnn_r50_fpn": detectron,
    "detectron_mask_rcnn_r101_fpn": lambda: resnet(detectron(), 101),
    "detectron_mask_rcnn_x101_64x4d_fpn": _detectron_x101,
}
