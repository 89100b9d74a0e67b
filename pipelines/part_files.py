"""The plan of an unfinished data set on its own storage: whose it is, and the raw rows of each shard.

Tasks read their rows from here, so that neither the driver nor Ray's object store carries the annotations.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from pyarrow import fs as pafs

from pipelines import commit, dataset_writer, source_index, storage
from pipelines.shard_task import PLAN_FOLDER, PlanConflictError, find_shard, part_name
from pipelines.source_index import RawRow

_CLAIM_NAME = "plan.json"


def write(
    filesystem: pafs.FileSystem,
    folder: str,
    fingerprint: str,
    parts: Sequence[Sequence[RawRow]],
    faults: commit.Faults | None = None,
) -> None:
    """Claim the folder for a plan, sweep what killed writers left, and write the missing parts.

    Args:
        filesystem: see `storage.open_uri`.
        folder: of the data set to make.
        fingerprint: of the plan.
        parts: raw rows, a list a shard.
        faults: fault points for tests.

    Raises:
        PlanConflictError: another plan's unfinished shards are there; nothing was touched.
        OSError: the store failed.
    """
    _claim(filesystem, folder, fingerprint, faults)
    commit.sweep_temps(filesystem, folder)
    commit.sweep_temps(filesystem, storage.join(folder, PLAN_FOLDER))
    there = {info.path for info in storage.list_files(filesystem, storage.join(folder, PLAN_FOLDER))}
    for number, rows in enumerate(parts):
        path = storage.join(folder, part_name(number))
        if path not in there:  # whole if there: the claim above makes it this plan's
            commit.write_file(filesystem, path, source_index.to_json(rows), faults=faults)


def drop(filesystem: pafs.FileSystem, folder: str) -> None:
    """Remove claim and parts, which nobody needs after the commit, and what workers that were killed left."""
    commit.sweep_temps(filesystem, folder)
    path = storage.join(folder, PLAN_FOLDER)
    if storage.is_folder(filesystem, path):
        filesystem.delete_dir(path)


def _claim(filesystem: pafs.FileSystem, folder: str, fingerprint: str, faults: commit.Faults | None) -> None:
    first = storage.join(folder, dataset_writer.shard_name(0))
    claim = storage.join(folder, PLAN_FOLDER, _CLAIM_NAME)
    if storage.is_file(filesystem, first):
        find_shard(filesystem, folder, 0, fingerprint)  # raises where it is another plan's
    mine = json.dumps({"fingerprint": fingerprint}).encode()
    if not storage.is_file(filesystem, claim):
        # Another run may claim the folder in between; whose it is then, the next line tells.
        with contextlib.suppress(commit.CommitConflictError):
            commit.write_file(filesystem, claim, mine, exclusive=True, faults=faults)
    if storage.read_bytes(filesystem, claim) != mine:
        raise PlanConflictError(
            f"{folder} holds unfinished shards of another data set or of other settings, left as they "
            "are: choose another --out, or remove that folder"
        )
