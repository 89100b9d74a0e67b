"""What a worker is fed: held-out pictures never, pseudo-labelled ones in their share, their regions ignored."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.matching import ignored
from model.roi.sampling import sample_rois
from pipelines import checkpoints, dataset_writer, loop, storage, train, train_feed
from pipelines.config import PseudoConfig, TrainConfig, default_ratio
from pipelines.dataset import Dataset
from pipelines.geometry import AugmentConfig
from pipelines.holdout import held_out_by, held_out_ids
from pipelines.train_feed import Place, build_batches, held_out, trained_on
from tests.pipelines import tiny_pictures, tiny_run, tiny_shards

CPU = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("people"), (12, 8))


def pseudo_set(folder, records):
    """Records as what distill writes."""
    filesystem, path = storage.open_uri(str(folder))
    info = dataset_writer.write_shard(filesystem, path, 0, records, {})
    source = {"kind": "distill"}
    draft = dataset_writer.Draft(tiny_shards.CLASSES, (info,), (), len(records), info.instances, source, "p")
    dataset_writer.commit_dataset(filesystem, path, draft)
    return Dataset(str(folder))


def as_labelled_by_a_detector(number, uncertain, weight=0.5):
    """A scene whose objects have a weight; the uncertain ones are ignored."""
    record = tiny_run.scene(number)
    things = [
        thing._replace(loss_weight=weight, ignore=place in uncertain, crowd=place in uncertain)
        for place, thing in enumerate(record.instances)
    ]
    return dataclasses.replace(record, image_id=1000 + number, instances=tuple(things))


@pytest.fixture(scope="module")
def pseudo(tmp_path_factory):
    records = [as_labelled_by_a_detector(number, {1}) for number in range(1, 21, 2)]  # two objects each
    return pseudo_set(tmp_path_factory.mktemp("pseudo"), records)


def test_held_out_pictures_never_come(people, tmp_path):
    config = tiny_run.config(people, tmp_path, holdout=0.2, holdout_seed=3)
    out = set(held_out(config, people).tolist())
    assert len(out) == 4
    batches = build_batches(config, CPU)
    seen = {int(n) for step in range(12) for n in batches[step].image_ids}
    assert seen == set(people.image_ids.tolist()) - out
    assert trained_on(config)[people.manifest.hash].tolist() == sorted(out)


def test_the_checkpoint_knows_what_was_held_out(people, tmp_path):
    config = tiny_run.config(people, tmp_path, optim={"steps": 2}, holdout=0.2)
    loop.fit(tiny_run.job(config), CPU, lambda row: None)
    out = frozenset(held_out(config, people).tolist())
    assert held_out_by(checkpoints.load(str(tmp_path))) == {people.manifest.hash: out}
    assert len(out) == 4


def begun(people, out, earlier, **changes):
    """A run of two steps that begins with another's weights."""
    config = tiny_run.config(people, out, optim={"steps": 2}, init=earlier, **changes)
    loop.fit(tiny_run.job(config), CPU, lambda row: None)
    return checkpoints.load(str(out))


def test_what_the_first_weights_saw_is_not_held_out(people, tmp_path):
    config = tiny_run.config(people, tmp_path / "first", optim={"steps": 2}, holdout=0.2)
    loop.fit(tiny_run.job(config), CPU, lambda row: None)
    first = held_out(config, people)
    again = begun(people, tmp_path / "again", str(tmp_path / "first"), holdout=0.5, holdout_seed=1)
    wanted = set(held_out_ids(people.image_ids, 0.5, 1).tolist()) & set(first.tolist())
    assert held_out_by(again) == {people.manifest.hash: wanted}
    other = tiny_run.dataset(tmp_path / "other", (6,), stride=2)
    second = begun(other, tmp_path / "second", again.uri, holdout=0.5)
    assert held_out_by(second)[people.manifest.hash] == wanted
    assert len(held_out_by(second)[other.manifest.hash]) == 3


def test_first_weights_that_do_not_know_what_they_saw(people, tmp_path, monkeypatch):
    """Neither this run nor any that begins with it can say what was held out."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "trained_on", lambda config: {})
        begun(people, tmp_path / "old", "")
    second = begun(people, tmp_path / "second", str(tmp_path / "old"))
    assert held_out_by(second) == {}
    config = tiny_run.config(people, tmp_path / "third", init=second.uri, holdout=0.2)
    with pytest.raises(train.RunConflictError, match="does not say which pictures it was trained on, so holding"):
        train.resolve(config)


def test_only_the_first_set_holds_pictures_out(people, pseudo, tmp_path):
    config = tiny_run.config((people, pseudo), tmp_path, holdout=0.5)
    assert (len(held_out(config, people)), len(held_out(config, pseudo))) == (10, 0)


@pytest.mark.parametrize(
    ("sizes", "made", "wanted"),
    [
        ((100, 50), (False, False), (2, 1)),
        ((100, 5000), (False, True), (3, 2)),
        ((5, 100), (True, False), (2, 3)),
        ((30, 90, 10), (False, False, True), (3 * 1, 3 * 3, 2 * 4)),
        ((7,), (True,), (1,)),
    ],
)
def test_people_and_detectors_share_a_batch_six_to_four(sizes, made, wanted):
    ratio = default_ratio(sizes, made)
    assert [r * wanted[0] for r in ratio] == [w * ratio[0] for w in wanted]


def test_a_batch_is_mixed_six_to_four_without_being_told(people, pseudo, tmp_path):
    config = tiny_run.config((people, pseudo), tmp_path, optim={"batch": 10})
    batches = build_batches(config, CPU)
    assert [int((batches[step].image_ids >= 1000).sum()) for step in range(5)] == [4] * 5


def test_uncertain_objects_are_ignored_and_weights_multiply(people, pseudo, tmp_path):
    config = tiny_run.config((people, pseudo), tmp_path)
    batch = build_batches(config, CPU)[0]
    made = batch.image_ids >= 1000
    targets = batch.targets
    assert targets.ignore[made].sum(dim=1).tolist() == [1] * int(made.sum())
    assert not targets.ignore[~made].any()
    assert set(targets.weights[made][targets.valid[made]].tolist()) == {0.5}
    assert set(targets.weights[~made][targets.valid[~made]].tolist()) == {1.0}
    off = dataclasses.replace(config, pseudo=PseudoConfig(ignore=False, weights=False))
    plain = build_batches(off, CPU)[0].targets
    assert (plain.ignore, plain.weights) == (None, None)
    alone = build_batches(tiny_run.config(people, tmp_path), CPU)[0].targets
    assert (alone.ignore, alone.weights) == (None, None)


def test_strong_augmentation_is_for_pseudo_labelled_pictures_alone(people, pseudo, tmp_path):
    config = tiny_run.config((people, pseudo), tmp_path, augment=AugmentConfig(flip=0.0))
    strong = PseudoConfig(strong=True, augment=AugmentConfig(flip=0.0, short_edges_px=(32,)))
    plain, changed = (build_batches(one, CPU)[0] for one in (config, dataclasses.replace(config, pseudo=strong)))
    made = plain.image_ids >= 1000
    short = [batch.images.sizes_hw.amin(dim=1) for batch in (plain, changed)]
    assert short[0].tolist() == [64] * len(made)
    assert short[1][made].tolist() == [32] * int(made.sum())
    assert short[1][~made].tolist() == [64] * int((~made).sum())


@pytest.mark.parametrize("ignore", [True, False])
def test_an_ignored_object_is_not_taught_as_background(ignore, tmp_path):
    """From the shard to what both stages draw: boxes on an uncertain object are background only where asked for."""
    data = pseudo_set(tmp_path / "pseudo", [as_labelled_by_a_detector(number, {0, 1}) for number in range(1, 9)])
    config = tiny_run.config(data, tmp_path, pseudo=PseudoConfig(ignore=ignore))
    batch, shown = build_batches(config, CPU)[0], build_batches(tiny_run.config(data, tmp_path), CPU)[0]
    regions = shown.targets.boxes * shown.targets.ignore[..., None]  # of no extent where there is none
    corner = torch.tensor([0.0, 0.0, 2.0, 2.0]).expand(len(regions), 1, 4)
    candidates = torch.cat([regions, corner], dim=1)
    there = torch.cat([shown.targets.ignore, torch.ones(len(regions), 1, dtype=torch.bool)], dim=1)
    skipped = ignored(candidates, batch.targets).expand_as(there)
    assert torch.equal(skipped & there, there & torch.tensor([ignore] * (there.shape[1] - 1) + [False]))
    drawn = sample_rois(candidates, there, batch.targets, 2, config.detector.box, 0.5, 0)
    background = [boxes[valid] for boxes, valid in zip(drawn.boxes, drawn.valid & ~drawn.positive, strict=True)]
    assert not drawn.positive.any()
    for boxes, of_picture in zip(background, there, strict=True):
        assert len(boxes) == (1 if ignore else int(of_picture.sum()))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match=r"training needs 0 <= holdout < 1 and holdout-seed >= 0, got 1.0 and 0"):
        TrainConfig(holdout=1.0)
    with pytest.raises(ValueError, match=r"got 0.1 and -1"):
        TrainConfig(holdout=0.1, holdout_seed=-1)


def test_the_length_of_a_run_counts_the_pictures_it_sees(people, tmp_path):
    config = tiny_run.config(people, tmp_path, holdout=0.5, optim={"epochs": 2})
    assert train.resolve(config)[0].optim.steps == 5


@pytest.mark.parametrize(("batch", "drawn"), [(16, "10 : 6"), (10, "6 : 4")])
def test_a_run_says_how_its_batches_are_divided(people, pseudo, tmp_path, batch, drawn):
    given = tiny_run.config((people, pseudo), tmp_path, optim={"batch": batch})
    resolved = train.resolve(given)[0]
    assert f"steps of {batch} pictures ({drawn} of the training sets), " in train._plan(given, resolved)


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from pipelines.train_feed import Place, build_batches
from pipelines.dataset import Dataset
from tests.pipelines import tiny_run
torch.set_num_threads(1)
batches = build_batches(tiny_run.config(Dataset(sys.argv[1]), "out", optim={"batch": 2}), tiny_run.CPU)
batches[0]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]), -1))
try:
    batches[1]
except MemoryError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [1 << 20, *(pytest.param(1 << power, marks=pytest.mark.soak) for power in (16, 22))])
def test_too_little_memory_for_a_batch_names_its_pictures(tmp_path, room):
    """A limit on the address space, as a batch system sets it; pictures that take more than is left."""
    side = 2000
    pixels = np.zeros((side, side, 3), np.uint8)
    records = [
        tiny_shards.record(
            40 + n, [tiny_shards.thing(n, (2, 3, 900, 800))], (side, side), image=tiny_pictures.png(pixels)
        )
        for n in range(2)
    ]
    data = tiny_shards.write_dataset(tmp_path, [records])
    command = [sys.executable, "-c", LITTLE_MEMORY, data.uri, str(room)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.startswith("too little memory to build the batch of pictures [4")
    assert "of up to 2000 x 2000 pixels (" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "lower execution.loader_processes (or loader_actors) or optim.batch" in done.stdout


def test_a_loader_that_was_killed_is_named_with_its_pictures(people, tmp_path, monkeypatch):
    def killed(*_):
        yield from ()
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def other(*_):
        yield from ()
        raise RuntimeError("sizes differ")

    config = tiny_run.config(people, tmp_path, execution={"loader_processes": 2})
    monkeypatch.setattr(train_feed, "stream", killed)
    feed = train_feed.Feed(config, CPU, 3)
    first = [int(n) for n in build_batches(config, CPU)[3].image_ids]
    with pytest.raises(train_feed.LoaderKilledError, match=r"building one of: pictures \[") as caught:
        list(feed.parts())
    assert f"pictures {first}, of up to" in str(caught.value)
    assert str(caught.value).count("pictures [") == 2
    monkeypatch.setattr(train_feed, "stream", other)
    with pytest.raises(RuntimeError, match=r"^sizes differ$"):
        list(train_feed.Feed(config, CPU, 3).parts())
