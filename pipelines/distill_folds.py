"""The sums over a pool's shards: facts come in any order and are let go, so that the driver's memory does not grow."""

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipelines import commit, selection
from pipelines.leakage import Leak
from pipelines.manifest import ShardInfo
from pipelines.pseudo_labels import PICTURES_A_SHEET, SHEETS, Shown
from pipelines.selection import Key, Search, Tally

Facts = Iterable[tuple[int, dict[str, Any]]]
"""Numbers of shards, in any order, with what is known of each."""

_EXAMPLES = 5


class Counted:
    """What `PoolShards.count` found.

    Attributes:
        tally: of scores.
        best: score a class; -1 without a detection.
        histogram: [classes, 10], detections by tenths of score.
        pictures: that may be labelled.
        full: of them, with as many detections as there can be.
        leak: labelled and validation pictures.
    """

    def __init__(self, classes: int, facts: Facts) -> None:
        """Add up all shards."""
        self.tally = Tally.from_plain([[], []])
        self.best, self.histogram = np.full(classes, -1.0), np.zeros((classes, 10), np.int64)
        self.pictures = self.full = leaked = 0
        examples: list[tuple[int, int, str]] = []
        for shard, fact in facts:
            self.tally += Tally.from_plain(fact["tally"])
            self.best = np.maximum(self.best, fact["best"])
            self.histogram += np.array(fact["histogram"], np.int64).reshape(classes, 10)
            self.pictures, self.full = self.pictures + fact["pictures"], self.full + fact["full"]
            count, names = fact["leak"]
            leaked += count
            examples = heapq.nsmallest(_EXAMPLES, [*examples, *((shard, n, name) for n, name in enumerate(names))])
        self.leak = Leak(leaked, tuple(name for _, _, name in examples))


def best_keys(searches: dict[int, Search], facts: Facts) -> dict[int, list[Key]]:
    """The best keys of each class that is searched, out of what `PoolShards.rank` found."""
    best: dict[int, list[Key]] = {label: [] for label in searches}
    for _, fact in facts:
        for label, keys in selection.keys_from_plain(fact).items():
            best[label] += keys
        best = selection.best_of(best, searches)
    return best


class Written:
    """What `Writer.write` made.

    Attributes:
        infos: of the shards, in order.
        dropped: sha256 over the hashes of the files of what was dropped, in order.
        pictures: by what became of them.
        detections: by what became of them; those in the data set are `label` and `uncertain`.
        labels: int64 [classes, 5]: labels, ignored regions, and labels by COCO's size ranges.
        sheets: labels to show.
    """

    def __init__(self, classes: int, shards: int, facts: Facts) -> None:
        """Add up all shards, so many."""
        infos: list[ShardInfo | None] = [None] * shards
        dropped = np.zeros(shards, "S64")
        self.pictures, self.detections = Counter[str](), Counter[str]()
        self.labels = np.zeros((classes, 5), np.int64)
        self.sheets: dict[str, list[Shown]] = {name: [] for name in SHEETS}
        for shard, fact in facts:
            infos[shard] = ShardInfo(**fact["info"])
            dropped[shard] = fact["dropped"].encode()
            self.pictures.update(fact["pictures"])
            self.detections.update(fact["detections"])
            self.labels += np.array(fact["labels"], np.int64).reshape(classes, 5)
            for name, sheet in self.sheets.items():
                shown = (Shown(*one) for one in fact["shown"][name])
                self.sheets[name] = heapq.nsmallest(PICTURES_A_SHEET, [*sheet, *shown])
        self.infos = tuple(info for info in infos if info is not None)
        self.dropped = commit.sha256_of(b"\n".join(dropped.tolist()))


def smallest(count: int, facts: Facts) -> list[tuple[int, int]]:
    """Shard and row of the pictures of smallest value; each shard gives the `rows` (value, row) of its own."""
    best: list[tuple[float, int, int]] = []
    for shard, fact in facts:
        best = heapq.nsmallest(count, [*best, *((float(value), shard, int(row)) for value, row in fact["rows"])])
    return [(shard, row) for _, shard, row in best]
