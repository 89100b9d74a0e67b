"""The hold-out audit: how good pseudo-labels are, on labelled pictures that the teacher never saw.

Its thresholds are those of a data set that is committed already: they were fixed before any label was read here.
"""

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from model.merge import Merge
from pipelines import commit, dataset_writer, leakage, predict, predictions, provenance, storage
from pipelines import manifest as manifests
from pipelines.checkpoints import Checkpoint
from pipelines.config import Precision
from pipelines.dataset import Dataset
from pipelines.holdout import held_out_by
from pipelines.leakage import ShardPictures
from pipelines.making import Making
from pipelines.picture_score import MIN_IOU, overlaps
from pipelines.predictions import PicturePrediction, PredictionsManifest
from pipelines.records import Record
from pipelines.selection import ClassSelection

FILE_NAME = "audit.json"
_ROWS_PER_SHARD = 64


class AuditError(ValueError):
    """An audit that would not be honest, or that has nothing to look at."""


@dataclasses.dataclass
class ClassAudit:
    """Pseudo-labels of one class beside people's, masks matched from an overlap (IoU) of 0.5 on, best score first.

    Attributes:
        name: of the class.
        threshold: score from which detections are labels.
        objects: annotated by people, crowds and ignored regions not counted.
        labels: pseudo-labels, those on a crowd or an ignored region not counted.
        matched: pairs of both.
        iou_sum: of the pairs' overlaps.
        ignored: objects that no label was matched to but that lie under an uncertain detection: not taught as
            background.
    """

    name: str
    threshold: float
    objects: int = 0
    labels: int = 0
    matched: int = 0
    iou_sum: float = 0.0
    ignored: int = 0

    @property
    def precision(self) -> float | None:
        """Share of the labels that are right; None without labels."""
        return self.matched / self.labels if self.labels else None

    @property
    def recall(self) -> float | None:
        """Share of the objects that are labelled; None without objects."""
        return self.matched / self.objects if self.objects else None

    @property
    def mean_iou(self) -> float | None:
        """Mean mask overlap of the matched pairs; None without any."""
        return self.iou_sum / self.matched if self.matched else None


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
        pictures: looked at.
        classes: one row each.
    """

    pictures: int
    classes: tuple[ClassAudit, ...]

    @property
    def total(self) -> ClassAudit:
        """All classes as one."""
        sums = {
            field.name: sum(getattr(row, field.name) for row in self.classes)
            for field in dataclasses.fields(ClassAudit)
            if field.name not in ("name", "threshold")
        }
        return ClassAudit("all", 0.0, **sums)


def _audited(labelled: Dataset, teacher: Checkpoint) -> list[int]:
    """Rows of the pictures that the teacher held out.

    Raises:
        AuditError: it held none out of this data set, saw their bytes elsewhere, or learned from what is not there.
    """
    known = held_out_by(teacher)
    ids = known.get(labelled.manifest.hash)
    if ids is None:
        raise AuditError(
            f"the teacher {teacher.uri} was not trained on {labelled.uri} as it is now: give the data set it learned "
            "from as --labelled"
        )
    if not ids:
        raise AuditError(
            f"the teacher {teacher.uri} saw every picture of {labelled.uri}, so nothing can be audited: train it "
            "with --holdout 0.05"
        )
    others = {m.hash: Dataset(uri) for uri, m in provenance.training_sets(teacher) if m.hash in known}
    gone = known.keys() - others.keys() - {labelled.manifest.hash}
    if gone:
        raise AuditError(
            f"the teacher {teacher.uri} also learned from the data sets {', '.join(sorted(gone))}, which are not where "
            "they were, or have changed: without them nobody can tell whether it saw copies of the pictures it held "
            "out; put them back"
        )
    seen = {labelled.manifest.hash: labelled, **others}
    parts = [_pictures(dataset, known[key], inside=False) for key, dataset in seen.items()]
    held_out = _pictures(labelled, ids, inside=True)
    leak = held_out.leak(np.unique(np.concatenate([part.hashes for part in parts])))
    if leak.count:
        raise AuditError(
            f"{leak} that the teacher held out are also among the pictures it saw: remove the copies and train again"
        )
    return [int(row) for row in np.flatnonzero(np.isin(labelled.image_ids, sorted(ids)))]


def _pictures(dataset: Dataset, ids: Collection[int], inside: bool) -> ShardPictures:
    """A data set's pictures that are among the ids, or that are not."""
    shards = [leakage.read_shard(dataset.uri, info.file) for info in dataset.manifest.shards]
    hashes = np.concatenate([np.empty(0, "S64"), *(shard.hashes for shard in shards)])
    rows = np.flatnonzero(np.isin(dataset.image_ids, np.array(sorted(ids), np.int64)) == inside)
    names = [name for shard in shards for name in shard.names]
    return ShardPictures(hashes[rows], [names[row] for row in rows])


def _write_pictures(labelled: Dataset, chosen: Sequence[int], uri: str) -> Dataset:
    """The audited pictures without their labels, as a data set; one that is there already is kept."""
    filesystem, folder = storage.open_uri(uri)
    if not storage.is_file(filesystem, storage.join(folder, manifests.FILE_NAME)):
        infos = []
        for number, first in enumerate(range(0, len(chosen), _ROWS_PER_SHARD)):
            records = [
                dataclasses.replace(labelled.record(row), instances=(), labelled=False, semantic=None)
                for row in chosen[first : first + _ROWS_PER_SHARD]
            ]
            infos.append(dataset_writer.write_shard(filesystem, folder, number, records, {}))
        source = {"kind": "audit", "labelled": labelled.manifest.hash}
        draft = dataset_writer.Draft(labelled.manifest.classes, tuple(infos), (), len(chosen), 0, source, "audit")
        dataset_writer.commit_dataset(filesystem, folder, draft)
    return Dataset(uri)


def judge_picture(
    record: Record, found: PicturePrediction, rows: Sequence[ClassAudit], uncertain: Sequence[float]
) -> None:
    """Add one picture to the account of each class.

    Args:
        record: with people's labels.
        found: the detections.
        rows: one a class; they are changed.
        uncertain: score a class from which detections below the threshold are uncertain.
    """
    order = np.array([at for at in np.argsort(-found.scores, kind="stable") if found.areas[at]], np.int64)
    overlap = overlaps(record, found, order)
    regions = np.array([i.crowd or i.ignore for i in record.instances], bool)
    labels = np.array([i.label for i in record.instances], np.int64)
    free, covered = ~regions, np.zeros(len(regions), bool)
    for row, at in zip(overlap, order, strict=True):
        label, score = int(found.labels[at]), float(found.scores[at])
        if score < rows[label].threshold:
            covered |= (row >= MIN_IOU) & (score >= uncertain[label])
            continue
        candidates = np.where(free & (labels == label), row, 0.0)
        best = int(candidates.argmax()) if len(candidates) else 0
        if len(candidates) and candidates[best] >= MIN_IOU:
            free[best] = False
            rows[label].labels += 1
            rows[label].matched += 1
            rows[label].iou_sum += float(candidates[best])
        elif not (row[regions] >= MIN_IOU).any():
            rows[label].labels += 1
    for label in labels[~regions]:
        rows[label].objects += 1
    for label in labels[free & covered]:
        rows[label].ignored += 1


def _judge(labelled: Dataset, chosen: Sequence[int], uri: str, selection: Sequence[ClassSelection]) -> Audit:
    rows = tuple(ClassAudit(row.name, row.threshold) for row in selection)
    uncertain = [row.uncertain_from for row in selection]
    pictures = predictions.all_pictures(uri, PredictionsManifest.load(uri))
    for row, found in zip(chosen, pictures, strict=True):
        judge_picture(labelled.record(row), found, rows, uncertain)
    return Audit(len(chosen), rows)


def _as_the_pool(making: Making | None, config: predict.PredictConfig) -> predict.PredictConfig:
    """The same detector must not label better or worse than it did: views, merging and precision are the pool's."""
    if making is None:
        return config
    return dataclasses.replace(
        config,
        views=",".join(making.views),
        merge=Merge(making.merge),
        voting_iou=making.voting_iou,
        precision=Precision(making.precision),
        batch=making.batch,
        cpus_per_worker=making.threads,
        gpu=making.device == "cuda",
    )


def run(
    out: str,
    labelled: str,
    teacher: Checkpoint,
    selection: Sequence[ClassSelection],
    address: str,
    making: Making | None = None,
) -> Audit:
    """Label the pictures that the teacher held out and measure the labels at the thresholds of a finished data set.

    Args:
        out: URI of the pseudo-labelled data set; what the audit makes goes into its folder `audit`.
        labelled: URI of the data set the teacher learned from.
        teacher: its checkpoint.
        selection: the thresholds, a class each.
        address: Ray cluster to use; empty starts one on this machine.
        making: how the pool was predicted; None for predict's defaults.

    Raises:
        AuditError: the teacher held nothing out, or saw what it held out.
        ValueError: an input that is missing or damaged.
    """
    dataset = Dataset(labelled)
    chosen = _audited(dataset, teacher)
    pictures = _write_pictures(dataset, chosen, storage.child_uri(out, "audit/pictures"))
    labels = storage.child_uri(out, "audit/predictions")
    predict.run(_as_the_pool(making, predict.PredictConfig(teacher.uri, pictures.uri, labels, address=address)))
    made = _judge(dataset, chosen, labels, selection)
    filesystem, folder = storage.open_uri(out)
    body = {"pictures": made.pictures, "classes": [dataclasses.asdict(row) for row in made.classes]}
    commit.write_file(filesystem, storage.join(folder, "audit", FILE_NAME), json.dumps(body, indent=1).encode())
    return made


def load(out: str) -> Audit | None:
    """What `run` found for a data set; None where it was not audited."""
    filesystem, folder = storage.open_uri(out)
    path = storage.join(folder, "audit", FILE_NAME)
    if not storage.is_file(filesystem, path):
        return None
    body = json.loads(storage.read_bytes(filesystem, path))
    return Audit(body["pictures"], tuple(ClassAudit(**row) for row in body["classes"]))


def table(audit: Audit) -> Iterator[tuple[str, int, int, Any, Any, Any, int]]:
    """Rows for people: class, objects, labels, precision, recall, mean mask IoU, objects under ignored regions."""
    for row in (*audit.classes, audit.total):
        yield row.name, row.objects, row.labels, row.precision, row.recall, row.mean_iou, row.ignored
