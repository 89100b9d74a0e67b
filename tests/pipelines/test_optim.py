import math

import numpy as np
import pytest
import torch
from torch import nn

from model.config import Norm
from pipelines.optim import (
    Algorithm,
    OptimConfig,
    Schedule,
    build_optimiser,
    learning_rate_at,
    resolve_schedule,
    set_learning_rate,
)
from tests.pipelines import tiny_run


def test_the_step_schedule_at_every_boundary():
    """The published recipe: linear warm-up over 1000 steps from a thousandth, tenths after 60k and 80k."""
    config = OptimConfig()
    rates = {0: 0.02e-3, 500: 0.02 * (0.001 + 0.999 / 2), 999: 0.02 * (0.001 + 0.999 * 0.999), 1000: 0.02,
             59_999: 0.02, 60_000: 0.002, 79_999: 0.002, 80_000: 0.0002, 89_999: 0.0002}  # fmt: skip
    for step, rate in rates.items():
        assert learning_rate_at(step, config) == pytest.approx(rate, rel=1e-12)


def test_the_warm_up_rises_and_scales_what_follows():
    config = OptimConfig(warmup_steps=10, warmup_factor=0.1, milestones=(5,), steps=20)
    rates = np.array([learning_rate_at(step, config) for step in range(20)])
    assert (np.diff(rates[:5]) > 0).all()
    assert rates[5] == pytest.approx(0.02 * 0.1 * (0.1 + 0.9 * 0.5))
    np.testing.assert_allclose(rates[10:], 0.002)


def test_the_cosine_schedule():
    config = OptimConfig(schedule=Schedule.COSINE, milestones=(), warmup_steps=0, steps=100, learning_rate=2.0)
    rates = np.array([learning_rate_at(step, config) for step in range(101)])
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert (np.diff(rates) < 0).all()
    np.testing.assert_allclose(rates + rates[::-1], 2.0)
    assert rates[25] == pytest.approx(1 + math.sqrt(0.5))


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate_at(0, OptimConfig(warmup_steps=0)) == 0.02


@pytest.mark.parametrize("norm", [Norm.BATCH, Norm.GROUP, Norm.FROZEN])
def test_every_trainable_parameter_is_in_one_group(norm):
    detector = tiny_run.build(norm)
    for parameter in detector.rpn.parameters():
        parameter.requires_grad_(False)
    optimiser = build_optimiser(detector, OptimConfig(weight_decay=0.3, norm_weight_decay=0.1))
    held = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in detector.parameters() if p.requires_grad)
    decays = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            # Only norms of this detector are called so.
            assert decays[id(parameter)] == (0.1 if "norm" in name else 0.3), name
    assert len(optimiser.param_groups) == (1 if norm is Norm.FROZEN else 2)


def test_sgd_is_the_textbook_rule():
    weight = nn.Linear(3, 1, bias=False)
    config = OptimConfig(learning_rate=0.1, momentum=0.8, weight_decay=0.05)
    optimiser = build_optimiser(weight, config)
    value, velocity = weight.weight.detach().numpy().astype(np.float64).copy(), 0.0
    for step in range(4):
        rate = 0.1 / (step + 1)
        set_learning_rate(optimiser, rate)
        optimiser.zero_grad()
        (weight.weight**2).sum().backward()
        optimiser.step()
        velocity = 0.8 * velocity + 2 * value + 0.05 * value
        value = value - rate * velocity
    np.testing.assert_allclose(weight.weight.detach().numpy(), value, rtol=1e-5)


def test_adamw_decays_apart_from_the_gradient():
    weight = nn.Linear(3, 1, bias=False)
    before = weight.weight.detach().clone()
    optimiser = build_optimiser(weight, OptimConfig(Algorithm.ADAMW, learning_rate=0.01, weight_decay=0.5))
    (weight.weight * 0).sum().backward()
    optimiser.step()
    torch.testing.assert_close(weight.weight.detach(), before * (1 - 0.01 * 0.5))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"learning_rate": 0.0}, r"optim\.learning_rate must be > 0, got 0\.0"),
        ({"batch": 0}, r"optim\.batch must be > 0, got 0"),
        ({"steps": -1}, r"optim\.steps must be > 0, got -1"),
        ({"momentum": -0.1}, r"optim\.momentum must be >= 0"),
        ({"warmup_steps": -1}, r"optim\.warmup_steps must be >= 0"),
        ({"clip_norm": -1.0}, r"optim\.clip_norm must be >= 0"),
        ({"epochs": -1}, r"optim\.epochs must be >= 0, got -1"),
        ({"reference_batch": -1}, r"optim\.reference_batch must be >= 0"),
        ({"max_skipped": -1}, r"optim\.max_skipped must be >= 0"),
        ({"ema_decay": 1.0}, r"optim\.ema_decay must be in 0\.\.1, 1 excluded, got 1\.0"),
        ({"milestones": (8, 6)}, r"optim\.milestones must ascend, got \(8, 6\)"),
    ],
)
def test_settings_out_of_range(changes, match):
    with pytest.raises(ValueError, match=match):
        OptimConfig(**changes)


def test_a_length_in_epochs_follows_the_data():
    """12 epochs (8, 11) of 118,287 pictures, 16 a step: MMDetection's 1x."""
    found = resolve_schedule(OptimConfig(epochs=12, milestones=(8, 11)), samples=118_287, per_batch=16)
    assert (found.steps, found.milestones, found.epochs) == (88_716, (59_144, 81_322), 0)
    assert resolve_schedule(found, samples=5, per_batch=1) == found
    of_two_sets = resolve_schedule(OptimConfig(epochs=2, milestones=(1,)), samples=100, per_batch=6)
    assert (of_two_sets.steps, of_two_sets.milestones) == (34, (17,))


@pytest.mark.parametrize(("batch", "rate"), [(16, 0.02), (8, 0.01), (2, 0.0025), (64, 0.08)])
def test_the_learning_rate_follows_the_batch(batch, rate):
    config = OptimConfig(batch=batch, reference_batch=16)
    found = resolve_schedule(config, samples=100, per_batch=batch)
    assert found.learning_rate == pytest.approx(rate)
    assert resolve_schedule(found, samples=100, per_batch=batch) == found
    assert resolve_schedule(OptimConfig(batch=batch), 100, batch).learning_rate == 0.02
    assert (found.steps, found.milestones) == (config.steps, config.milestones)


def test_biases_may_learn_faster_and_not_decay():
    """Detectron's rule: twice the rate, no decay."""
    detector = tiny_run.build(Norm.BATCH)
    config = OptimConfig(weight_decay=0.3, norm_weight_decay=0.1, decay_biases=False, bias_rate_factor=2.0)
    optimiser = build_optimiser(detector, config)
    set_learning_rate(optimiser, 0.5)
    settings = {id(p): (g["weight_decay"], g["lr"]) for g in optimiser.param_groups for p in g["params"]}
    for name, parameter in detector.named_parameters():
        wanted = (0.1, 0.5) if "norm" in name else (0.0, 1.0) if name.endswith("bias") else (0.3, 0.5)
        assert settings[id(parameter)] == wanted, name
