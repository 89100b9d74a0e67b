"""The same picture in two data sets: what a detector learned from must not be what it is measured on or labels anew.

Pictures are the same where their bytes are. Shards' columns of hashes are read alone, not the pictures.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import shards, storage
from pipelines.dataset import Dataset

_SHOWN = 5

Hashes = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Leak:
    """Pictures of one data set that are in another too.

    Attributes:
        count: of them.
        examples: file names of a few.
    """

    count: int = 0
    examples: tuple[str, ...] = ()

    def __add__(self, other: "Leak") -> "Leak":
        """Both together."""
        return Leak(self.count + other.count, (*self.examples, *other.examples)[:_SHOWN])

    def __str__(self) -> str:
        """For people: how many, such as which."""
        return f"{self.count} pictures (such as {', '.join(self.examples)})"


class ShardPictures(NamedTuple):
    """A shard's pictures without their content.

    Attributes:
        hashes: [N], sha256 of each picture's bytes.
        names: their file names.
    """

    hashes: Hashes
    names: list[str]

    def known(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Which of them are among sorted hashes: bool [N]."""
        if not len(hashes):
            return np.zeros(len(self.hashes), bool)
        places = np.searchsorted(hashes, self.hashes).clip(max=len(hashes) - 1)
        return np.asarray(hashes[places] == self.hashes, np.bool_)

    def leak(self, hashes: Hashes) -> Leak:
        """Those among sorted hashes."""
        places = np.flatnonzero(self.known(hashes))
        return Leak(len(places), tuple(self.names[at] for at in places[:_SHOWN]))


def pictures_of(batch: pa.RecordBatch) -> ShardPictures:
    """Hashes and names of opened rows."""
    return ShardPictures(np.array(batch.column("sha256").to_pylist(), "S64"), batch.column("file_name").to_pylist())


def read_shard(uri: str, file: str) -> ShardPictures:
    """Hashes and names of the pictures of a shard of a data set.

    Raises:
        SchemaError: it is no shard.
        OSError: it cannot be read.
    """
    filesystem, folder = storage.open_uri(uri)
    path = storage.join(folder, file)
    with filesystem.open_input_file(path) as source:
        return pictures_of(shards.open_ipc(source, path, ("sha256", "file_name")).batch)


def hashes_of(datasets: Iterable[Dataset]) -> Hashes:
    """Sorted hashes of all pictures of data sets; 64 bytes a picture."""
    parts = [np.empty(0, "S64")]
    parts += [read_shard(d.uri, info.file).hashes for d in datasets for info in d.manifest.shards]
    hashes: Hashes = np.unique(np.concatenate(parts))
    return hashes


def leak_between(first: Dataset, others: Sequence[Dataset]) -> Leak:
    """Pictures of a data set that are in others too."""
    hashes, found = hashes_of(others), Leak()
    for info in first.manifest.shards:
        found += read_shard(first.uri, info.file).leak(hashes)
    return found
