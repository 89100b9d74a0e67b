"""Ray Tune's record of a sweep, whole, cut short, and without what is known to be finished."""

import json

import pytest

from pipelines import sweep_history
from pipelines.sweep_history import Point
from pipelines.sweep_state import SweepStateError, can_go_on


def record(folder, time, *trials, cut=None):
    folder.mkdir(exist_ok=True)
    (folder / "tuner.pkl").touch()
    text = json.dumps({"trial_data": [[json.dumps({"trial_id": trial}), "{}"] for trial in trials]})
    (folder / f"experiment_state-{time}.json").write_text(text[:cut])


def test_a_sweep_that_never_began(tmp_path):
    assert not can_go_on(str(tmp_path), ())
    (tmp_path / "tuner.pkl").touch()
    assert not can_go_on(str(tmp_path), ())


def test_a_whole_record_is_gone_on_with(tmp_path):
    record(tmp_path, "1", "a_0", "a_1")
    assert can_go_on(str(tmp_path), {"a_1"})


def test_a_record_cut_short_gives_way_to_one_that_knows_as_much(tmp_path):
    record(tmp_path, "1", "a_0")
    record(tmp_path, "2", "a_0", "a_1", cut=30)
    assert can_go_on(str(tmp_path), {"a_0"})
    assert sorted(file.name for file in tmp_path.glob("*experiment*")) == [
        "damaged-experiment_state-2.json", "experiment_state-1.json",
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_finished_trials_are_never_made_again(tmp_path, cut):
    record(tmp_path, "2", "a_0", "a_1", cut=cut)
    with pytest.raises(SweepStateError, match=r"is damaged: 1 finished trials \(a_1\) would be trained again"):
        can_go_on(str(tmp_path), {"a_1"})
    record(tmp_path, "1", "a_0")
    with pytest.raises(SweepStateError, match="is damaged"):
        can_go_on(str(tmp_path), {"a_1"})
    assert (tmp_path / "experiment_state-2.json").exists()
    # Where nothing was finished, nothing is lost by beginning again.
    assert can_go_on(str(tmp_path), ())


def test_finished_trials_are_those_whose_training_ended(tmp_path):
    assert sweep_history.finished_trials(str(tmp_path / "none")) == frozenset()
    for run, last in (("a_0", True), ("a_1", False), ("a_2-3", True)):
        sweep_history.save_history(str(tmp_path / run), {}, [Point(1, 4, 0.1, "c"), Point(2, 8, 0.2, "c", last)])
    assert sweep_history.finished_trials(str(tmp_path)) == {"a_0", "a_2"}
