"""The distill command: choose pseudo-labels among the detections on a pool of pictures nobody labelled.

The choice follows data distillation (Radosavovic et al. 2017, section 3; see `pipelines.selection`). It reads only what
`maskray predict` committed: thresholds are chosen again, into another folder, without running the detector again.
"""

import functools
import heapq
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pipelines import (
    audit,
    checkpoints,
    commit,
    dataset_writer,
    distill_report,
    leakage,
    provenance,
    review,
    selection,
    storage,
)
from pipelines import manifest as manifests
from pipelines.audit import Audit
from pipelines.checkpoints import Checkpoint
from pipelines.dataset import Dataset
from pipelines.distill_config import DistillConfig, Leaked
from pipelines.distill_outputs import INSTANCES, RESULTS, write_instances, write_results
from pipelines.distill_report import Account
from pipelines.holdout import held_out_by
from pipelines.labelled_rates import LabelledCounts, count_labels
from pipelines.leakage import Leak
from pipelines.manifest import ClassInfo, Manifest, ShardInfo
from pipelines.predictions import PredictionsManifest
from pipelines.progress import Progress
from pipelines.pseudo_labels import PICTURES_A_SHEET, SHEETS, PictureFate, PoolShards, Shown, Writer
from pipelines.ray_session import ray_session
from pipelines.selection import KEEP_ALL, KEEP_NONE, Choice, ClassSelection, Fate, Key, Limits, Search, Tally
from pipelines.shard_runner import Row, run_shards


class DistillError(ValueError):
    """Inputs that do not belong together, or a selection that keeps nothing."""


class DistillResult(NamedTuple):
    """The data set made and what was chosen a class.

    Attributes:
        manifest: of the data set.
        selection: one row a class.
        leak: labelled and validation pictures that were left out of the pool.
        audit: how good the labels are; None where it was not asked for.
    """

    manifest: Manifest
    selection: tuple[ClassSelection, ...]
    leak: Leak = Leak()
    audit: Audit | None = None


class _Inputs(NamedTuple):
    """What a distillation reads, opened and checked."""

    pool: Dataset
    labelled: Dataset
    found: PredictionsManifest
    teacher: Checkpoint | None
    counts: LabelledCounts
    source: PoolShards


def _open(config: DistillConfig) -> _Inputs:
    """Open everything, and refuse what does not belong together.

    Raises:
        DistillError: other data, classes or teacher, no labels, or validation pictures among the labelled ones.
    """
    pool, labelled = Dataset(config.pool), Dataset(config.labelled)
    found = PredictionsManifest.load(config.predictions)
    teacher = checkpoints.load(config.teacher) if config.teacher else None
    if found.dataset != pool.manifest.hash:
        raise DistillError(f"{config.predictions} was made on other data than {config.pool}: predict on this pool")
    if found.classes != labelled.manifest.classes:
        raise DistillError(
            f"the detector's classes {_names(found.classes)} are not those of {config.labelled} "
            f"{_names(labelled.manifest.classes)}: give the data set the detector was trained on"
        )
    if teacher is not None and teacher.hash != found.checkpoint:
        raise DistillError(
            f"{config.predictions} was not made by {teacher.uri}: give the checkpoint that predicted as --teacher"
        )
    held_out = held_out_by(teacher).get(labelled.manifest.hash, frozenset()) if teacher else frozenset()
    counts = count_labels(labelled, held_out)
    if not counts.pictures:
        raise DistillError(f"{config.labelled} has no labelled picture: give the data set the detector was trained on")
    measured = [Dataset(config.val)] if config.val else []
    leak = leakage.leak_between(labelled, measured)
    if leak.count:
        raise DistillError(
            f"{leak} of {config.labelled} are validation pictures of {config.val}: what is measured there would be "
            "too good; take them out of one of the two"
        )
    cap = teacher.detector.box.max_detections if teacher else 0
    known = leakage.hashes_of([labelled, *measured])
    source = PoolShards(config.pool, config.predictions, found, known, cap)
    return _Inputs(pool, labelled, found, teacher, counts, source)


def _names(classes: tuple[ClassInfo, ...]) -> list[str]:
    return [info.name for info in classes]


class _Choices(NamedTuple):
    """What the rule made of the pool."""

    choices: tuple[Choice, ...]
    wanted: tuple[int, ...]
    tally: Tally
    full: int
    leak: Leak
    keeps_any: bool


def _choose(config: DistillConfig, inputs: _Inputs, shards: int) -> _Choices:
    """Thresholds by two rounds over the shards: counts in bins, then the ranks within the bins where cuts fall."""
    source = inputs.source
    facts = _facts(lambda: source.count, "count", shards)
    tally, leak = Tally.from_plain([[], []]), Leak()
    for fact in facts:
        tally += Tally.from_plain(fact["tally"])
        leak += Leak(fact["leak"][0], tuple(fact["leak"][1]))
    if leak.count and config.leaked is Leaked.REFUSE:
        raise DistillError(
            f"{leak} of {config.pool} are labelled or validation pictures: what is measured would be too good; take "
            "them out of the pool, or leave them out with --leaked leave_out"
        )
    pictures = sum(fact["pictures"] for fact in facts)
    wanted = tuple(round(count / inputs.counts.pictures * pictures) for count in inputs.counts.objects)
    last = _last_kept(source, tally, wanted, shards)
    limits = Limits(config.min_score, config.max_score, config.uncertain)
    choices = tuple(selection.choose(key, limits) for key in last)
    best = [max((fact["best"][label] for fact in facts), default=-1.0) for label in range(len(wanted))]
    # No key is better than one of the best score and of negative place.
    any_kept = any(c.fate(Key(-score, -1, -1)) is Fate.LABEL for c, score in zip(choices, best, strict=True))
    return _Choices(choices, wanted, tally, sum(fact["full"] for fact in facts), leak, any_kept)


def _last_kept(source: PoolShards, tally: Tally, wanted: Sequence[int], shards: int) -> list[Key]:
    """The last detection of each class that the rule keeps."""
    places = {label: tally.last_bin(label, count) for label, count in enumerate(wanted)}
    searches = {label: Search(*place) for label, place in places.items() if place is not None}
    best: dict[int, list[Key]] = {label: [] for label in searches}
    for fact in _facts(lambda: functools.partial(source.rank, searches=searches), "rank", shards) if searches else []:
        for label, keys in selection.keys_from_plain(fact).items():
            best[label] += keys
        best = selection.best_of(best, searches)
    whole = [KEEP_ALL if count > 0 else KEEP_NONE for count in wanted]
    return [best[label][-1] if label in best else key for label, key in enumerate(whole)]


def _selection(inputs: _Inputs, chosen: _Choices, labels: Sequence[Row]) -> tuple[ClassSelection, ...]:
    rows = []
    for label, info in enumerate(inputs.found.classes):
        counts = (
            sum(row["kept"][label] for row in labels), sum(row["uncertain"][label] for row in labels),
            chosen.tally.found(label),
        )  # fmt: skip
        rows.append(
            selection.described(
                info.name, inputs.counts.objects[label], inputs.counts.pictures, chosen.wanted[label],
                chosen.choices[label], counts,
            )
        )  # fmt: skip
    return tuple(rows)


def _identity(config: DistillConfig, inputs: _Inputs) -> dict[str, str]:
    """What the result depends on; hashes instead of places."""
    return {
        "kind": "distill",
        "pool": inputs.pool.manifest.hash,
        "labelled": inputs.labelled.manifest.hash,
        "val": Manifest.load(config.val).hash if config.val else "",
        "predictions": inputs.found.hash,
        "teacher": inputs.found.checkpoint,
        "held_out": str(inputs.counts.held_out),
        "min_score": str(config.min_score),
        "max_score": str(config.max_score),
        "uncertain": str(config.uncertain),
        "weight": config.weight.value,
        "keep_empty": str(config.keep_empty),
        "leaked": config.leaked.value,
        "coco": str(config.coco),
    }


def _found_before(config: DistillConfig, fingerprint: str) -> DistillResult | None:
    """What an earlier run of the same command made."""
    filesystem, folder = storage.open_uri(config.out)
    if not storage.is_file(filesystem, storage.join(folder, manifests.FILE_NAME)):
        return None
    made = Manifest.load(config.out)
    if made.fingerprint != fingerprint:
        raise DistillError(f"{config.out} holds another data set: choose another --out")
    rows = json.loads(made.source["selection"])
    leak = json.loads(made.source["leak"])
    return DistillResult(made, tuple(ClassSelection(**row) for row in rows), Leak(leak[0], tuple(leak[1])))


def run(config: DistillConfig) -> DistillResult:
    """Choose thresholds, then write the pseudo-labelled data set; the same command again changes nothing.

    Raises:
        DistillError: inputs that do not belong together, or nothing was kept.
        AuditError: nothing that can be audited.
        ValueError: an input that is missing or damaged, or an output that holds other data.
    """
    config = config.with_full_places()
    inputs = _open(config)
    identity = _identity(config, inputs)
    fingerprint = commit.sha256_of(json.dumps(identity, sort_keys=True).encode())
    made = _found_before(config, fingerprint)
    if made is None:
        with ray_session(config.address or None):
            made = _make(config, inputs, identity, fingerprint)
    # From here on thresholds are fixed: all that follows reads the committed data set.
    if config.audit and inputs.teacher is not None:
        places = config.out, config.labelled, inputs.teacher
        made = made._replace(audit=audit.run(*places, made.selection, config.address, inputs.found.making))
    if config.review:
        review.export(config.out, made.selection, config.review, config.review_prefix, inputs.found.checkpoint[:12])
    distill_report.save_page(config.out)
    return made


def _make(config: DistillConfig, inputs: _Inputs, identity: dict[str, str], fingerprint: str) -> DistillResult:
    started, shards = time.time(), len(inputs.pool.rows_per_shard)
    chosen = _choose(config, inputs, shards)
    if not chosen.keeps_any and not config.keep_empty:
        best = max((choice.threshold for choice in chosen.choices), default=config.min_score)
        raise DistillError(
            f"no detection reached its threshold (floor {config.min_score}, highest {best:.3f}): "
            "lower --min-score, or train the teacher longer"
        )
    filesystem, folder = storage.open_uri(config.out)
    commit.sweep_temps(filesystem, folder)
    writer = Writer(inputs.source, config.out, chosen.choices, config.weight, config.keep_empty, fingerprint)
    facts = _facts(lambda: writer.write, "write", shards)
    rows = _selection(inputs, chosen, [fact["labels"] for fact in facts])
    account = Account(
        selection=rows,
        pictures={fate.value: sum(fact["pictures"][fate.value] for fact in facts) for fate in PictureFate},
        sizes=[sum(fact["labels"]["sizes"][at] for fact in facts) for at in range(3)],
        full=chosen.full,
        leak=chosen.leak,
        held_out=inputs.counts.held_out,
        histograms=[chosen.tally.histogram(label) for label in range(len(rows))],
    )
    chain = provenance.of_distillation(inputs.labelled, inputs.pool, inputs.found, inputs.teacher)
    files = {"dropped": commit.sha256_of("\n".join(fact["dropped"] for fact in facts).encode())}
    if config.coco:
        files[INSTANCES] = write_instances(config.out, shards, inputs.found.classes, chain["round"])
        files[RESULTS] = write_results(config.out, config.predictions, inputs.found)
    sheets = {name: heapq.nsmallest(PICTURES_A_SHEET, _shown(facts, name)) for name in SHEETS}
    distill_report.write(config.out, account, sheets, (started, time.time()))
    infos = tuple(ShardInfo(**fact["info"]) for fact in facts)
    draft = dataset_writer.Draft(
        classes=inputs.found.classes,
        shards=infos,
        rejections=(),
        rows_in=sum(info.rows for info in infos),
        instances_in=sum(info.instances for info in infos),
        source={
            **identity,
            "images": config.pool,
            "selection": json.dumps([row._asdict() for row in rows]),
            "leak": json.dumps([chosen.leak.count, chosen.leak.examples]),
            "pictures": json.dumps(account.pictures, sort_keys=True),
            "files": json.dumps(files, sort_keys=True),
            "provenance": provenance.to_json(chain),
        },
        fingerprint=fingerprint,
    )
    return DistillResult(dataset_writer.commit_dataset(filesystem, folder, draft), rows, chosen.leak)


def _shown(facts: Sequence[Row], name: str) -> Iterator[Shown]:
    return (Shown(*one) for fact in facts for one in fact["shown"][name])


def _facts(make_work: Callable[[], Callable[[int], Row]], name: str, count: int) -> list[Row]:
    """Every shard's facts in order, made on the connected Ray."""
    done: dict[int, Any] = {}
    progress = Progress(f"distill: {name}", count, "shards")
    for shard, facts in run_shards(make_work, range(count)):
        done[shard] = facts
        progress.update(len(done))
    progress.close()
    return [done[shard] for shard in range(count)]
