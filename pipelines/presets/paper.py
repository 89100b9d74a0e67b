"""The paper's experiments (He et al. 2017, version 3), and Detectron's baselines, which continue them.

The main results were trained in stages: train any detector on the same pictures first, then give it as `--rpn-from`.
Without it proposals and heads are trained at once, which appendix B found better by 0.6 mask AP. "minival" is a part of
COCO val2014 that later became val2017; "test-dev" has no public labels.
"""

import dataclasses

from pipelines.optim import OptimConfig
from pipelines.presets.preset import EDGE_RANGE, Preset, Published, Recipe
from pipelines.recipes import detectron1, detectron2_steps, keypoint_steps, paper_steps


def _one_a_gpu(optim: OptimConfig) -> OptimConfig:
    """ResNeXt: one picture a GPU, half the rate, the same number of steps."""
    return dataclasses.replace(optim, batch=8, reference_batch=8, learning_rate=0.01)


def _steps(steps: int, milestones: tuple[int, int]) -> OptimConfig:
    return dataclasses.replace(paper_steps(), steps=steps, milestones=milestones)


_160K = Recipe("160k steps", paper_steps())
_160K_X101 = Recipe("160k steps", _one_a_gpu(paper_steps()))
_180K_X101 = Recipe("180k steps", _one_a_gpu(_steps(180_000, (120_000, 160_000))))
_260K_X101 = Recipe("260k steps, ms", _one_a_gpu(_steps(260_000, (200_000, 240_000))), EDGE_RANGE)
_KEYPOINTS = Recipe("90k steps, ms", keypoint_steps(), EDGE_RANGE)
_KEYPOINTS_130K = Recipe("130k steps, ms", _steps(130_000, (100_000, 120_000)), EDGE_RANGE)
_KEYPOINTS_130K_X101 = Recipe("130k steps, ms", _one_a_gpu(_KEYPOINTS_130K.optim), EDGE_RANGE)
_1X = Recipe("1x", detectron1(detectron2_steps(1)))
_2X = Recipe("2x", detectron1(detectron2_steps(2)))
_1X_X101 = Recipe("1x", _one_a_gpu(_2X.optim))
_2X_X101 = Recipe("2x", dataclasses.replace(_1X_X101.optim, steps=360_000, milestones=(240_000, 320_000)))


def _run(
    detector: str, table: str, box: float | None = None, mask: float | None = None, recipe: Recipe = _160K,
    on: str = "COCO minival", note: str = "",
) -> Preset:  # fmt: skip
    """A row of a table of box and mask AP."""
    published = Published(f"He et al. 2017, table {table}", on, box, mask, note=note)
    return Preset(f"paper_{detector}", f"paper_{detector}", recipe, published)


def _persons(
    detector: str, table: str, box: float | None, mask: float | None, keypoints: float | None,
    recipe: Recipe = _KEYPOINTS, note: str = "",
) -> Preset:  # fmt: skip
    """A row of a table of persons and their keypoints."""
    published = Published(f"He et al. 2017, table {table}", "COCO minival", box, mask, keypoints, note=note)
    return Preset(f"paper_{detector}", f"paper_{detector}", recipe, published)


def _enhanced(
    step: str, detector: str, recipe: Recipe, figures: tuple[float, float], init: str, note: str = ""
) -> Preset:
    """A step of table 8, each on top of the ones before; box and mask AP."""
    published = Published("He et al. 2017, table 8", "COCO minival", *figures, note=note)
    return Preset(f"paper_enhanced_{step}", f"paper_enhanced_mask_rcnn_{detector}", recipe, published, init)


def _enhanced_keypoints(step: str, detector: str, recipe: Recipe, keypoints: float, note: str = "") -> Preset:
    """A step of table 9, each on top of the ones before; keypoint AP."""
    published = Published("He et al. 2017, table 9", "COCO minival", keypoint_ap=keypoints, note=note)
    return Preset(f"paper_keypoint_enhanced_{step}", f"paper_keypoint_rcnn_{detector}", recipe, published)


def _detectron(detector: str, recipe: Recipe, box: float, mask: float) -> Preset:
    published = Published("Detectron", "COCO minival", box, mask)
    return Preset(f"detectron_{detector}_{recipe.schedule}", f"detectron_{detector}", recipe, published)


ABLATIONS = (
    _run("mask_rcnn_r50_c4", "2a", mask=30.3),
    _run("mask_rcnn_r101_c4", "2a", mask=32.7, note="33.1 on test-dev"),
    _run("mask_rcnn_r50_fpn", "2a", mask=33.6),
    _run("mask_rcnn_r101_fpn", "2a", mask=35.4, note="box 38.2, mask 35.7 on test-dev"),
    _run("mask_rcnn_x101_64x4d_fpn", "2a", mask=36.7, recipe=_160K_X101, note="box 39.8, mask 37.1 on test-dev"),
    _run("mask_rcnn_r50_c4_softmax", "2b", mask=24.8),
    _run("mask_rcnn_r50_c4_class_agnostic", "2, text", mask=29.7),
    _run("mask_rcnn_r50_c4_roipool_max", "2c", mask=26.9),
    _run("mask_rcnn_r50_c4_roiwarp_max", "2c", mask=27.2),
    _run("mask_rcnn_r50_c4_roiwarp_ave", "2c", mask=27.1),
    _run("mask_rcnn_r50_c4_roialign_max", "2c", mask=30.2),
    _run("mask_rcnn_r50_c5_roipool", "2d", 28.2, 23.6),
    _run("mask_rcnn_r50_c5", "2d", 34.0, 30.9),
    _run("mask_rcnn_r50_fpn_mlp_2", "2e", mask=31.5),
    _run("mask_rcnn_r50_fpn_mlp_3", "2e", mask=31.5),
    _run("faster_rcnn_r101_fpn", "3", 37.3, on="COCO test-dev"),
    _persons("person_faster_rcnn_r50_fpn", "5", 52.5, None, None),
    _persons("person_mask_rcnn_r50_fpn", "5", 53.6, 45.8, None),
    _persons("keypoint_rcnn_r50_fpn", "5", 50.7, None, 64.2, note="keypoints 62.7 on test-dev"),
    _persons("keypoint_mask_rcnn_r50_fpn", "5", 52.0, 45.1, 64.7, note="keypoints 63.1 on test-dev"),
    _persons("keypoint_rcnn_r50_fpn_roipool", "6", None, None, 59.8),
)

ENHANCED = (
    _enhanced("1_updated_baseline", "x101_64x4d_fpn", _180K_X101, (40.5, 37.0), "ImageNet"),
    _enhanced("2_end_to_end", "x101_64x4d_fpn", _180K_X101, (41.7, 37.6), "ImageNet",
              "proposals and heads trained at once, as maskray always does"),
    _enhanced("3_imagenet_5k", "x101_64x4d_fpn", _180K_X101, (42.7, 38.6), "ImageNet-5k"),
    _enhanced("4_train_time_scales", "x101_64x4d_fpn", _260K_X101, (43.5, 39.2), "ImageNet-5k"),
    _enhanced("5_resnext_152", "x152_32x8d_fpn", _260K_X101, (44.1, 39.7), "ImageNet-5k"),
    _enhanced("6_non_local", "x152_32x8d_fpn_nl", _260K_X101, (45.0, 40.3), "ImageNet-5k"),
    _enhanced("7_test_time_scales", "x152_32x8d_fpn_nl", _260K_X101, (47.3, 41.8), "ImageNet-5k",
              "trained as step 6; tested mirrored and with short edges of 400 to 1200 px in steps of 100"),
    _enhanced_keypoints("1_updated_baseline", "r50_fpn", _KEYPOINTS_130K, 65.1),
    _enhanced_keypoints("2_resnet_101", "r101_fpn", _KEYPOINTS_130K, 66.1),
    _enhanced_keypoints("3_resnext_101", "x101_64x4d_fpn", _KEYPOINTS_130K_X101, 67.3),
    _enhanced_keypoints("4_data_distillation", "x101_64x4d_fpn", _KEYPOINTS_130K_X101, 69.1,
                        "as step 3, with the labels that `maskray distill` makes of 120k unlabelled pictures"),
    _enhanced_keypoints("5_test_time_scales", "x101_64x4d_fpn", _KEYPOINTS_130K_X101, 70.4,
                        "as step 4, tested with several scales and mirrored"),
)  # fmt: skip

DETECTRON = (
    _detectron("mask_rcnn_r50_c4", _1X, 35.8, 31.4),
    _detectron("mask_rcnn_r50_c4", _2X, 37.8, 32.8),
    _detectron("mask_rcnn_r50_fpn", _1X, 37.7, 33.9),
    _detectron("mask_rcnn_r50_fpn", _2X, 38.6, 34.5),
    _detectron("mask_rcnn_r101_fpn", _1X, 40.0, 35.9),
    _detectron("mask_rcnn_r101_fpn", _2X, 40.9, 36.4),
    _detectron("mask_rcnn_x101_64x4d_fpn", _1X_X101, 42.4, 37.5),
    _detectron("mask_rcnn_x101_64x4d_fpn", _2X_X101, 42.2, 37.2),
)

PAPER = ABLATIONS + ENHANCED + DETECTRON
