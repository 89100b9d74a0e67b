"""A training set for each score floor, before the trials that compare them."""

import contextlib
import dataclasses

import pytest

from pipelines import distill, sweep_floors, sweeps
from pipelines.presets import preset
from pipelines.tune_config import TuneConfig


def test_each_floor_gets_a_training_set_of_its_own(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(distill, "run", made.append)
    monkeypatch.setattr(sweep_floors, "ray_session", lambda *_, **__: contextlib.nullcontext())
    config = TuneConfig(train=("/l",), val="/v", out=str(tmp_path), predictions="/p", pool="/u", floors=(0.3, 0.5))
    found = sweep_floors.with_floors(config, lambda line: None)
    outs = [f"{tmp_path}/floors/min-score-0.3", f"{tmp_path}/floors/min-score-0.5"]
    assert found.train == ("/l", *outs)
    assert [(one.out, one.min_score) for one in made] == list(zip(outs, (0.3, 0.5), strict=True))
    assert {(one.labelled, one.pool, one.predictions, one.val) for one in made} == {("/l", "/u", "/p", "/v")}
    (floor,) = sweeps.score_floors(dataclasses.replace(preset("small_mask_rcnn_r18_fpn"), train=found.train))
    assert floor.ends() == ("min-score-0.3", "min-score-0.5")
    assert floor.settings("min-score-0.5") == {"train": ["/l", outs[1]]}
    plain = TuneConfig(train=("/l",), out="o")
    assert sweep_floors.with_floors(plain, print) is plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": ""}, "floors need --predictions and --pool, and one --train"),
        ({"train": ("/l", "/m")}, "floors need --predictions and --pool, and one --train"),
        ({"floors": (0.3, 0.3)}, r"floors are \[0.3, 0.3\], wanted each once"),
    ],
)
def test_floors_that_are_refused(changes, message):
    given = {"train": ("/l",), "out": "o", "predictions": "/p", "pool": "/u", "floors": (0.3, 0.5)}
    with pytest.raises(ValueError, match=message):
        TuneConfig(**{**given, **changes})


def test_the_sweep_needs_floors():
    with pytest.raises(ValueError, match="the sweep score_floors needs --floors, --predictions and --pool"):
        sweeps.score_floors(dataclasses.replace(preset("small_mask_rcnn_r18_fpn"), train=("/l",)))
