"""A shard of the pool with its detections: counted and ranked; every method is one task's work."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines import leakage, predictions, records, selection
from pipelines.dataset import open_shard
from pipelines.leakage import ShardPictures
from pipelines.manifest import FileInfo, Manifest, ShardInfo
from pipelines.predictions import PicturePrediction, PredictionsError, PredictionsManifest
from pipelines.records import Record
from pipelines.selection import IntArray, Search, Tally


class ShardTable(NamedTuple):
    """What a manifest says of its shards, as arrays: a task that needs one row does not unpack all of them.

    Attributes:
        files: names.
        sha256: of the files.
        bytes: their lengths.
        first_row: of each shard in the data set, and one more; zeros where rows are not counted.
        instances: in each shard.
    """

    files: npt.NDArray[np.str_]
    sha256: npt.NDArray[np.bytes_]
    bytes: IntArray
    first_row: IntArray
    instances: IntArray

    @classmethod
    def of(cls, infos: Sequence[FileInfo]) -> "ShardTable":
        """The table of a manifest's shards."""
        counts = [(i.rows, i.instances) if isinstance(i, ShardInfo) else (0, 0) for i in infos]
        rows, instances = np.array(counts, np.int64).reshape(-1, 2).T
        return cls(
            np.array([i.file for i in infos], np.str_),
            np.array([i.sha256 for i in infos], "S64"),
            np.array([i.bytes for i in infos], np.int64),
            np.concatenate([[0], np.cumsum(rows)]).astype(np.int64),
            instances,
        )

    def info(self, number: int) -> ShardInfo:
        """One shard."""
        rows = int(self.first_row[number + 1] - self.first_row[number])
        return ShardInfo(
            str(self.files[number]), int(self.bytes[number]), self.sha256[number].decode(), rows,
            int(self.instances[number]),
        )  # fmt: skip


class PoolPicture(NamedTuple):
    """A picture of the pool.

    Attributes:
        row: in the pool.
        record: as it was prepared.
        found: the detections on it.
        known: it is a labelled or validation picture.
    """

    row: int
    record: Record
    found: PicturePrediction
    known: bool


@dataclasses.dataclass(frozen=True)
class PoolShards:
    """The shards of a pool and of its predictions.

    Attributes:
        pool: URI of the pictures.
        pictures: their shards.
        predictions: URI of the detections on them.
        detections: their shards.
        classes: number of them.
        known: sorted hashes of pictures that must not be labelled.
        cap: most detections a picture can have; 0 where it is not known.
    """

    pool: str
    pictures: ShardTable
    predictions: str
    detections: ShardTable
    classes: int
    known: leakage.Hashes
    cap: int = 0

    @classmethod
    def of(
        cls, places: tuple[str, str], pool: Manifest, found: PredictionsManifest, known: leakage.Hashes, cap: int
    ) -> "PoolShards":
        """Those of a pool and its predictions, at two URIs."""
        tables = ShardTable.of(pool.shards), ShardTable.of(found.shards)
        return cls(places[0], tables[0], places[1], tables[1], len(found.classes), known, cap)

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.pictures.files)

    def _found(self, shard: int, count: int) -> list[PicturePrediction]:
        found = predictions.read_pictures(self.predictions, self.detections.info(shard))
        if len(found) != count:
            raise PredictionsError(
                f"shard {shard} of {self.pool} has {count} pictures, its predictions {len(found)}: predict again"
            )
        return found

    def _judged(self, shard: int) -> tuple[ShardPictures, list[tuple[PicturePrediction, bool]]]:
        pictures = leakage.read_shard(self.pool, str(self.pictures.files[shard]))
        found = self._found(shard, len(pictures.names))
        return pictures, list(zip(found, pictures.known(self.known).tolist(), strict=True))

    def open(self, shard: int) -> Iterator[PoolPicture]:
        """A shard's pictures in order.

        Raises:
            DatasetError: the shard is damaged.
            PredictionsError: the predictions are damaged, or of other pictures.
        """
        batch = open_shard(self.pool, self.pictures.info(shard))
        known = leakage.pictures_of(batch).known(self.known).tolist()
        for at, found in enumerate(self._found(shard, batch.num_rows)):
            record, row = records.from_table(batch, at), int(self.pictures.first_row[shard]) + at
            if record.image_id != found.image_id:
                raise PredictionsError(
                    f"picture {row} of the pool has id {record.image_id}, its prediction {found.image_id}: predict "
                    "again on this pool"
                )
            yield PoolPicture(row, record, found, known[at])

    def count(self, shard: int) -> dict[str, Any]:
        """The tally of a shard and its best score a class, its leak, and how many pictures are full of detections."""
        pictures, judged = self._judged(shard)
        free = [found for found, known in judged if not known and not found.rejected]
        leak = pictures.leak(self.known)
        return {
            "best": _best_scores(free, self.classes),
            "tally": Tally.of(free).to_plain(),
            "histogram": selection.histogram(free, self.classes).tolist(),
            "leak": [leak.count, list(leak.examples)],
            "pictures": len(free),
            "full": sum(self.cap > 0 and len(found.scores) >= self.cap for found in free),
        }

    def rank(self, shard: int, searches: dict[int, Search]) -> dict[str, Any]:
        """The keys of a shard in the bins that are searched."""
        free = (found for found, known in self._judged(shard)[1] if not known)
        return {str(label): keys for label, keys in selection.candidates(free, searches).items()}


def _best_scores(pictures: Iterable[PicturePrediction], classes: int) -> list[float]:
    best = np.full(classes, -1.0)
    for found in pictures:
        usable = found.areas > 0
        np.maximum.at(best, found.labels[usable], found.scores[usable].astype(np.float64))
    return [float(score) for score in best]
