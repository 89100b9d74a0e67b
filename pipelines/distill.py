"""The distill command: choose pseudo-labels among the detections on a pool of pictures nobody labelled.

The choice follows data distillation (Radosavovic et al. 2017, section 3; see `pipelines.selection`). It reads only what
`maskray predict` committed: thresholds are chosen again, into another folder, without running the detector again.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pipelines import (
    audit,
    commit,
    dataset_writer,
    distill_report,
    provenance,
    review,
    selection,
    storage,
)
from pipelines import manifest as manifests
from pipelines.audit import Audit
from pipelines.coco_export import RESULTS, write_results
from pipelines.distill_config import DistillConfig, Leaked
from pipelines.distill_folds import Counted, Written, best_keys, smallest
from pipelines.distill_inputs import DistillError, Inputs, open_inputs
from pipelines.distill_inputs import identity as identity_of
from pipelines.distill_outputs import INSTANCES, Origin, write_instances
from pipelines.distill_report import Account
from pipelines.leakage import Leak
from pipelines.manifest import Manifest
from pipelines.pool_shards import PoolShards, ShardTable
from pipelines.progress import Progress
from pipelines.pseudo_labels import PictureFate, Rules, Writer
from pipelines.ray_session import ray_session
from pipelines.selection import KEEP_ALL, KEEP_NONE, Choice, ClassSelection, Fate, Key, Limits, Search, Tally
from pipelines.shard_runner import Row, run_shards


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


class _Choices(NamedTuple):
    """What the rule made of the pool."""

    choices: tuple[Choice, ...]
    wanted: tuple[int, ...]
    counted: Counted

    @property
    def keeps_any(self) -> bool:
        """Whether a detection is kept at all: no key is better than one of the best score and of negative place."""
        best = [Key(-score, -1, -1) for score in self.counted.best.tolist()]
        return any(choice.fate(key) is Fate.LABEL for choice, key in zip(self.choices, best, strict=True))


def _choose(config: DistillConfig, inputs: Inputs) -> _Choices:
    """Thresholds by two rounds over the shards: counts in bins, then the ranks within the bins where cuts fall."""
    source = inputs.source
    counted = Counted(source.classes, _facts(lambda: source.count, "count", len(source)))
    if counted.leak.count and config.leaked is Leaked.REFUSE:
        raise DistillError(
            f"{counted.leak} of {config.pool} are labelled or validation pictures: what is measured would be too good; "
            "take them out of the pool, or leave them out with --leaked leave_out"
        )
    wanted = tuple(round(count / inputs.counts.pictures * counted.pictures) for count in inputs.counts.objects)
    limits = Limits(config.min_score, config.max_score, config.uncertain)
    choices = tuple(selection.choose(key, limits) for key in _last_kept(source, counted.tally, wanted))
    return _Choices(choices, wanted, counted)


def _last_kept(source: PoolShards, tally: Tally, wanted: Sequence[int]) -> list[Key]:
    """The last detection of each class that the rule keeps."""
    places = {label: tally.last_bin(label, count) for label, count in enumerate(wanted)}
    searches = {label: Search(*place) for label, place in places.items() if place is not None}
    work = functools.partial(source.rank, searches=searches)
    best = best_keys(searches, _facts(lambda: work, "rank", len(source)) if searches else ())
    whole = [KEEP_ALL if count > 0 else KEEP_NONE for count in wanted]
    return [best[label][-1] if label in best else key for label, key in enumerate(whole)]


def _selection(inputs: Inputs, chosen: _Choices, written: Written) -> tuple[ClassSelection, ...]:
    tally = chosen.counted.tally
    counts = [(int(row[0]), int(row[1]), tally.found(label)) for label, row in enumerate(written.labels)]
    return tuple(
        selection.described(
            info.name, inputs.counts.objects[label], inputs.counts.pictures, chosen.wanted[label],
            chosen.choices[label], counts[label],
        )
        for label, info in enumerate(inputs.found.classes)
    )  # fmt: skip


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
    inputs = open_inputs(config)
    identity = identity_of(config, inputs)
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
        rows = _doubtful(config, made)
        review.export(config.out, rows, config.review_prefix, inputs.found.checkpoint[:12])
    distill_report.save_page(config.out)
    return made


def _doubtful(config: DistillConfig, made: DistillResult) -> list[int]:
    """Rows of the pictures to review, the most doubtful first."""
    thresholds = [row.threshold for row in made.selection]
    table = ShardTable.of(made.manifest.shards)
    work = functools.partial(
        review.doubtful, uri=config.out, shards=table, thresholds=thresholds, count=config.review
    )  # fmt: skip
    with ray_session(config.address or None):
        found = smallest(config.review, _facts(lambda: work, "review", len(made.manifest.shards)))
    return [int(table.first_row[shard]) + row for shard, row in found]


def _make(config: DistillConfig, inputs: Inputs, identity: dict[str, str], fingerprint: str) -> DistillResult:
    started, source, classes = time.time(), inputs.source, inputs.found.classes
    chosen = _choose(config, inputs)
    if not chosen.keeps_any and not config.keep_empty:
        best = max((choice.threshold for choice in chosen.choices), default=config.min_score)
        raise DistillError(
            f"no detection reached its threshold (floor {config.min_score}, highest {best:.3f}): "
            "lower --min-score, or train the teacher longer"
        )
    filesystem, folder = storage.open_uri(config.out)
    commit.sweep_temps(filesystem, folder)
    rules = Rules(chosen.choices, classes, config.weight, config.min_keypoint_score, config.keep_empty)
    writer = Writer(source, config.out, rules, fingerprint)
    written = Written(len(classes), len(source), _facts(lambda: writer.write, "write", len(source)))
    account = Account(
        selection=_selection(inputs, chosen, written),
        pictures={fate.value: written.pictures[fate.value] for fate in PictureFate},
        detections=dict(sorted(written.detections.items())),
        sizes=written.labels[:, 2:].tolist(),
        full=chosen.counted.full,
        leak=chosen.counted.leak,
        held_out=inputs.counts.held_out,
        histograms=chosen.counted.histogram.tolist(),
    )
    chain = provenance.of_distillation(inputs.labelled, (config.pool, inputs.pool), inputs.found, inputs.teacher)
    files = {"dropped": written.dropped}
    if config.coco:
        info = {"teacher": inputs.found.checkpoint, "round": chain["round"], "versions": chain["versions"]}
        origin = Origin(config.predictions, inputs.found, source.cap, chain["round"], info)
        files[INSTANCES] = write_instances(config.out, origin)
        files[RESULTS] = write_results(config.out, config.predictions, inputs.found)
    files[distill_report.FILE_NAME] = distill_report.write(config.out, account, written.sheets, (started, time.time()))
    kept = written.detections[Fate.LABEL.value] + written.detections[Fate.UNCERTAIN.value]
    draft = dataset_writer.Draft(
        classes=classes,
        shards=written.infos,
        rejections=(),
        # What the pool and the detections hold against what came of it: the manifest refuses sums that differ.
        rows_in=inputs.pool.rows_written,
        instances_in=inputs.found.detections,
        left_out=(
            sum(written.pictures[fate.value] for fate in PictureFate if not fate.is_written),
            written.detections.total() - kept,
        ),
        source={
            **identity,
            "images": config.pool,
            "selection": json.dumps([row._asdict() for row in account.selection]),
            "leak": json.dumps([account.leak.count, account.leak.examples]),
            "pictures": json.dumps(account.pictures, sort_keys=True),
            "detections": json.dumps(account.detections, sort_keys=True),
            "files": json.dumps(files, sort_keys=True),
            "provenance": provenance.to_json(chain),
        },
        fingerprint=fingerprint,
    )
    return DistillResult(dataset_writer.commit_dataset(filesystem, folder, draft), account.selection, account.leak)


def _facts(make_work: Callable[[], Callable[[int], Row]], name: str, count: int) -> Iterator[tuple[int, Row]]:
    """Numbers and facts of shards as they are finished, in any order, made on the connected Ray."""
    progress = Progress(f"distill: {name}", count, "shards")
    for done, (shard, facts) in enumerate(run_shards(make_work, range(count)), start=1):
        progress.update(done)
        yield shard, facts
    progress.close()
