"""The chain from labels back to what people labelled, over two rounds."""

import json
from pathlib import Path

from pipelines import checkpoints, commit, dataset_writer, provenance, storage
from pipelines.dataset import Dataset
from pipelines.inspect import InspectConfig
from pipelines.inspect import run as inspect
from pipelines.optim import build_optimiser
from pipelines.predictions import PredictionsManifest
from tests.pipelines import tiny_run
from tests.pipelines.tiny_shards import CLASSES, detected, record, thing, write_dataset, write_predictions


def trained(folder, sets, **begun_with):
    """A run's folder as training leaves it."""
    detector = tiny_run.build()
    optimiser = build_optimiser(detector, tiny_run.config((), folder).optim)
    made = checkpoints.write(str(folder), checkpoints.snapshot(1, detector, optimiser, CLASSES))
    body = {"identity": {"config": begun_with}, "train": [data.uri for data in sets], "tracking": {}}
    filesystem, path = storage.open_uri(f"{folder}/run.json")
    commit.write_file(filesystem, path, commit.sealed("run", 1, body))
    return made


def pseudo(folder, chain):
    filesystem, path = storage.open_uri(str(folder))
    info = dataset_writer.write_shard(filesystem, path, 0, [record(50, [thing(1, (0, 0, 9, 9))])], {})
    source = {"kind": "distill", "provenance": provenance.to_json(chain)}
    dataset_writer.commit_dataset(filesystem, path, dataset_writer.Draft(CLASSES, (info,), (), 1, 1, source, "p"))
    return Dataset(str(folder))


def test_the_chain_reaches_back_over_two_rounds(tmp_path):
    people = write_dataset(tmp_path / "people", [[record(1, [thing(1, (0, 0, 9, 9))])]])
    pool = write_dataset(tmp_path / "pool", [[record(9)]])
    labels = write_predictions(tmp_path / "labels", pool, lambda one: detected(one, []))
    found = PredictionsManifest.load(labels)
    first = trained(tmp_path / "teacher", [people])
    assert [uri for uri, _ in provenance.training_sets(first)] == [people.uri]
    one = provenance.of_distillation(people, (pool.uri, pool.manifest), found, first)
    made = pseudo(tmp_path / "pseudo", one)
    second = trained(tmp_path / "student", [people, made])
    two = provenance.of_distillation(people, (pool.uri, pool.manifest), found, second)
    assert (one["round"], two["round"]) == (1, 2)
    assert two["teacher"]["data"][1]["from"] == json.loads(json.dumps(one))
    assert two["teacher"]["files"] == second.files
    again = pseudo(tmp_path / "again", two)
    text = inspect(InspectConfig(again.uri)).text
    for line in ("round 2: labels of", f"by the teacher {second.uri}", f"it learned from {made.uri}", "round 1:"):
        assert line in text, text
    assert "round" not in inspect(InspectConfig(people.uri)).text


def test_what_the_first_weights_saw_is_in_the_chain(tmp_path):
    sets = [write_dataset(tmp_path / name, [[record(number)]]) for number, name in enumerate("abc", start=1)]
    first = trained(tmp_path / "first", [sets[0]])
    other = trained(tmp_path / "other", [sets[1]], init="", rpn_from=f"{tmp_path}/last")
    last = trained(tmp_path / "last", [sets[2], sets[0]], init=first.uri, rpn_from=other.uri)
    assert [uri for uri, _ in provenance.training_sets(last)] == [sets[2].uri, sets[0].uri, sets[1].uri]


def test_a_teacher_that_is_not_there_any_more(tmp_path):
    people = write_dataset(tmp_path / "people", [[record(1)]])
    found = PredictionsManifest.load(write_predictions(tmp_path / "labels", people, lambda one: detected(one, [])))
    chain = provenance.of_distillation(people, (people.uri, people.manifest), found, None)
    assert (chain["round"], chain["teacher"]["data"]) == (1, [])
    assert "by the teacher not named (c)" in "\n".join(provenance.lines(chain))
    gone = trained(tmp_path / "run", [people])
    (tmp_path / "people" / "manifest.json").unlink()
    lost = provenance.of_distillation(people, (people.uri, people.manifest), found, gone)
    assert "not there any more" in "\n".join(provenance.lines(lost))
    assert provenance.training_sets(gone) == []


def test_an_installed_wheel_has_no_state_of_sources(tmp_path, monkeypatch):
    """Whatever repository lies around it."""
    has_history = (Path(provenance.__file__).parents[1] / ".git").exists()
    assert bool(provenance.versions()["sources"]) is has_history
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "pipelines" / "provenance.py"))
    assert provenance.versions()["sources"] is None
