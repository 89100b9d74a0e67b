"""Published schedules as functions that return an `OptimConfig`; presets of training runs are composed of them.

Each states the total batch it was published for: with another `optim.batch` the learning rate follows in proportion.
Lengths in epochs follow the data; lengths in steps are meant for the published batch.
"""

import dataclasses

from pipelines.optim import OptimConfig


def detectron2_steps(times: int = 1) -> OptimConfig:
    """Detectron2's 1x, 2x or 3x for COCO: 90,000 steps of 16 a time; decays 60k and 20k steps before the end of 3x.

    Raises:
        ValueError: another length.
    """
    lengths = {1: (90_000, (60_000, 80_000)), 2: (180_000, (120_000, 160_000)), 3: (270_000, (210_000, 250_000))}
    if times not in lengths:
        raise ValueError(f"Detectron2's schedules are 1x, 2x and 3x, got {times}x: choose one of them")
    steps, milestones = lengths[times]
    return OptimConfig(steps=steps, milestones=milestones, reference_batch=16)


def mmdetection_epochs(epochs: int, milestones: tuple[int, ...]) -> OptimConfig:
    """MMDetection's schedules in epochs of 16 pictures a step: 12 (8, 11), 20 (16, 19), 24 (16, 22), 36 (27, 33).

    Also those of mmdetection3d for nuImages, 12 and 20 epochs. Norms decay as weights do.
    """
    return OptimConfig(
        epochs=epochs, milestones=milestones, reference_batch=16, warmup_steps=500, norm_weight_decay=1e-4
    )


def torchvision_epochs(epochs: int = 26, milestones: tuple[int, ...] = (16, 22)) -> OptimConfig:
    """Reference recipe of torchvision: 26 epochs (16, 22) for masks, 46 (36, 43) for keypoints, 16 pictures a step."""
    return OptimConfig(epochs=epochs, milestones=milestones, reference_batch=16, norm_weight_decay=1e-4)


def paper_steps(steps: int = 160_000, milestone: int = 120_000) -> OptimConfig:
    """He et al. 2017, COCO: 160,000 steps of 16 pictures, one decay."""
    return OptimConfig(steps=steps, milestones=(milestone,), reference_batch=16, warmup_steps=500, warmup_factor=1 / 3)


def detectron1(optim: OptimConfig) -> OptimConfig:
    """Detectron's own rules on top of a schedule: biases learn twice as fast and do not decay."""
    return dataclasses.replace(optim, decay_biases=False, bias_rate_factor=2.0, warmup_steps=500, warmup_factor=1 / 3)


def keypoint_steps() -> OptimConfig:
    """He et al. 2017, persons with keypoints: 90,000 steps of 16 pictures, decays after 60,000 and 80,000."""
    return detectron2_steps(1)


def cityscapes_fine_steps() -> OptimConfig:
    """He et al. 2017, appendix A, fine annotations only: 24,000 steps of 8 pictures, one decay after 18,000."""
    return OptimConfig(learning_rate=0.01, batch=8, reference_batch=8, steps=24_000, milestones=(18_000,))


def cityscapes_from_coco_steps() -> OptimConfig:
    """The same from a COCO detector: 4,000 steps of 8 pictures, one decay after 3,000."""
    return OptimConfig(learning_rate=0.01, batch=8, reference_batch=8, steps=4_000, milestones=(3_000,))


def mmdetection_cityscapes_epochs() -> OptimConfig:
    """MMDetection, from a COCO detector: 64 epochs of 8 pictures a step, one decay after 56."""
    return OptimConfig(
        learning_rate=0.01, batch=8, reference_batch=8, epochs=64, milestones=(56,), warmup_steps=500,
        norm_weight_decay=1e-4,
    )  # fmt: skip


def detectron2_large_scale_jitter(times: int = 1) -> OptimConfig:
    """Detectron2's new baselines with large-scale jitter: 100 epochs a time, 184,375 steps of 64 pictures."""
    steps = 184_375 * times
    milestones = (163_889 * times, 177_546 * times)
    return OptimConfig(
        learning_rate=0.1, batch=64, reference_batch=64, steps=steps, milestones=milestones, weight_decay=4e-5,
        warmup_steps=500, warmup_factor=0.067,
    )  # fmt: skip


def mmdetection_large_scale_jitter() -> OptimConfig:
    """MMDetection's large-scale jitter: 100 epochs of 64 pictures a step, decays after 88 and 96."""
    return OptimConfig(
        learning_rate=0.08, batch=64, reference_batch=64, epochs=100, milestones=(88, 96), weight_decay=4e-5,
        norm_weight_decay=4e-5, warmup_steps=500, warmup_factor=0.067,
    )  # fmt: skip


def torchvision_large_scale_jitter() -> OptimConfig:
    """Version 2 weights of torchvision: 400 epochs of 64 pictures a step, decays after 352 and 384."""
    return OptimConfig(
        learning_rate=0.1, batch=64, reference_batch=64, epochs=400, milestones=(352, 384), weight_decay=4e-5,
        norm_weight_decay=4e-5,
    )  # fmt: skip
