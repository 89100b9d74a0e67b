"""Named training runs: a detector with the recipe it is trained by. Each is a function that returns a `TrainConfig`."""

import dataclasses
from collections.abc import Callable

from model import presets as detectors
from model.config import DetectorConfig, Norm
from pipelines import recipes
from pipelines.config import TrainConfig
from pipelines.optim import Algorithm, OptimConfig, Schedule


def _from_scratch(detector: DetectorConfig) -> DetectorConfig:
    """Nothing frozen: no ImageNet weights are shipped, so a frozen random stem would stay random."""
    backbone = dataclasses.replace(detector.backbone, norm=Norm.BATCH, frozen_stages=0)
    return dataclasses.replace(detector, backbone=backbone)


def _paper_1x(detector: DetectorConfig) -> TrainConfig:
    return TrainConfig(detector=detector, optim=recipes.detectron2_steps(1))


def mask_rcnn_r18_fpn_1x() -> TrainConfig:
    """ResNet-18, from scratch, 90,000 steps of 16 pictures."""
    return _paper_1x(_from_scratch(detectors.mask_rcnn_r18_fpn()))


def mask_rcnn_r34_fpn_1x() -> TrainConfig:
    """ResNet-34, from scratch, 90,000 steps of 16 pictures."""
    return _paper_1x(_from_scratch(detectors.mask_rcnn_r34_fpn()))


def mask_rcnn_r50_fpn_1x() -> TrainConfig:
    """ResNet-50, frozen norms, 90,000 steps of 16 pictures; start it from imported weights with --init."""
    return _paper_1x(detectors.mask_rcnn_r50_fpn())


def mask_rcnn_r101_fpn_1x() -> TrainConfig:
    """ResNet-101, frozen norms, 90,000 steps of 16 pictures; start it from imported weights with --init."""
    return _paper_1x(detectors.mask_rcnn_r101_fpn())


def torchvision_mask_rcnn_r50_fpn() -> TrainConfig:
    """Model and reference recipe of torchvision: 26 epochs of COCO, decay after 16 and 22."""
    return TrainConfig(detector=detectors.torchvision_mask_rcnn_r50_fpn(), optim=recipes.torchvision_epochs())


def small_mask_rcnn_r18_fpn() -> TrainConfig:
    """A narrow detector for pictures of about 128 px; learns the generated shapes in minutes on two CPU cores."""
    return TrainConfig(
        detector=detectors.small_mask_rcnn_r18_fpn(),
        optim=OptimConfig(
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


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "small_mask_rcnn_r18_fpn": small_mask_rcnn_r18_fpn,
    "mask_rcnn_r18_fpn_1x": mask_rcnn_r18_fpn_1x,
    "mask_rcnn_r34_fpn_1x": mask_rcnn_r34_fpn_1x,
    "mask_rcnn_r50_fpn_1x": mask_rcnn_r50_fpn_1x,
    "mask_rcnn_r101_fpn_1x": mask_rcnn_r101_fpn_1x,
    "torchvision_mask_rcnn_r50_fpn": torchvision_mask_rcnn_r50_fpn,
}


def preset(name: str) -> TrainConfig:
    """The run of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)} (`maskray list presets`)")
    return PRESETS[name]()
