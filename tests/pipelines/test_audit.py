"""The audit against counts by hand, and what it refuses."""

import pytest
import torch

from pipelines import audit, checkpoints, commit, predict, provenance
from pipelines.audit import AuditError, ClassAudit, judge_picture
from pipelines.dataset import Dataset
from pipelines.holdout import TRAINED_ON
from pipelines.making import Making
from pipelines.optim import build_optimiser
from pipelines.selection import ClassSelection
from tests.pipelines import tiny_run, tiny_shards
from tests.pipelines.tiny_shards import CLASSES, detected, thing, write_dataset, write_predictions

A, B, C, D = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 20, 40), (40, 20, 60, 40)


def record(number, *arguments, content=None):
    digest = commit.sha256_of(b"%d" % (number if content is None else content))
    return tiny_shards.record(number, *arguments, sha256=digest)


def rows():
    return [ClassAudit("dog", 0.5), ClassAudit("cat", 0.7)]


def test_one_picture_by_hand():
    """Two dogs, a cat, a crowd: one dog found with half its mask, the other uncertain, the cat missed."""
    things = [thing(1, A), thing(2, B), thing(3, C, 1), thing(4, D, crowd=True)]
    found = detected(
        record(1),
        [(0, 0, 10, 6), A, B, C, D, (45, 0, 50, 5), (0, 0, 0, 0)],
        [0, 0, 0, 1, 0, 0, 0],
        [0.9, 0.8, 0.4, 0.3, 0.95, 0.6, 0.99],
    )
    made = rows()
    judge_picture(record(1, things), found, made, [0.25, 0.35])
    dog, cat = made
    # The best dog takes the first object; its twin and the lone one are wrong; that on the crowd is neither.
    assert (dog.objects, dog.labels, dog.matched, dog.ignored) == (2, 3, 1, 1)
    assert dog.iou_sum == pytest.approx(0.6)
    assert (cat.objects, cat.labels, cat.matched, cat.ignored) == (1, 0, 0, 0)
    total = audit.Audit(1, tuple(made)).total
    assert (total.precision, total.recall, total.mean_iou) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 0.6)
    assert (cat.precision, cat.recall, cat.mean_iou) == (None, 0.0, None)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    things = [[thing(10 * n, A), thing(10 * n + 1, C, 1)] for n in range(1, 7)]
    return write_dataset(tmp_path_factory.mktemp("people"), [[record(n + 1, t) for n, t in enumerate(things)]])


def teacher(folder, held_out):
    """A checkpoint that says what it held out."""
    detector = tiny_run.build()
    optimiser = build_optimiser(detector, tiny_run.config((), folder).optim)
    extra = {TRAINED_ON: {key: torch.tensor(sorted(ids), dtype=torch.int64) for key, ids in held_out.items()}}
    return checkpoints.write(str(folder), checkpoints.snapshot(1, detector, optimiser, CLASSES, extra))


def chosen():
    return [
        ClassSelection(name, 30, 1.0, 6, threshold, threshold, threshold / 2, 6, 0, 9, False)
        for name, threshold in (("dog", 0.5), ("cat", 0.7))
    ]


@pytest.fixture
def predicted(monkeypatch):
    """Instead of the detector: every object of the first class exactly, nothing of the second."""
    asked = []

    def labels(config):
        asked.append(config)
        data = Dataset(config.data)
        write_predictions(config.out, data, lambda one: detected(one, [A], [0], [0.8]))

    monkeypatch.setattr(predict, "run", labels)
    return asked


def test_only_what_was_held_out_is_labelled(people, predicted, tmp_path):
    made = teacher(tmp_path / "run", {people.manifest.hash: {2, 5}})
    making = Making(("64", "64f"), 0.7, "bf16", 3, 2, "cpu", "none")
    found = audit.run(str(tmp_path / "out"), people.uri, made, chosen(), "", making)
    assert found.pictures == 2
    dog, cat = found.classes
    assert (dog.precision, dog.recall, dog.mean_iou) == (1.0, 1.0, 1.0)
    assert (cat.objects, cat.recall) == (2, 0.0)
    seen = Dataset(predicted[0].data)
    assert seen.image_ids.tolist() == [2, 5]
    assert not seen.labelled.any()
    assert all(not seen.record(at).instances for at in range(2))
    assert predicted[0].checkpoint == made.uri
    asked = predicted[0]
    assert (asked.views, asked.voting_iou, asked.precision.value) == ("64,64f", 0.7, "bf16")
    assert asked.merge.value == "none"
    assert (asked.batch, asked.cpus_per_worker, asked.gpu) == (3, 2, False)
    assert audit.load(str(tmp_path / "out")) == found
    assert [row[0] for row in audit.table(found)] == ["dog", "cat", "all"]


def test_pictures_the_teacher_saw_are_refused(people, predicted, tmp_path, monkeypatch):
    run = str(tmp_path / "out")
    with pytest.raises(AuditError, match=r"saw every picture of .*: train it with --holdout 0.05"):
        audit.run(run, people.uri, teacher(tmp_path / "a", {people.manifest.hash: set()}), chosen(), "")
    with pytest.raises(AuditError, match=r"was not trained on .* as it is now"):
        audit.run(run, people.uri, teacher(tmp_path / "b", {"0" * 64: {2}}), chosen(), "")
    twice = write_dataset(tmp_path / "twice", [[record(1), record(2), record(3, content=2)]])
    with pytest.raises(AuditError, match=r"1 pictures \(such as 2.jpg\) that the teacher held out are also among"):
        audit.run(run, twice.uri, teacher(tmp_path / "c", {twice.manifest.hash: {2}}), chosen(), "")
    other = write_dataset(tmp_path / "other", [[record(50, content=5)]])
    both = teacher(tmp_path / "d", {people.manifest.hash: {2, 5}, other.manifest.hash: set()})
    monkeypatch.setattr(provenance, "training_sets", lambda checkpoint: [(other.uri, other.manifest)])
    with pytest.raises(AuditError, match=r"1 pictures \(such as 5.jpg\)"):
        audit.run(run, people.uri, both, chosen(), "")
    assert predicted == []


@pytest.mark.parametrize("changed", [True, False])
def test_training_sets_that_are_gone_or_changed_are_refused(people, predicted, tmp_path, monkeypatch, changed):
    """A copy of a held-out picture may be in them."""
    other = write_dataset(tmp_path / "other", [[record(50)]])
    made = teacher(tmp_path / "run", {people.manifest.hash: {2, 5}, "f" * 64: set()})
    sets = [(people.uri, people.manifest), *([(other.uri, other.manifest)] if changed else [])]
    monkeypatch.setattr(provenance, "training_sets", lambda checkpoint: sets)
    with pytest.raises(AuditError, match=f"also learned from the data sets {'f' * 64}, which are not where they were"):
        audit.run(str(tmp_path / "out"), people.uri, made, chosen(), "")
    assert predicted == []


def test_no_audit_is_none(tmp_path):
    assert audit.load(str(tmp_path)) is None
