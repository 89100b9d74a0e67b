"""What the demo refuses, and the runs it plans; the walk itself is in the tests that start Ray."""

import json

import pytest

from pipelines import demo
from pipelines.demo import DemoConfig


@pytest.mark.parametrize("name", ["train", "val", "unlabelled", "steps", "student_steps"])
def test_sizes_of_at_least_one(name):
    with pytest.raises(ValueError, match=f"demo needs {name} >= 1, got 0"):
        DemoConfig(**{name: 0})
    DemoConfig(**{name: 1})


@pytest.mark.parametrize("out", ["s3://bucket/demo", "file:///tmp/demo", ""])
def test_the_folder_is_local(out):
    with pytest.raises(ValueError, match=r"demo writes to a local folder, got .*: give a path"):
        DemoConfig(out=out)


def test_workers_are_not_negative():
    with pytest.raises(ValueError, match="demo needs workers >= 0, got -1"):
        DemoConfig(workers=-1)


def test_a_folder_of_something_else_is_refused_before_ray_starts(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"raw"):
        demo.run(DemoConfig(out=str(tmp_path), train=1, val=1, unlabelled=1), lambda line: None)
    assert (tmp_path / "raw" / "mine.txt").read_text() == "keep"


def test_the_student_sees_six_labelled_to_four_pseudo_labelled(tmp_path):
    config = DemoConfig(workers=2, seed=3)
    teacher = demo._training(config, tmp_path, "teacher", 10, ("train",))
    student = demo._training(config, tmp_path, "student", 20, ("train", "pseudo"))
    assert (teacher.ratio, student.ratio) == ((), (6, 4))
    assert student.train == (f"{tmp_path}/data/train", f"{tmp_path}/data/pseudo")
    assert (teacher.optim.steps, student.optim.steps) == (10, 20)
    assert (teacher.out, student.out) == (f"{tmp_path}/teacher", f"{tmp_path}/student")
    assert teacher.seed == student.seed == 3
    assert teacher.detector == student.detector
    assert teacher.execution.workers == 2
    assert demo._training(DemoConfig(), tmp_path, "t", 1, ("train",)).execution.workers in (1, 2)


def test_a_stage_keeps_the_time_it_took_at_first(tmp_path):
    said = []
    stages = demo._Stages(tmp_path, said.append, 2)
    with stages.stage("one", "the first"):
        pass
    assert json.loads((tmp_path / "seconds.json").read_text()) == stages.seconds == {"one": 0.0}
    (tmp_path / "seconds.json").write_text('{"one": 12.5}')
    again = demo._Stages(tmp_path, said.append, 2)
    with again.stage("one", "the first"):
        pass
    with pytest.raises(KeyboardInterrupt), again.stage("two", "the second"):
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"one": 12.5}
    assert said == ["[1/2] one: the first", "[1/2] one: the first", "[2/2] two: the second"]
