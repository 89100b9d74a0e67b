"""Checkpoints come back exactly or not at all: identity, interruptions, damage."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import Norm
from pipelines import checkpoints, commit, storage
from pipelines.checkpoints import CheckpointError
from pipelines.manifest import ClassInfo
from pipelines.optim import Algorithm, OptimConfig, build_optimiser
from tests.pipelines import tiny_run

CLASSES = (ClassInfo(3, "dog"), ClassInfo(7, "kätzchen", ("nose", "tail")))
FILES = ("model", "optimizer", "checkpoint.json")
OLD = Path(__file__).parent / "old_checkpoints" / "v1"
OLD_HASH = "ac833ba5e2893d41074d82c8351fe780eb98a6af985ab0f87b3a17fd0f2755d6"


def trained(seed=0, norm=Norm.BATCH, algorithm=Algorithm.SGD):
    """A detector and an optimiser with two steps behind them."""
    detector = tiny_run.build(norm, seed)
    optimiser = build_optimiser(detector, OptimConfig(algorithm))
    for step in range(2):
        for number, parameter in enumerate(detector.parameters()):
            noise = torch.Generator().manual_seed(1000 * seed + 100 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=noise)
        optimiser.step()
    return detector, optimiser


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def moved(optimiser):
    state = optimiser.state_dict()["state"]
    return {f"{n}.{name}": value for n, slots in state.items() for name, value in slots.items() if value is not None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Bytes of a small checkpoint by file name, and what it was made of."""
    run = tmp_path_factory.mktemp("run")
    detector, optimiser = trained()
    made = checkpoints.save(str(run), 12, detector, optimiser, CLASSES)
    return contents(run / "checkpoints/step-00000012"), made


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def named(files, kind):
    """The one of some files that is the model, the optimiser or the manifest."""
    return next(name for name in files if name.startswith(kind))


def placed(folder, files, step=12, without=()):
    target = folder / "checkpoints" / f"step-{step:08d}"
    target.mkdir(parents=True)
    for name, data in files.items():
        if name not in without:
            (target / name).write_bytes(data)
    return target


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("norm", [Norm.BATCH, Norm.FROZEN])
def test_what_was_saved_is_restored(tmp_path, norm, algorithm):
    detector, optimiser = trained(0, norm, algorithm)
    made = checkpoints.save(str(tmp_path), 7, detector, optimiser, CLASSES)
    assert (made.step, made.classes, made.detector) == (7, CLASSES, detector.config)
    assert checkpoints.load(made.uri) == made == checkpoints.load(str(tmp_path))
    assert_same_state(checkpoints.load_detector(made).state_dict(), detector.state_dict())
    other, other_optimiser = trained(1, norm, algorithm)
    checkpoints.restore(made, other, other_optimiser)
    assert_same_state(other.state_dict(), detector.state_dict())
    assert_same_state(moved(other_optimiser), moved(optimiser))
    for network, mover in ((detector, optimiser), (other, other_optimiser)):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        mover.step()
    assert_same_state(other.state_dict(), detector.state_dict())


def test_an_optimiser_that_never_moved_is_restored(tmp_path):
    detector, config = tiny_run.build(), OptimConfig(Algorithm.ADAMW)
    made = checkpoints.save(str(tmp_path), 1, detector, build_optimiser(detector, config), CLASSES)
    other = tiny_run.build(seed=1)
    optimiser = build_optimiser(other, config)
    checkpoints.restore(made, other, optimiser)
    assert optimiser.state_dict()["state"] == {}


def test_its_hash_names_its_content(tmp_path, saved):
    _, made = saved
    detector, optimiser = trained()
    again = checkpoints.save(str(tmp_path / "a"), 12, detector, optimiser, CLASSES)
    assert again.hash == made.hash
    other, _ = trained(1)
    for step, network, classes in ((13, detector, CLASSES), (12, other, CLASSES), (12, detector, CLASSES[::-1])):
        run = str(tmp_path / f"{step}{classes[0].name}{network is detector}")
        assert checkpoints.save(run, step, network, optimiser, classes).hash != made.hash


def test_a_committed_checkpoint_is_left_as_it_is(tmp_path, saved):
    files, made = saved
    folder = placed(tmp_path, files)
    detector, optimiser = trained(5)
    again = checkpoints.save(str(tmp_path), 12, detector, optimiser, CLASSES)
    assert again.hash == made.hash
    assert contents(folder) == files


def test_the_latest_is_the_newest_that_was_finished(tmp_path, saved):
    files, _ = saved
    assert checkpoints.latest(str(tmp_path)) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoints.latest(str(tmp_path)) is None
    placed(tmp_path, files, 99, without=("checkpoint.json",))
    assert checkpoints.latest(str(tmp_path)) is None
    for step in (9, 10, 3):
        placed(tmp_path, files, step)
    (tmp_path / "checkpoints" / "step-00000500.old").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert checkpoints.latest(str(tmp_path)).uri.endswith("step-00000010")
    assert checkpoints.latest(str(tmp_path) + "/").uri == checkpoints.latest(str(tmp_path)).uri


class Dies:
    """Kills a write at a point."""

    def __init__(self, point):
        self._point = point

    def reach(self, point):
        if point == self._point:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dies_in", FILES)
def test_a_save_that_died_is_not_seen_and_made_again(tmp_path, saved, monkeypatch, dies_in):
    files, made = saved
    write = commit.write_file

    def write_or_die(filesystem, path, data, **options):
        faults = Dies("before_rename") if Path(path).name.startswith(dies_in) else None
        write(filesystem, path, data, faults=faults, **options)

    detector, optimiser = trained()
    monkeypatch.setattr(commit, "write_file", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(str(tmp_path), 12, detector, optimiser, CLASSES)
    assert checkpoints.latest(str(tmp_path)) is None
    monkeypatch.undo()
    assert checkpoints.save(str(tmp_path), 12, detector, optimiser, CLASSES).hash == made.hash
    assert contents(tmp_path / "checkpoints/step-00000012") == files


def read_all(uri):
    detector, optimiser = tiny_run.build(seed=1), None
    optimiser = build_optimiser(detector, OptimConfig())
    checkpoints.restore(checkpoints.load(uri), detector, optimiser)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(tmp_path, saved, name):
    files, _ = saved
    name = named(files, name)
    target = placed(tmp_path, files) / name
    good = files[name]
    read = checkpoints.load if name == "checkpoint.json" else read_all
    rng = np.random.default_rng(len(good))
    places = range(len(good)) if name == "checkpoint.json" else {0, 7, 8, len(good) - 1, *rng.integers(0, len(good), 4)}
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(8))
        target.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"it is damaged.* use another checkpoint"):
            read(str(tmp_path))
    target.write_bytes(good)
    read_all(str(tmp_path))


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_missing_file_is_found(tmp_path, saved, name):
    files, _ = saved
    lacking, name = f"lacks {name}.safetensors: use another", named(files, name)
    folder = placed(tmp_path, files)
    for size in (0, 1, len(files[name]) // 2, len(files[name]) - 1):
        (folder / name).write_bytes(files[name][:size])
        with pytest.raises(CheckpointError, match="use another checkpoint"):
            read_all(str(tmp_path))
    (folder / name).unlink()
    match = "no finished checkpoint: give the --out" if name == "checkpoint.json" else lacking
    with pytest.raises(CheckpointError, match=match):
        read_all(str(folder))


@pytest.mark.parametrize("body", ["[]", "null", "{}", '"checkpoint"', "[" * 100_000, '{"kind": "dataset"}'])
def test_other_json_is_no_checkpoint(tmp_path, saved, body):
    folder = placed(tmp_path, saved[0])
    (folder / "checkpoint.json").write_text(body)
    with pytest.raises(CheckpointError, match="is not a checkpoint manifest of version 1 or 2"):
        checkpoints.load(str(folder))


def test_another_version_is_named(tmp_path, saved):
    folder = placed(tmp_path, saved[0])
    body = json.loads(saved[0]["checkpoint.json"]) | {"format_version": 3}
    (folder / "checkpoint.json").write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match=r"'checkpoint', version 3.* of another version of maskray"):
        checkpoints.load(str(folder))


def test_weights_of_another_detector_do_not_fit(saved, tmp_path):
    placed(tmp_path, saved[0])
    other = tiny_run.build(Norm.GROUP)
    with pytest.raises(ValueError, match=r"does not fit this detector \(\d+ unknown: .*running_mean"):
        checkpoints.restore(checkpoints.load(str(tmp_path)), other, build_optimiser(other, OptimConfig()))


def test_no_checkpoint_anywhere(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished checkpoint: give the --out of `maskray train`"):
        checkpoints.load(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert storage.open_uri(str(tmp_path))[1] == str(tmp_path)


def test_the_newest_and_the_protected_are_retained(tmp_path, saved):
    files, _ = saved
    for step in (2, 4, 6, 8):
        placed(tmp_path, files, step)
    assert checkpoints.retain(str(tmp_path), 0, ()) == []
    assert checkpoints.retain(str(tmp_path), 2, {2}) == [4]
    assert checkpoints.steps(str(tmp_path)) == [2, 6, 8]
    assert not (tmp_path / "checkpoints" / "step-00000004").exists()
    assert checkpoints.retain(str(tmp_path), 9, ()) == []


def test_one_that_is_half_deleted_is_no_checkpoint(tmp_path, saved, monkeypatch):
    """The manifest goes first: a reader never sees a manifest whose files are gone."""
    for step in (2, 4):
        placed(tmp_path, saved[0], step)

    def dies(filesystem, path):
        checkpoints_delete(filesystem, path)
        raise KeyboardInterrupt

    checkpoints_delete = storage.delete_file
    monkeypatch.setattr(storage, "delete_file", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.retain(str(tmp_path), 1, ())
    assert checkpoints.steps(str(tmp_path)) == [4]


def test_what_was_deleted_or_written_by_half_is_swept(tmp_path, saved):
    """Where a newer checkpoint is there; a folder after it may be one that is being written."""
    files, _ = saved
    for step in (2, 4, 6, 8):
        placed(tmp_path, files, step, without=("checkpoint.json",) if step in (2, 8) else ())
    assert checkpoints.retain(str(tmp_path), 0, ()) == []
    assert sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6", "8"]


def test_of_two_writers_with_other_weights_one_is_whole(tmp_path, saved):
    """A process that was taken for dead, and the one that took its place: never a mixture of both."""
    made, gate = [], threading.Barrier(2)
    for seed in (0, 1):
        detector, optimiser = trained(seed)
        made.append(checkpoints.snapshot(12, detector, optimiser, CLASSES))

    def write(number):
        gate.wait()
        checkpoints.write(str(tmp_path), made[number])

    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read_all(str(tmp_path))
    folder = tmp_path / "checkpoints/step-00000012"
    whole = [dict(files.files) for files in made]
    found = checkpoints.load_detector(checkpoints.load(str(tmp_path))).state_dict()
    assert any(all(torch.equal(found[k], v) for k, v in one["model.safetensors"].items()) for one in whole)
    assert len(list(folder.iterdir())) == 3
    (folder / "notes.txt").write_text("mine")
    checkpoints.write(str(tmp_path), made[0])
    assert (folder / "notes.txt").exists()


def test_a_run_goes_on_from_its_newest_sound_checkpoint(tmp_path, saved):
    files, _ = saved
    model = named(files, "model")
    for step in (2, 4, 6):
        placed(tmp_path, files, step)
    assert checkpoints.set_damaged_aside(str(tmp_path)) == []
    for step, cut in ((4, files[model][:-1]), (6, None)):
        path = tmp_path / "checkpoints" / f"step-0000000{step}" / model
        path.unlink() if cut is None else path.write_bytes(cut)
    told = checkpoints.set_damaged_aside(str(tmp_path))
    assert ["lacks model" in told[0], "does not match the sha256" in told[1]] == [True, True]
    assert checkpoints.steps(str(tmp_path)) == [2]
    detector, optimiser = trained()
    checkpoints.save(str(tmp_path), 4, detector, optimiser, CLASSES)  # they are written again
    assert checkpoints.set_damaged_aside(str(tmp_path)) == []
    assert checkpoints.steps(str(tmp_path)) == [2, 4]


def test_a_run_without_a_sound_checkpoint_is_left_as_it_is(tmp_path, saved):
    files, _ = saved
    assert checkpoints.set_damaged_aside(str(tmp_path)) == []
    for step in (2, 4):
        placed(tmp_path, files, step, without=(named(files, "optimizer"),))
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is sound .* put back a copy"):
        checkpoints.set_damaged_aside(str(tmp_path))
    assert checkpoints.steps(str(tmp_path)) == [2, 4]


def test_a_checkpoint_of_version_1_reads_as_it_was_written(tmp_path):
    """Its files have fixed names."""
    found = checkpoints.load(str(OLD))
    assert (found.hash, found.step, found.version) == (OLD_HASH, 7, 1)
    state = checkpoints.load_detector(found).state_dict()
    assert all(bool((value == number % 7).all()) for number, value in enumerate(state.values()))
    assert set(checkpoints.model_files(found)) == {"model.safetensors", "checkpoint.json"}


def test_a_model_alone_is_enough_to_predict(tmp_path, saved):
    files, _ = saved
    placed(tmp_path, files)
    made = checkpoints.load(str(tmp_path))
    alone = checkpoints.model_files(made)
    assert set(alone) == {named(files, "model"), "checkpoint.json"}
    (tmp_path / "alone").mkdir()
    for name, content in alone.items():
        (tmp_path / "alone" / name).write_bytes(content)
    back = checkpoints.load_detector(checkpoints.load(str(tmp_path / "alone")))
    assert_same_state(back.state_dict(), checkpoints.load_detector(made).state_dict())
