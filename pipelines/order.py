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
FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Position:
    """One place in the stream: which sample, in which epoch, and which of its copies in that epoch."""

    index: int
    epoch: int
    copy: int = 0


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Which pictures of a data set come in an epoch.

    Attributes:
        drop_empty: leave out labelled pictures without any object, as Detectron2 and MMDetection do.
        min_side_px: leave out pictures whose shorter side is less, before resizing (MMDetection: 32); 0 takes all.
        min_keypoints: leave out pictures with fewer labelled keypoints in all (torchvision: 10, Detectron2: 1); 0 takes
            all.
        classes: take only pictures with an object of one of these names; empty takes all. Their other objects stay.
        repeat_threshold: classes on less than this share of the pictures are repeated (LVIS, repeat factor sampling:
            a picture comes max(1, sqrt(threshold / share)) times, by its rarest class); 0 repeats none.
    """

    drop_empty: bool = False
    min_side_px: int = 0
    min_keypoints: int = 0
    classes: tuple[str, ...] = ()
    repeat_threshold: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.repeat_threshold <= 1:
            raise ValueError(f"sampling.repeat_threshold must be in 0..1, got {self.repeat_threshold}")
        for name in ("min_side_px", "min_keypoints"):
            if getattr(self, name) < 0:
                raise ValueError(f"sampling.{name} must be >= 0, got {getattr(self, name)}")


def sample_seed(seed: int, epoch: int, index: int, copy: int = 0) -> int:
    """A 63-bit number that fixes all randomness of one copy of a sample in one epoch."""
    entropy = [seed, epoch, index, copy] if copy else [seed, epoch, index]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def epoch_length(repeats: FloatArray) -> int:
    """Samples an epoch with these mean numbers of copies; the same in every epoch."""
    return round(float(repeats.sum()))


def epoch_copies(repeats: FloatArray, seed: int, epoch: int) -> IntArray:
    """How often each sample comes in one epoch: its mean number rounded up or down, `epoch_length` in all.

    Systematic sampling: one random offset on the running sum, so that over epochs each sample comes as often as its
    number says, and the total never changes.

    Args:
        repeats: mean number of copies of each sample, >= 0.
        seed: of the run.
        epoch: from 0.
    """
    total = epoch_length(repeats)
    running = np.cumsum(repeats) * (total / max(float(repeats.sum()), 1e-300))
    running[np.flatnonzero(repeats)[-1] :] = total  # free of rounding, so that what is left out stays out
    offset = np.random.default_rng([seed, epoch, 1]).random()
    return np.diff(np.floor(running + offset), prepend=0).astype(np.int64)


def epoch_permutation(
    rows_per_shard: Sequence[int], seed: int, epoch: int, window: int | None, copies: IntArray | None = None
) -> IntArray:
    """Sample numbers of one epoch: shards permuted, then samples within windows of `window` consecutive shards.

    A reader never needs more than two windows on disk. `None` makes one window of all shards: a full shuffle. Each
    sample comes `copies` times; None for once.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(rows_per_shard)])
    shards = rng.permutation(len(rows_per_shard))
    size = window or max(1, len(shards))
    parts = []
    for first in range(0, len(shards), size):
        rows = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards[first : first + size]])
        parts.append(rng.permutation(rows if copies is None else np.repeat(rows, copies[rows])))
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
        repeats: FloatArray | None = None,
    ) -> None:
        """Take what the order depends on.

        Args:
            rows_per_shard: rows of each shard, in the manifest's order.
            groups: aspect group of each sample.
            batch: samples of this data set in a batch, over all workers.
            seed: of the run.
            window: shards a shuffle window; None for all.
            repeats: float64 [samples], how often each comes an epoch on average; 0 leaves it out, None is once.

        Raises:
            ValueError: there is no sample, or the batch is empty.
        """
        self._rows = list(rows_per_shard)
        self._repeats = repeats
        self._count = sum(self._rows) if repeats is None else epoch_length(repeats)
        if self._count == 0 or batch < 1:
            raise ValueError(f"an order needs samples and a batch of at least 1, got {self._count} and {batch}")
        self._groups, self._batch, self._seed, self._window = groups, batch, seed, window
        self._cached: tuple[int, IntArray, IntArray] | None = None

    def __len__(self) -> int:
        """Samples an epoch."""
        return self._count

    def epoch(self, epoch: int) -> IntArray:
        """Sample numbers of an epoch in order."""
        return self._epoch(epoch)[0]

    def _epoch(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Sample numbers of an epoch, and which of its sample's copies each is."""
        if self._cached is None or self._cached[0] != epoch:
            copies = None if self._repeats is None else epoch_copies(self._repeats, self._seed, epoch)
            order = epoch_permutation(self._rows, self._seed, epoch, self._window, copies)
            lead = -(epoch * self._count) % self._batch
            order = group_batches(order, self._groups, self._batch, lead)
            self._cached = epoch, order, _occurrences(order)
        return self._cached[1], self._cached[2]

    def batch(self, step: int) -> list[Position]:
        """The samples of batch number `step`, counted from 0."""
        positions = []
        for place in range(step * self._batch, (step + 1) * self._batch):
            epoch, offset = divmod(place, self._count)
            order, copies = self._epoch(epoch)
            positions.append(Position(int(order[offset]), epoch, int(copies[offset])))
        return positions


def _occurrences(order: IntArray) -> IntArray:
    """For each place how often its number came before."""
    sorted_places = np.argsort(order, kind="stable")
    values = order[sorted_places]
    first = np.flatnonzero(np.diff(values, prepend=-1))
    counts = np.diff(first, append=values.size)
    found = np.empty_like(order)
    found[sorted_places] = np.arange(order.size) - np.repeat(first, counts)
    return found
