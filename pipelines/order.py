"""Which sample comes when: a pure function of seed, epoch and position, whatever reads it.

The samples of all epochs form one endless stream, cut into batches: batch s holds the positions s * B .. (s + 1) * B.
So every sample comes exactly once an epoch, no batch is short, and a run can stop anywhere and go on with another
number of workers from the step number alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Position:
    """One place in the stream: which sample, in which epoch."""

    index: int
    epoch: int


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A 63-bit number that fixes all randomness of one sample in one epoch."""
    state = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def epoch_permutation(rows_per_shard: Sequence[int], seed: int, epoch: int, window: int | None) -> IntArray:
    """Sample numbers of one epoch: shards permuted, then samples within windows of `window` consecutive shards.

    A reader never needs more than two windows on disk. `None` makes one window of all shards: a full shuffle.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(rows_per_shard)])
    shards = rng.permutation(len(rows_per_shard))
    size = window or max(1, len(shards))
    parts = []
    for first in range(0, len(shards), size):
        rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards[first : first + size]])
        parts.append(rng.permutation(rows))
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)


def group_batches(order: IntArray, groups: npt.NDArray[np.int8], batch: int, lead: int) -> IntArray:
    """Reorder one epoch so that batches hold one group (aspect) each, dropping and repeating nothing.

    Args:
        order: the epoch's sample numbers.
        groups: group of every sample.
        batch: batch size.
        lead: samples that complete the batch begun in the epoch before; they come first, in any group.

    Returns:
        The same numbers: `lead` of them, full batches of one group in the order they fill up, then the rest.
    """
    head, body = order[:lead], order[lead:]
    full: list[tuple[int, IntArray]] = []
    rest: list[IntArray] = []
    for group in np.unique(groups[body]):
        places = np.flatnonzero(groups[body] == group)
        whole = len(places) // batch * batch
        full += [(int(chunk[-1]), body[chunk]) for chunk in places[:whole].reshape(-1, batch)]
        rest.append(places[whole:])
    left = body[np.sort(np.concatenate(rest))] if rest else body[:0]
    return np.concatenate([head, *(chunk for _, chunk in sorted(full, key=lambda item: item[0])), left])


class SampleOrder:
    """The endless stream of one data set."""

    def __init__(
        self,
        rows_per_shard: Sequence[int],
        groups: npt.NDArray[np.int8],
        batch: int,
        seed: int,
        window: int | None = None,
    ) -> None:
        """Take what the order depends on.

        Args:
            rows_per_shard: rows of each shard, in the manifest's order.
            groups: aspect group of each sample.
            batch: samples of this data set in a batch, over all workers.
            seed: of the run.
            window: shards a shuffle window; None for all.

        Raises:
            ValueError: there is no sample, or the batch is empty.
        """
        self._rows = list(rows_per_shard)
        self._count = sum(self._rows)
        if self._count == 0 or batch < 1:
            raise ValueError(f"an order needs samples and a batch of at least 1, got {self._count} and {batch}")
        self._groups, self._batch, self._seed, self._window = groups, batch, seed, window
        self._cached: tuple[int, IntArray] | None = None

    def __len__(self) -> int:
        """Samples an epoch."""
        return self._count

    def epoch(self, epoch: int) -> IntArray:
        """Sample numbers of an epoch in order."""
        if self._cached is None or self._cached[0] != epoch:
            order = epoch_permutation(self._rows, self._seed, epoch, self._window)
            lead = -(epoch * self._count) % self._batch
            self._cached = epoch, group_batches(order, self._groups, self._batch, lead)
        return self._cached[1]

    def batch(self, step: int) -> list[Position]:
        """The samples of batch number `step`, counted from 0."""
        positions = []
        for place in range(step * self._batch, (step + 1) * self._batch):
            epoch, offset = divmod(place, self._count)
            positions.append(Position(int(self.epoch(epoch)[offset]), epoch))
        return positions
