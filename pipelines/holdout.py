"""Labelled pictures that a training does not see, so that its detector can be audited on them.

Which ones is a function of the seed and the pictures' ids alone: the share with the smallest keys.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from pipelines import checkpoints
from pipelines.checkpoints import Checkpoint
from pipelines.dataset import Dataset

TRAINED_ON = "trained_on"
"""Extra file of a checkpoint: ids of the pictures held out, by hash of each data set it was trained on."""

IntArray = npt.NDArray[np.int64]


def held_out_ids(image_ids: IntArray, share: float, seed: int) -> IntArray:
    """Ids of the pictures to hold out, ascending: the nearest whole number to `share` of them.

    Args:
        image_ids: of all pictures.
        share: 0 to below 1.
        seed: another one holds out others.
    """
    count = round(share * len(image_ids))
    # A hash of each id (Weyl step, then two rounds of multiply and xor-shift): adding pictures changes little.
    keys = image_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (seed + 1) % (1 << 64))
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(factor)
    chosen = np.lexsort((image_ids, keys ^ (keys >> np.uint64(31))))[:count]
    return np.sort(image_ids[chosen])


def held_out_by(checkpoint: Checkpoint) -> dict[str, frozenset[int]]:
    """Ids of the pictures that a training held out, by hash of each data set it was trained on.

    Empty for weights that were imported.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    tensors = checkpoints.load_extra(checkpoint, TRAINED_ON)
    return {key: frozenset(ids.tolist()) for key, ids in tensors.items()}


class DatasetPart(Dataset):
    """A data set without some of its pictures, numbered anew; its manifest is still that of the whole."""

    def __init__(self, uri: str, left_out: Collection[int], verify: bool = True) -> None:
        """Open the data set and leave pictures out.

        Args:
            uri: path or URI of the folder.
            left_out: image ids.
            verify: check the sha256 of every file when it is first opened.

        Raises:
            ManifestError: no manifest, or one that cannot be used.
            DatasetError: the index is missing or damaged.
        """
        super().__init__(uri, verify)
        self._left_out = tuple(int(number) for number in left_out)
        kept = ~np.isin(self.image_ids, np.array(self._left_out, np.int64))
        self._rows = np.flatnonzero(kept)
        owner = np.repeat(kept, np.diff(self.label_offsets))
        counts = np.diff(self.label_offsets)[kept]
        shard_of = np.repeat(np.arange(len(self.rows_per_shard)), self.rows_per_shard)
        self.rows_per_shard = np.bincount(shard_of[kept], minlength=len(self.rows_per_shard)).astype(np.int64)
        self.image_ids, self.sizes_hw, self.labelled = self.image_ids[kept], self.sizes_hw[kept], self.labelled[kept]
        self.labels = self.labels[owner]
        self.label_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self) -> int:
        """Number of records that are left."""
        return len(self._rows)

    def __reduce__(self) -> tuple[type[Dataset], tuple[object, ...]]:  # type: ignore[override]
        """Pickle as its address: another process opens its own files."""
        return DatasetPart, (self.uri, self._left_out, self._verify)

    def locate(self, index: int) -> tuple[int, int]:
        """Shard and row in it of a record that is left.

        Raises:
            IndexError: not 0 <= index < len(self).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        row = int(self._rows[index])
        shard = int(np.searchsorted(self._first_row, row, side="right")) - 1
        return shard, row - int(self._first_row[shard])
