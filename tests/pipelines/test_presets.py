"""Every named run is a whole one: it builds, and survives the way to the workers."""

import pytest
import torch

from model import presets as detectors
from model.build import build_detector
from model.config import Norm
from model.settings import from_dict, to_dict
from pipelines.config import TrainConfig
from pipelines.optim import build_optimiser, learning_rate_at, resolve_schedule
from pipelines.presets import PRESETS, preset


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_builds_and_can_be_told_to_workers(name):
    config = preset(name)
    assert config == PRESETS[name]()
    assert from_dict(TrainConfig, to_dict(config)) == config
    with torch.device("meta"):
        detector = build_detector(config.detector)
    optimiser = build_optimiser(detector, config.optim)
    assert optimiser.param_groups
    optim = resolve_schedule(config.optim, 118_287, config.optim.batch)
    rates = [learning_rate_at(step, optim) for step in range(0, optim.steps, optim.steps // 20)]
    assert all(0 < rate <= optim.learning_rate for rate in rates)
    assert rates[-1] < optim.learning_rate / 5
    assert all(milestone < optim.steps for milestone in optim.milestones)
    assert (PRESETS[name].__doc__ or "").strip()
    assert config.train == ()
    assert config.out == ""


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_names_its_detector(name):
    assert any(name.startswith(known) for known in detectors.DETECTORS)


@pytest.mark.parametrize("name", ["mask_rcnn_r18_fpn_1x", "mask_rcnn_r34_fpn_1x", "small_mask_rcnn_r18_fpn"])
def test_what_starts_from_random_weights_freezes_nothing(name):
    detector = build_detector(preset(name).detector)
    assert preset(name).detector.backbone.norm is not Norm.FROZEN
    assert all(parameter.requires_grad for parameter in detector.parameters())


def test_the_published_recipe():
    """Detectron2's 1x schedule: 16 pictures a step, 90,000 steps, decay at 60,000 and 80,000."""
    optim = preset("mask_rcnn_r50_fpn_1x").optim
    assert (optim.batch, optim.steps, optim.milestones, optim.learning_rate) == (16, 90_000, (60_000, 80_000), 0.02)
    assert (optim.momentum, optim.weight_decay, optim.warmup_steps) == (0.9, 1e-4, 1000)


def test_torchvisions_recipe_in_steps():
    """26 epochs of the 117,266 pictures with objects, 16 a step, decay after epochs 16 and 22."""
    optim = resolve_schedule(preset("torchvision_mask_rcnn_r50_fpn").optim, 117_266, 16)
    epoch = 117_266 / 16
    assert optim.steps == pytest.approx(26 * epoch, rel=1e-3)
    assert optim.milestones == pytest.approx((16 * epoch, 22 * epoch), rel=1e-3)


@pytest.mark.parametrize("name", ["", "mask_rcnn", "MASK_RCNN_R18_FPN_1X"])
def test_an_unknown_preset_lists_the_known_ones(name):
    with pytest.raises(
        ValueError, match=f"unknown preset '{name}': choose one of small_mask_rcnn_r18_fpn, mask_.*list"
    ):
        preset(name)
