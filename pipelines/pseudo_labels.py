"""A shard of the pool with its detections: counted, ranked, and written as pseudo-labelled records."""

import dataclasses
import enum
import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from pipelines import commit, dataset_writer, leakage, predictions, selection, storage
from pipelines.dataset import Dataset
from pipelines.predictions import PicturePrediction, PredictionsError, PredictionsManifest
from pipelines.records import Instance, Record
from pipelines.selection import Choice, Fate, Search, Tally

SHEETS = ("best", "nearest", "disputed")
"""Pictures to look at: the best labels, those nearest their threshold, those that the views agree on least."""

PICTURES_A_SHEET = 24
_OBJECTS_A_PICTURE = 1000
_DROPPED_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        # Empty for a whole picture.
        pa.field("label", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("threshold", pa.float32()),
    ]
)


class Weight(enum.Enum):
    """Weight of a pseudo-label's losses."""

    ONE = "one"  # that of a human label, as in the paper
    SCORE = "score"


class PictureFate(enum.Enum):
    """What becomes of a picture of the pool."""

    LABELLED = "labelled"
    EMPTY = "empty"  # kept as a picture without objects
    NOTHING_KEPT = "nothing_kept"
    LEAKED = "leaked"  # a labelled or validation picture
    UNSEEN = "unseen"  # the detector could not look at it


class Shown(NamedTuple):
    """A label that a sheet may show.

    Attributes:
        order: the smaller, the more it belongs on the sheet.
        shard: of the output.
        row: in the shard.
        instance: its id.
    """

    order: float
    shard: int
    row: int
    instance: int


def dropped_name(number: int) -> str:
    """File of what a shard of the pool lost, with reasons."""
    return f"dropped-{number:05d}.arrow"


def agreement(found: PicturePrediction) -> Sequence[float] | None:
    """Share of views that agree on each detection; None where there is nothing to disagree about."""
    return None if (found.view_agreement >= 1).all() else [float(value) for value in found.view_agreement]


def _keypoints(found: PicturePrediction, at: int) -> npt.NDArray[np.float32] | None:
    """A detection's keypoints as annotations, all of them visible; pixel indices, whose centres predictions name."""
    if found.keypoints is None:
        return None
    places = found.keypoints[at, :, :2] - 0.5
    made: npt.NDArray[np.float32] = np.concatenate([places, np.full_like(places[:, :1], 2)], axis=1).astype(np.float32)
    return made


def pseudo_record(record: Record, found: PicturePrediction, choices: Sequence[Choice], weight: Weight) -> Record:
    """The pool's picture with the kept detections as its objects, best first, and the uncertain ones ignored.

    Raises:
        PredictionsError: more objects than a picture can have.
    """
    kept = [(at, fate) for at, fate in selection.fates(found, choices) if fate in (Fate.LABEL, Fate.UNCERTAIN)]
    if len(kept) >= _OBJECTS_A_PICTURE:
        raise PredictionsError(
            f"picture {record.image_id} would get {len(kept)} pseudo-labels, at most {_OBJECTS_A_PICTURE - 1} are "
            "possible: raise --min-score"
        )
    instances = tuple(
        Instance(
            # Unique in the data set, since image ids are.
            id=record.image_id * _OBJECTS_A_PICTURE + rank + 1,
            label=int(found.labels[at]),
            box_xyxy=tuple(float(v) for v in found.boxes_xyxy[at]),  # type: ignore[arg-type]
            area=float(found.areas[at]),
            # To whoever knows crowds alone (COCO's evaluation, the counts of a data set) it is one.
            crowd=fate is Fate.UNCERTAIN,
            ignore=fate is Fate.UNCERTAIN,
            polygons=None,
            rle=None if found.rles is None else found.rles[at],
            keypoints=_keypoints(found, at),
            score=float(found.scores[at]),
            loss_weight=float(found.scores[at]) if weight is Weight.SCORE else 1.0,
        )
        for rank, (at, fate) in enumerate(kept)
    )
    return dataclasses.replace(record, instances=instances, labelled=True)


@dataclasses.dataclass(frozen=True)
class PoolShards:
    """The shards of a pool and of its predictions; every method is one task's work.

    Attributes:
        pool: URI of the pictures.
        predictions: URI of the detections on them.
        found: what they say of themselves.
        known: sorted hashes of pictures that must not be labelled.
        cap: most detections a picture can have; 0 where it is not known.
    """

    pool: str
    predictions: str
    found: PredictionsManifest
    known: leakage.Hashes
    cap: int = 0

    def pictures(self, shard: int) -> list[tuple[PicturePrediction, bool]]:
        """A shard's detections, and which pictures are known."""
        found = predictions.read_pictures(self.predictions, self.found.shards[shard])
        known = leakage.read_shard(Dataset(self.pool), shard).known(self.known).tolist()
        if len(found) != len(known):
            raise PredictionsError(
                f"shard {shard} of {self.pool} has {len(known)} pictures, its predictions {len(found)}: predict again"
            )
        return list(zip(found, known, strict=True))

    def count(self, shard: int) -> dict[str, Any]:
        """The tally of a shard and its best score a class, its leak, and how many pictures are full of detections."""
        leak = leakage.read_shard(Dataset(self.pool), shard).leak(self.known)
        free = [found for found, known in self.pictures(shard) if not known and not found.rejected]
        full = sum(self.cap > 0 and len(found.scores) >= self.cap for found in free)
        usable = [(found.scores[found.areas > 0], found.labels[found.areas > 0]) for found in free]
        best = [
            max((float(scores[labels == label].max(initial=-1.0)) for scores, labels in usable), default=-1.0)
            for label in range(len(self.found.classes))
        ]
        return {
            "best": best,
            "tally": Tally.of(free).to_plain(),
            "leak": [leak.count, list(leak.examples)],
            "pictures": len(free),
            "full": full,
        }

    def rank(self, shard: int, searches: dict[int, Search]) -> dict[str, Any]:
        """The keys of a shard in the bins that are searched."""
        free = (found for found, known in self.pictures(shard) if not known)
        return {str(label): keys for label, keys in selection.candidates(free, searches).items()}


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes the pseudo-labelled shards.

    Attributes:
        source: pool and predictions.
        out: URI of the pseudo-labelled data set.
        choices: one a class.
        weight: of the labels' losses.
        keep_empty: keep pictures without any kept object.
        fingerprint: of the whole, kept in each shard.
    """

    source: PoolShards
    out: str
    choices: tuple[Choice, ...]
    weight: Weight
    keep_empty: bool
    fingerprint: str

    def write(self, shard: int) -> dict[str, Any]:
        """Write one shard and what it lost; the same input gives the same bytes.

        Raises:
            PredictionsError: predictions of other pictures.
        """
        rows: list[Record] = []
        lost: list[dict[str, Any]] = []
        counts = {fate.value: 0 for fate in PictureFate}
        shown: dict[str, list[Shown]] = {name: [] for name in SHEETS}
        for record, found, known in self._pairs(shard):
            made = pseudo_record(record, found, self.choices, self.weight)
            fate = PictureFate.UNSEEN if found.rejected else self._fate(made, known)
            counts[fate.value] += 1
            if fate in (PictureFate.LABELLED, PictureFate.EMPTY):
                self._show(shown, (shard, len(rows)), made, found)
                rows.append(made)
            else:
                lost.append(_row(record, fate.value))
            lost += self._lost(record, found)
        filesystem, folder = storage.open_uri(self.out)
        info = dataset_writer.write_shard(filesystem, folder, shard, rows, {"fingerprint": self.fingerprint})
        dropped = memoryview(_dropped(lost))
        commit.write_file(filesystem, storage.join(folder, dropped_name(shard)), dropped)
        return {
            "info": dataclasses.asdict(info),
            "dropped": commit.sha256_of(dropped),
            "pictures": counts,
            "labels": _label_counts(rows, len(self.choices)),
            "shown": shown,
        }

    def _fate(self, made: Record, known: bool) -> PictureFate:
        if known:
            return PictureFate.LEAKED
        if any(not instance.ignore for instance in made.instances):
            return PictureFate.LABELLED
        return PictureFate.EMPTY if self.keep_empty else PictureFate.NOTHING_KEPT

    def _pairs(self, shard: int) -> Iterator[tuple[Record, PicturePrediction, bool]]:
        pool = Dataset(self.source.pool)
        first = int(pool.rows_per_shard[:shard].sum())
        for offset, (found, known) in enumerate(self.source.pictures(shard)):
            record = pool.record(first + offset)
            if record.image_id != found.image_id:
                raise PredictionsError(
                    f"picture {first + offset} of the pool has id {record.image_id}, its prediction "
                    f"{found.image_id}: predict again on this pool"
                )
            yield record, found, known

    def _lost(self, record: Record, found: PicturePrediction) -> Iterator[dict[str, Any]]:
        for at, fate in selection.fates(found, self.choices):
            if fate in (Fate.BELOW_THRESHOLD, Fate.NO_PIXEL):
                label = int(found.labels[at])
                yield _row(record, fate.value) | {
                    "label": label, "score": float(found.scores[at]), "threshold": self.choices[label].threshold,
                }  # fmt: skip

    def _show(
        self, sheets: dict[str, list[Shown]], place: tuple[int, int], made: Record, found: PicturePrediction
    ) -> None:
        labels = [instance for instance in made.instances if not instance.ignore]
        if not labels:
            return
        best = max(labels, key=lambda i: i.score)
        _offer(sheets["best"], Shown(-best.score, *place, best.id))
        margins = [(abs(i.score - self.choices[i.label].threshold), i.id) for i in labels]
        _offer(sheets["nearest"], Shown(min(margins)[0], *place, min(margins)[1]))
        values = agreement(found)
        if values is not None:
            kept = [at for at, fate in selection.fates(found, self.choices) if fate in (Fate.LABEL, Fate.UNCERTAIN)]
            least, number = min((values[at], i.id) for at, i in zip(kept, made.instances, strict=True) if not i.ignore)
            _offer(sheets["disputed"], Shown(least, *place, number))


def _offer(sheet: list[Shown], one: Shown) -> None:
    sheet[:] = heapq.nsmallest(PICTURES_A_SHEET, [*sheet, one])


def _label_counts(rows: Sequence[Record], classes: int) -> dict[str, list[int]]:
    """Labels and ignored regions a class, and labels by COCO's size ranges."""
    kept, ignored, sizes = [0] * classes, [0] * classes, [0, 0, 0]
    for instance in (instance for row in rows for instance in row.instances):
        (ignored if instance.ignore else kept)[instance.label] += 1
        if not instance.ignore:
            sizes[int(np.searchsorted((32**2, 96**2), instance.area, side="right"))] += 1
    return {"kept": kept, "uncertain": ignored, "sizes": sizes}


def _row(record: Record, reason: str) -> dict[str, Any]:
    return {"image_id": record.image_id, "file_name": record.file_name, "reason": reason}


def _dropped(rows: Sequence[dict[str, Any]]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, _DROPPED_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema=_DROPPED_SCHEMA))
    return sink.getvalue()
