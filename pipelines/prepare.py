"""`maskray prepare`: raw pictures and annotations to a committed data set of Arrow shards, by Ray Data.

The driver reads the annotation index and writes it to the output, cut into parts; each Ray task turns one
part into one shard and returns a row of statistics; the manifest, written last, makes the folder a data set.
Killed at any point, the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyarrow import fs as pafs

from pipelines import (
    check,
    commit,
    dataset_writer,
    part_files,
    ray_session,
    records,
    rejections,
    shard_runner,
    source_index,
    storage,
)
from pipelines import manifest as manifests
from pipelines.check_instance import Vocabulary
from pipelines.prepare_config import PrepareConfig, read_index
from pipelines.shard_task import PlanConflictError, ShardResult, ShardTask, make_shard
from pipelines.source_index import Index, RawRow


class RejectionBudgetError(ValueError):
    """More was rejected than the user allowed; the shards stay, no manifest was written."""


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        rows_done: pictures of finished shards.
        rows_total: pictures of all shards.
        rows_per_s: pictures a second of this run, those of earlier runs not counted.
        seconds_left: estimate; None before the first shard.
    """

    rows_done: int
    rows_total: int
    rows_per_s: float
    seconds_left: float | None


OnProgress = Callable[[Progress], None]


def run(
    config: PrepareConfig, *, on_progress: OnProgress | None = None, faults: commit.Faults | None = None
) -> manifests.Manifest:
    """Make the data set, or finish it; where it is finished, only read its manifest.

    Args:
        config: a source and the options.
        on_progress: called after each shard.
        faults: fault points for tests; reached in the driver's own writes.

    Returns:
        The committed manifest.

    Raises:
        PlanConflictError: the output holds another data set; it was not touched.
        RejectionBudgetError: too much was rejected; nothing was committed, the shards stay for the next run.
        CommitConflictError: another run committed the same data set in the meantime.
        ValueError: the source cannot be used; its subclasses say how.
    """
    index = read_index(config)
    if not index.rows_in:
        raise ValueError("the source lists no pictures: give one that does")
    filesystem, folder = storage.open_uri(config.out)
    fingerprint = _fingerprint(config, index)
    done = _committed(filesystem, folder, fingerprint)
    if done is not None:
        return done
    task = ShardTask(
        storage.canonical_uri(config.out),
        index.images,
        fingerprint,
        _rules(config, index),
        index.labels,
        index.semantic,
    )
    parts = source_index.split(index.rows, config.rows_per_shard, config.seed, config.shuffle)
    part_files.write(filesystem, folder, fingerprint, parts, faults)
    results = _make_shards(config, task, parts, index, on_progress)
    lost = (*index.rejections, *(r for result in results for r in result.rejections))
    # Counted where they were read: in the index, or in the label files of each shard.
    instances_in = sum(r.instances for r in index.rejections) + sum(result.instances_in for result in results)
    Budget(config.max_rejected, lost).check(index.rows_in, instances_in)
    draft = dataset_writer.Draft(
        classes=index.classes,
        shards=tuple(result.info for result in results),
        rejections=lost,
        rows_in=index.rows_in,
        instances_in=instances_in,
        source=_source(config, index),
        fingerprint=fingerprint,
        semantic_classes=index.semantic_classes,
    )
    made = dataset_writer.commit_dataset(filesystem, folder, draft, faults)
    part_files.drop(filesystem, folder)
    return made


def _rules(config: PrepareConfig, index: Index) -> check.Rules:
    vocabulary = Vocabulary(
        labels={c.id: label for label, c in enumerate(index.classes)},
        num_keypoints=tuple(len(c.keypoints) for c in index.classes),
    )
    return check.Rules(
        vocabulary,
        index.labelled,
        config.max_pixels,
        config.full_decode,
        index.semantic_classes,
        index.masks_required,
    )


def _source(config: PrepareConfig, index: Index) -> dict[str, str]:
    return {
        "kind": index.kind,
        "images": index.images,
        **index.source,
        "rows_per_shard": str(config.rows_per_shard),
        "seed": str(config.seed),
        "shuffle": str(config.shuffle),
        "full_decode": str(config.full_decode),
        "max_pixels": str(config.max_pixels),
    }


def _fingerprint(config: PrepareConfig, index: Index) -> str:
    # max_rejected is left out: it decides whether to commit, not what.
    identity = {**_source(config, index), "identity": index.identity, "schema": str(records.SCHEMA_VERSION)}
    return commit.sha256_of(json.dumps(identity, sort_keys=True).encode())


def _committed(filesystem: pafs.FileSystem, folder: str, fingerprint: str) -> manifests.Manifest | None:
    if not storage.is_file(filesystem, storage.join(folder, manifests.FILE_NAME)):
        return None
    found = manifests.load_from(filesystem, folder)
    if found.fingerprint != fingerprint:
        raise PlanConflictError(
            f"{folder} holds another data set (from {found.source.get('images', 'elsewhere')}, or made with "
            "other settings) and was left as it is: choose another --out"
        )
    part_files.drop(filesystem, folder)  # a run may have died between its commit and this
    return found


def _make_shards(
    config: PrepareConfig,
    task: ShardTask,
    parts: Sequence[Sequence[RawRow]],
    index: Index,
    on_progress: OnProgress | None,
) -> list[ShardResult]:
    started = time.monotonic()
    results: dict[int, ShardResult] = {}
    budget = Budget(config.max_rejected, index.rejections)
    rows_done = rows_made = 0
    total = len(index.rows)
    with ray_session.ray_session(config.address, config.num_cpus):
        ray_session.require_cpus(1, "preparing data")
        for number, facts in shard_runner.run_shards(lambda: _maker(task), range(len(parts))):
            result = results[number] = ShardResult.from_facts(facts)
            budget.add(result.rejections)
            rows_done += len(parts[number])
            rows_made += 0 if result.was_there else len(parts[number])
            # Judged against the whole source, so what fails here would fail at the end too.
            budget.check(index.rows_in, None if index.labels else index.instances_in)
            if on_progress is not None:
                speed = rows_made / max(time.monotonic() - started, 1e-9)
                on_progress(Progress(rows_done, total, speed, (total - rows_done) / speed if speed else None))
    return [results[number] for number in range(len(parts))]


def _maker(task: ShardTask) -> shard_runner.Work:
    return lambda number: make_shard(task, number).to_facts()


class Budget:
    """How much was rejected, and how much may be."""

    def __init__(self, allowed: float, lost: Sequence[rejections.Rejection] = ()) -> None:
        """Allow a share 0..1 of pictures, and of objects."""
        self._allowed, self._lost = allowed, list[rejections.Rejection]()
        self._rows = self._instances = 0
        self.add(lost)

    def add(self, lost: Sequence[rejections.Rejection]) -> None:
        """Count more."""
        self._lost.extend(lost)
        self._rows += sum(r.is_row for r in lost)
        self._instances += sum(r.instances for r in lost)

    def check(self, rows_in: int, instances_in: int | None) -> None:
        """Judge what was counted so far.

        Args:
            rows_in: pictures of the source.
            instances_in: its objects; None as long as they are not known: then pictures alone are judged.

        Raises:
            RejectionBudgetError: more was rejected than allowed.
        """
        for what, count, total in (("pictures", self._rows, rows_in), ("objects", self._instances, instances_in)):
            if total is not None and count > self._allowed * total:
                raise RejectionBudgetError(
                    f"{count} of {total} {what} were rejected so far, more than the share {self._allowed:g} allowed: "
                    f"{rejections.summary(self._lost)}; correct the source, or accept them with --max-rejected 1.0"
                )
