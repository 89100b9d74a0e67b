"""maskray's own runs; nothing is published of them."""

from pipelines.optim import Algorithm, OptimConfig, Schedule
from pipelines.presets.preset import OURS, Preset, Published, Recipe
from pipelines.recipes import detectron2_steps

_NOTHING = Published(OURS)
_1X = Recipe("1x", detectron2_steps(1))
_GENERATED_SHAPES = Recipe(
    "400 steps",
    OptimConfig(
        algorithm=Algorithm.ADAMW,
        learning_rate=2e-3,
        batch=8,
        steps=400,
        weight_decay=0.05,
        warmup_steps=20,
        warmup_factor=0.1,
        schedule=Schedule.COSINE,
        milestones=(),
        clip_norm=10.0,
    ),
)

OWN = (
    Preset("small_mask_rcnn_r18_fpn", "small_mask_rcnn_r18_fpn", _GENERATED_SHAPES, _NOTHING, init="none"),
    Preset("mask_rcnn_r18_fpn_1x", "mask_rcnn_r18_fpn_from_scratch", _1X, _NOTHING, init="none"),
    Preset("mask_rcnn_r34_fpn_1x", "mask_rcnn_r34_fpn_from_scratch", _1X, _NOTHING, init="none"),
    Preset("mask_rcnn_r50_fpn_1x", "mask_rcnn_r50_fpn", _1X, _NOTHING),
    Preset("mask_rcnn_r101_fpn_1x", "mask_rcnn_r101_fpn", _1X, _NOTHING),
)
