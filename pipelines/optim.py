"""Optimiser and learning-rate schedule as functions of the configuration and the step."""

import dataclasses
import enum
import math

import torch
from torch import nn


class Algorithm(enum.Enum):
    """The update rule."""

    SGD = "sgd"
    ADAMW = "adamw"


class Schedule(enum.Enum):
    """Shape of the learning rate after the warm-up."""

    STEP = "step"  # times `gamma` at each milestone
    COSINE = "cosine"  # to zero at the last step


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How weights move.

    Attributes:
        algorithm: update rule.
        learning_rate: at the full total batch, after the warm-up.
        batch: pictures in a step over all workers.
        steps: optimiser steps of the whole run.
        momentum: of SGD.
        weight_decay: on weights and biases.
        norm_weight_decay: on parameters of normalisation layers.
        warmup_steps: steps of linear warm-up.
        warmup_factor: learning rate of the first step as a share of the full one.
        schedule: shape after the warm-up.
        milestones: steps at which the step schedule decays.
        gamma: factor of each decay.
        clip_norm: gradients are scaled down to this global L2 norm; 0 never.
    """

    algorithm: Algorithm = Algorithm.SGD
    learning_rate: float = 0.02
    batch: int = 16
    steps: int = 90_000
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    schedule: Schedule = Schedule.STEP
    milestones: tuple[int, ...] = (60_000, 80_000)
    gamma: float = 0.1
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("learning_rate", "batch", "steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} must be > 0, got {getattr(self, name)!r}")
        for name in (
            "momentum",
            "weight_decay",
            "norm_weight_decay",
            "warmup_steps",
            "warmup_factor",
            "clip_norm",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} must be >= 0, got {getattr(self, name)!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones must ascend, got {self.milestones}")


def learning_rate_at(step: int, config: OptimConfig) -> float:
    """The learning rate of step number `step`, counted from 0."""
    if config.schedule is Schedule.STEP:
        factor = config.gamma ** sum(step >= milestone for milestone in config.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))
    if step < config.warmup_steps:
        factor *= config.warmup_factor + (1 - config.warmup_factor) * step / config.warmup_steps
    return config.learning_rate * factor


def build_optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters, norms apart for their own weight decay."""
    norms = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    of_norms = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in of_norms], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if id(p) in of_norms], "weight_decay": config.norm_weight_decay},
    ]
    groups = [group for group in groups if group["params"]]
    if config.algorithm is Algorithm.SGD:
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimiser.param_groups:
        group["lr"] = value
