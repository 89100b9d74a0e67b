"""Settings in a file, as `maskray train --config` takes them."""

import json

import pytest

from model.settings import to_dict
from pipelines import cli, config_file, train
from pipelines.presets import preset


def write(path, values):
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_a_run_comes_back(tmp_path):
    base = preset("mask_rcnn_r50_fpn_1x")
    assert config_file.load(write(tmp_path / "c.json", to_dict(base))) == base


def test_train_takes_the_file_and_flags_over_it(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "run", lambda config, *_: seen.append(config) or 1 / 0)
    path = write(tmp_path / "c.json", to_dict(preset("small_mask_rcnn_r18_fpn")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train", "--config", path, "--train", "d", "--out", "o", "--optim.steps", "7"])
    assert (seen[0].optim.steps, seen[0].optim.batch, seen[0].out) == (7, 8, "o")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .*: give a JSON file of settings"),
        ("[1]", "holds list, wanted an object of settings"),
        ('{"optim": {"lr": 1}}', "cannot be used: OptimConfig has no field 'lr'"),
        ('{"seed": "a"}', "cannot be used: seed is int, got 'a'"),
        ('{"optim": {"steps": 0}}', "cannot be used: optim.steps must be > 0"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        config_file.load(write(tmp_path / "c.json", text))


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*: give the best\.json of a sweep"):
        config_file.load(str(tmp_path / "none.json"))
