"""Every named sweep over every preset gives runs that can be, and searches them as Ray Tune understands."""

import dataclasses
import itertools
import re

import pytest

from model.config.fit import require_fit
from pipelines import sweeps
from pipelines.presets import PRESETS, preset
from pipelines.sweep_search import Algorithm, space
from pipelines.sweep_space import check, chosen_settings, with_settings

# A small one, the paper's, and one that counts epochs.
MEANT_FOR = ("small_mask_rcnn_r18_fpn", "mask_rcnn_r50_fpn_1x", "mmdet_mask_rcnn_r50_fpn_1x")
CASES = list(itertools.product(sweeps.SWEEPS, MEANT_FOR))


def dimensions_of(name, base):
    return sweeps.named(name).make(base)


@pytest.mark.parametrize(("name", "run"), CASES, ids=["-".join(case) for case in CASES])
def test_every_choice_is_a_run(name, run):
    base = dataclasses.replace(preset(run), train=("labelled", "pseudo"))
    dimensions = dimensions_of(name, base)
    check(base, dimensions)
    for choices in itertools.product(*(dimension.ends() for dimension in dimensions)):
        named = dict(zip((dimension.name for dimension in dimensions), choices, strict=True))
        require_fit(with_settings(base, chosen_settings(dimensions, named)).detector)
    assert space(dimensions, Algorithm.RANDOM).keys() == {dimension.name for dimension in dimensions}
    assert sweeps.SWEEPS[name].make.__doc__


@pytest.mark.soak
@pytest.mark.parametrize("name", sweeps.SWEEPS)
def test_over_any_preset_a_sweep_can_be_run_or_says_why_not(name):
    told = [reason for run in PRESETS if (reason := refusal(name, run))]
    assert all(re.match(r"[\w.]+=\S+ cannot be run: ", reason) for reason in told)
    assert len(told) < len(PRESETS) / 2


def refusal(name, run):
    base = dataclasses.replace(preset(run), train=("labelled", "pseudo"))
    try:
        check(base, dimensions_of(name, base))
    except ValueError as error:
        return str(error)
    return ""


def test_lengths_move_the_milestones():
    base = preset("mask_rcnn_r50_fpn_1x")
    (length,) = sweeps.length(base)
    made = {choice: with_settings(base, chosen_settings([length], {"length": choice})) for choice in length.ends()}
    assert [made[name].optim.steps for name in ("1x", "2x", "3x")] == [90_000, 180_000, 270_000]
    assert made["2x"].optim.milestones == (120_000, 160_000)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("table_2a", ["R50-C4", "R101-C4", "R50-FPN", "R101-FPN", "X101-FPN"]),
        ("table_2c", ["pool-max", "warp-max", "warp-average", "align-max", "align-average"]),
        ("table_2e", ["mlp-1", "mlp-2", "fcn"]),
        ("table_5", ["box", "mask", "keypoint", "keypoint-and-mask"]),
        ("table_8", ["baseline", "+longer", "+scales", "+resnext", "+non-local"]),
    ],
)
def test_tables_of_the_paper_have_their_rows(name, rows):
    base = preset("mask_rcnn_r50_fpn_1x")
    (row,) = dimensions_of(name, base)
    assert list(row.ends()) == rows
    runs = [with_settings(base, row.settings(choice)) for choice in rows]
    assert len({repr(run) for run in runs}) == len(rows)


def test_enhanced_steps_add_up():
    (row,) = dimensions_of("table_8", preset("mask_rcnn_r50_fpn_1x"))
    names = [set(row.settings(choice)) for choice in row.ends()]
    assert all(before < after for before, after in itertools.pairwise(names))
    assert row.settings("+non-local")["optim.steps"] == 180_000


def test_distillation_needs_two_sets():
    with pytest.raises(ValueError, match="needs two training sets, got 0"):
        dimensions_of("distillation", preset("mask_rcnn_r50_fpn_1x"))


def test_an_unknown_sweep():
    with pytest.raises(ValueError, match="unknown sweep 'nothing': choose one of length, schedules"):
        dimensions_of("nothing", preset("mask_rcnn_r50_fpn_1x"))
