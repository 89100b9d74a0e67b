"""Detectron2's model zoo, with the figures of its MODEL_ZOO.md; eight V100 a model unless noted."""

import dataclasses

from pipelines.config import Precision
from pipelines.geometry import AugmentConfig
from pipelines.optim import OptimConfig
from pipelines.presets.preset import LARGE_SCALE_JITTER, SIX_EDGES, Preset, Published, Recipe
from pipelines.recipes import detectron2_large_scale_jitter, detectron2_steps

_1X = Recipe("1x", detectron2_steps(1), SIX_EDGES)
_3X = Recipe("3x", detectron2_steps(3), SIX_EDGES)
_1X_SINGLE_SCALE = Recipe("1x", detectron2_steps(1))
# Four times the batch, so a quarter of 810,000 steps.
_9X = Recipe(
    "9x",
    OptimConfig(learning_rate=0.08, batch=64, reference_batch=64, steps=202_500, milestones=(187_500, 197_500)),
    SIX_EDGES,
)
_X152 = Recipe(
    "50k",
    OptimConfig(learning_rate=0.16, batch=128, reference_batch=128, steps=50_000, milestones=(35_000, 45_000)),
    AugmentConfig(short_edges_px=(640, 864), long_edges_px=(1440,), ranges=True),
)


def _large_scale_jitter(epochs: int) -> Recipe:
    optim = detectron2_large_scale_jitter(epochs // 100) if epochs >= 100 else _half(detectron2_large_scale_jitter())
    return Recipe(f"{epochs}ep", optim, LARGE_SCALE_JITTER, Precision.FP16)


def _half(optim: OptimConfig) -> OptimConfig:
    milestones = tuple(milestone // 2 for milestone in optim.milestones)
    return dataclasses.replace(optim, steps=optim.steps // 2, milestones=milestones)


def _run(
    detector: str, recipe: Recipe, box: float | None, second: float | None = None, gb: float | None = None,
    seconds: float | None = None, init: str = "ImageNet", note: str = "",
) -> Preset:  # fmt: skip
    """A row of the zoo: box AP, AP of masks (keypoints where it finds them), memory, seconds a picture."""
    is_keypoint = "keypoint" in detector
    published = Published(
        "Detectron2",
        box_ap=box,
        mask_ap=None if is_keypoint else second,
        keypoint_ap=second if is_keypoint else None,
        memory_gb=gb,
        fps=1 / seconds if seconds else None,
        note=note,
    )
    return Preset(f"detectron2_{detector}_{recipe.schedule}", f"detectron2_{detector}", recipe, published, init)


DETECTRON2 = (
    _run("faster_rcnn_r50_c4", _1X, 35.7, None, 4.8, 0.102),
    _run("faster_rcnn_r50_dc5", _1X, 37.3, None, 5.0, 0.068),
    _run("faster_rcnn_r50_fpn", _1X, 37.9, None, 3.0, 0.038),
    _run("faster_rcnn_r50_c4", _3X, 38.4, None, 4.8, 0.104),
    _run("faster_rcnn_r50_dc5", _3X, 39.0, None, 5.0, 0.070),
    _run("faster_rcnn_r50_fpn", _3X, 40.2, None, 3.0, 0.038),
    _run("faster_rcnn_r101_c4", _3X, 41.1, None, 5.9, 0.139),
    _run("faster_rcnn_r101_dc5", _3X, 40.6, None, 6.1, 0.086),
    _run("faster_rcnn_r101_fpn", _3X, 42.0, None, 4.1, 0.051),
    _run("faster_rcnn_x101_32x8d_fpn", _3X, 43.0, None, 6.7, 0.098),
    _run("mask_rcnn_r50_c4", _1X, 36.8, 32.2, 5.2, 0.110),
    _run("mask_rcnn_r50_dc5", _1X, 38.3, 34.2, 6.5, 0.076),
    _run("mask_rcnn_r50_fpn", _1X, 38.6, 35.2, 3.4, 0.043),
    _run("mask_rcnn_r50_c4", _3X, 39.8, 34.4, 5.2, 0.111),
    _run("mask_rcnn_r50_dc5", _3X, 40.0, 35.9, 6.5, 0.076),
    _run("mask_rcnn_r50_fpn", _3X, 41.0, 37.2, 3.4, 0.043),
    _run("mask_rcnn_r101_c4", _3X, 42.6, 36.7, 6.3, 0.145),
    _run("mask_rcnn_r101_dc5", _3X, 41.9, 37.3, 7.6, 0.092),
    _run("mask_rcnn_r101_fpn", _3X, 42.9, 38.6, 4.6, 0.056),
    _run("mask_rcnn_x101_32x8d_fpn", _3X, 44.3, 39.5, 7.2, 0.103),
    _run("keypoint_rcnn_r50_fpn", _1X, 53.6, 64.0, 5.0, 0.072),
    _run("keypoint_rcnn_r50_fpn", _3X, 55.4, 65.5, 5.0, 0.066),
    _run("keypoint_rcnn_r101_fpn", _3X, 56.4, 66.1, 6.1, 0.076),
    _run("keypoint_rcnn_x101_32x8d_fpn", _3X, 57.3, 66.0, 8.7, 0.121),
    _run("mask_rcnn_r50_fpn_dconv_c3_c5", _1X, 41.5, 37.5, 3.5, 0.048),
    _run("mask_rcnn_r50_fpn_dconv_c3_c5", _3X, 42.7, 38.5, 3.5, 0.047),
    _run("mask_rcnn_r50_fpn_cls_agnostic", _1X, None),
    _run("cascade_mask_rcnn_r50_fpn", _1X, 42.1, 36.4, 4.0, 0.052),
    _run("cascade_mask_rcnn_r50_fpn", _3X, 44.3, 38.5, 4.0, 0.053),
    _run("mask_rcnn_r50_fpn_syncbn", _3X, 41.9, 37.8, 5.5, 0.053,
         note="norms measured anew at the end; revisions of its file disagree on the place of the stride"),
    _run("mask_rcnn_r50_fpn_gn", _3X, 42.6, 38.6, 7.3, 0.069),
    _run("scratch_mask_rcnn_r50_fpn_gn", _3X, 39.9, 36.6, 9.8, 0.069, init="none"),
    _run("scratch_mask_rcnn_r50_fpn_gn_std", _9X, 43.7, 39.6, 7.2, 0.061, init="none"),
    _run("scratch_mask_rcnn_r50_fpn_syncbn_std", _9X, 43.6, 39.3, 7.2, 0.055, init="none"),
    _run("cascade_mask_rcnn_x152_32x8d_fpn_in5k_gn_dconv", _X152, 50.2, 44.0, 15.1, 0.242, init="ImageNet-5k",
         note="published after 40k steps, trained on crops of 0.9 of a side too; 51.9 and 45.9 with test-time scales"),
    _run("mask_rcnn_r50_fpn_lsj", _large_scale_jitter(50), None, init="none"),
    _run("mask_rcnn_r50_fpn_lsj", _large_scale_jitter(100), 44.6, 40.3, None, 0.069, init="none"),
    _run("mask_rcnn_r50_fpn_lsj", _large_scale_jitter(200), 46.3, 41.7, init="none"),
    _run("mask_rcnn_r50_fpn_lsj", _large_scale_jitter(400), 47.4, 42.5, init="none"),
    _run("mask_rcnn_r101_fpn_lsj", _large_scale_jitter(100), 46.4, 41.6, init="none"),
    _run("mask_rcnn_r101_fpn_lsj", _large_scale_jitter(200), 48.0, 43.1, init="none"),
    _run("mask_rcnn_r101_fpn_lsj", _large_scale_jitter(400), 48.9, 43.7, init="none"),
    _run("faster_rcnn_r50_fpn_noaug", _1X_SINGLE_SCALE, 36.9, None, 3.1, 0.048, note="after Detectron's rules"),
    _run("mask_rcnn_r50_fpn_noaug", _1X_SINGLE_SCALE, 37.8, 34.9, 3.4, 0.052, note="after Detectron's rules"),
    _run("keypoint_rcnn_r50_fpn_detectron1", _1X, 53.1, 64.2, 5.0, 0.082, note="after Detectron's rules"),
)  # fmt: skip
