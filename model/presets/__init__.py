"""Named detectors. `rules` holds what each framework does; a variant is a function that changes a few fields.

`backbones` and `heads` hold those functions; the other modules name what the zoos publish, `DETECTORS` all of it.
"""

from model.presets.named import DETECTORS
from model.presets.own import mask_rcnn_r50_fpn, small_mask_rcnn_r18_fpn
from model.presets.torchvision import (
    torchvision_keypoint_rcnn_r50_fpn,
    torchvision_mask_rcnn_r50_fpn,
    torchvision_mask_rcnn_r50_fpn_v2,
)

__all__ = [
    "DETECTORS",
    "mask_rcnn_r50_fpn",
    "small_mask_rcnn_r18_fpn",
    "torchvision_keypoint_rcnn_r50_fpn",
    "torchvision_mask_rcnn_r50_fpn",
    "torchvision_mask_rcnn_r50_fpn_v2",
]
