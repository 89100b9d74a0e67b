"""torchvision's published weights."""

from pipelines.presets.preset import LARGE_SCALE_JITTER, SIX_EDGES, Preset, Published, Recipe
from pipelines.recipes import torchvision_epochs, torchvision_large_scale_jitter

_MASKS = Recipe("26 epochs", torchvision_epochs())
_MASKS_V2 = Recipe("400 epochs, LSJ", torchvision_large_scale_jitter(), LARGE_SCALE_JITTER)
_KEYPOINTS = Recipe("46 epochs, ms", torchvision_epochs(46, (36, 43)), SIX_EDGES)

TORCHVISION = (
    Preset(
        "torchvision_mask_rcnn_r50_fpn", "torchvision_mask_rcnn_r50_fpn", _MASKS,
        Published("torchvision", box_ap=37.9, mask_ap=34.6, note="evaluated with a norm epsilon of 0"),
    ),
    Preset(
        "torchvision_mask_rcnn_r50_fpn_v2", "torchvision_mask_rcnn_r50_fpn_v2", _MASKS_V2,
        Published("torchvision", box_ap=47.4, mask_ap=41.8),
    ),
    Preset(
        "torchvision_keypoint_rcnn_r50_fpn", "torchvision_keypoint_rcnn_r50_fpn", _KEYPOINTS,
        Published(
            "torchvision", box_ap=54.6, keypoint_ap=65.0,
            note="COCO_LEGACY, an older set, has 50.6 and 61.1; trained on persons with >= 10 visible keypoints",
        ),
    ),
)  # fmt: skip
