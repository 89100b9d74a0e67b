"""Every named sweep over every preset gives runs that can be, and searches them as Ray Tune understands."""

import itertools

import pytest

from pipelines import sweeps
from pipelines.presets import PRESETS, preset
from pipelines.sweep_search import Algorithm, space
from pipelines.sweep_space import check, chosen_settings, with_settings

CASES = list(itertools.product(sweeps.SWEEPS, PRESETS))


@pytest.mark.parametrize(("name", "run"), CASES, ids=["-".join(case) for case in CASES])
def test_every_choice_is_a_run(name, run):
    base = preset(run)
    dimensions = sweeps.sweep(name, base)
    check(base, dimensions)
    assert space(dimensions, Algorithm.RANDOM).keys() == {dimension.name for dimension in dimensions}
    assert sweeps.SWEEPS[name].__doc__


def test_lengths_move_the_milestones():
    base = preset("mask_rcnn_r50_fpn_1x")
    (length,) = sweeps.length(base)
    made = {choice: with_settings(base, chosen_settings([length], {"length": choice})) for choice in length.ends()}
    assert [made[name].optim.steps for name in ("1x", "2x", "3x")] == [90_000, 180_000, 270_000]
    assert made["2x"].optim.milestones == (120_000, 160_000)


def test_an_unknown_sweep():
    with pytest.raises(ValueError, match="unknown sweep 'nothing': choose one of length, schedules"):
        sweeps.sweep("nothing", preset("mask_rcnn_r50_fpn_1x"))
