"""Optimiser and learning-rate schedule as functions of the configuration, the size of the data and the step."""

import dataclasses
import enum
import math
from typing import Any

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
        learning_rate: of a step of `reference_batch` pictures, after the warm-up.
        batch: pictures in a step over all workers.
        reference_batch: the learning rate is multiplied by batch / reference_batch (Goyal et al. 2017); 0 takes it as
            it is.
        steps: optimiser steps of the whole run.
        epochs: passes over the first training set; where > 0 it takes the place of `steps`, and `milestones` count
            epochs as well.
        momentum: of SGD.
        weight_decay: on weights and biases.
        norm_weight_decay: on parameters of normalisation layers.
        decay_biases: biases decay as weights do; else not at all.
        bias_rate_factor: learning rate of biases in relation to that of weights (Detectron: 2).
        warmup_steps: steps of linear warm-up.
        warmup_factor: learning rate of the first step as a share of the full one.
        schedule: shape after the warm-up.
        milestones: steps (epochs where `epochs` > 0) at which the step schedule decays.
        gamma: factor of each decay.
        clip_norm: gradients are scaled down to this global L2 norm; 0 never.
        ema_decay: the run also keeps an exponential moving average of the weights with this decay a step, and
            evaluates and predicts with it; 0 for none.
        max_skipped: steps in a row that may be left out because a loss or a gradient is not finite, before the run
            stops; 0 stops at the first. May be changed when a run goes on.
    """

    algorithm: Algorithm = Algorithm.SGD
    learning_rate: float = 0.02
    batch: int = 16
    reference_batch: int = 0
    steps: int = 90_000
    epochs: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0
    decay_biases: bool = True
    bias_rate_factor: float = 1.0
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    schedule: Schedule = Schedule.STEP
    milestones: tuple[int, ...] = (60_000, 80_000)
    gamma: float = 0.1
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    max_skipped: int = 5

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("learning_rate", "batch", "steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} must be > 0, got {getattr(self, name)!r}")
        for name in ("reference_batch", "epochs", "momentum", "weight_decay", "norm_weight_decay", "bias_rate_factor",
                     "warmup_steps", "warmup_factor", "clip_norm", "max_skipped"):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} must be >= 0, got {getattr(self, name)!r}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"optim.ema_decay must be in 0..1, 1 excluded, got {self.ema_decay!r}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones must ascend, got {self.milestones}")


def resolve_schedule(config: OptimConfig, samples: int, per_batch: int) -> OptimConfig:
    """The configuration with its length in steps and its learning rate for its own batch; resolving twice is once.

    Args:
        config: with a length in steps or epochs.
        samples: pictures of the first training set.
        per_batch: of them in a batch.
    """
    changes: dict[str, Any] = {}
    if config.epochs:
        steps = math.ceil(config.epochs * samples / per_batch)
        milestones = tuple(round(epoch * samples / per_batch) for epoch in config.milestones)
        changes = {"steps": steps, "milestones": milestones, "epochs": 0}
    if config.reference_batch:
        rate = config.learning_rate * config.batch / config.reference_batch
        changes |= {"learning_rate": rate, "reference_batch": config.batch}
    return dataclasses.replace(config, **changes)


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
    """The optimiser over the trainable parameters: weights, biases and norms each with their own decay and rate.

    Its fused kernels leave out a whole step, on the device, where `found_inf` says so.
    """
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    norms = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)}
    biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias")} - norms
    decay_of_biases = config.weight_decay if config.decay_biases else 0.0
    by_settings: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        settings = config.weight_decay, 1.0
        if id(parameter) in norms:
            settings = config.norm_weight_decay, 1.0
        elif id(parameter) in biases:
            settings = decay_of_biases, config.bias_rate_factor
        by_settings.setdefault(settings, []).append(parameter)
    groups = [{"params": held, "weight_decay": decay, "factor": rate} for (decay, rate), held in by_settings.items()]
    if config.algorithm is Algorithm.ADAMW:
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    optimiser = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    if config.momentum:
        # Where the very first step is left out, torch would go on with memory it never wrote.
        for parameter in (p for held in by_settings.values() for p in held):
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameter groups, each with its own factor."""
    for group in optimiser.param_groups:
        group["lr"] = value * group.get("factor", 1.0)
