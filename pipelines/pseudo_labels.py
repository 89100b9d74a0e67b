"""A shard of the pool written as pseudo-labelled records, and what it lost with the reasons."""

import dataclasses
import enum
import heapq
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from pipelines import commit, dataset_writer, selection, storage
from pipelines.manifest import ClassInfo
from pipelines.pool_shards import PoolPicture, PoolShards
from pipelines.predictions import PicturePrediction, PredictionsError
from pipelines.records import Instance, Record
from pipelines.selection import Choice, Fate

SHEETS = ("best", "nearest", "disputed")
"""Pictures to look at: the best labels, those nearest their threshold, those that the views agree on least."""

PICTURES_A_SHEET = 50
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

    @property
    def is_written(self) -> bool:
        """Whether the picture is in the data set."""
        return self in (PictureFate.LABELLED, PictureFate.EMPTY)


@dataclasses.dataclass(frozen=True)
class Rules:
    """How detections become objects.

    Attributes:
        choices: one a class.
        classes: in the order of labels.
        weight: of the labels' losses.
        min_keypoint_score: keypoints below are not visible.
        keep_empty: keep pictures without any kept object.
    """

    choices: tuple[Choice, ...]
    classes: tuple[ClassInfo, ...]
    weight: Weight = Weight.ONE
    min_keypoint_score: float = 0.0
    keep_empty: bool = False


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


def _keypoints(found: PicturePrediction, at: int, rules: Rules) -> npt.NDArray[np.float32] | None:
    """A detection's keypoints as annotations: pixel indices, whose centres predictions name, and 2 where visible."""
    if found.keypoints is None or not rules.classes[int(found.labels[at])].keypoints:
        return None
    visible = found.keypoints[at, :, 2:] >= rules.min_keypoint_score
    made = np.concatenate([found.keypoints[at, :, :2] - 0.5, np.full(visible.shape, 2.0)], axis=1)
    return np.where(visible, made, 0.0).astype(np.float32)


def _keypoint_scores(found: PicturePrediction, at: int, rules: Rules) -> npt.NDArray[np.float32] | None:
    if found.keypoints is None or not rules.classes[int(found.labels[at])].keypoints:
        return None
    return found.keypoints[at, :, 2].copy()


def pseudo_record(row: int, record: Record, found: PicturePrediction, fates: selection.Fates, rules: Rules) -> Record:
    """The pool's picture with the kept detections as its objects, best first, and the uncertain ones ignored.

    Args:
        row: of the picture in the pool; ids of objects follow from it.
        record: the picture.
        found: the detections on it.
        fates: of them, as `selection.fates` gives them.
        rules: how they become objects.

    Raises:
        PredictionsError: more objects than a picture can have.
    """
    kept = [(at, fate) for at, fate in fates if fate in (Fate.LABEL, Fate.UNCERTAIN)]
    if len(kept) >= _OBJECTS_A_PICTURE:
        raise PredictionsError(
            f"picture {record.image_id} would get {len(kept)} pseudo-labels, at most {_OBJECTS_A_PICTURE - 1} are "
            "possible: raise --min-score"
        )
    instances = tuple(
        Instance(
            # Unique in the data set, and exact in the float64 of JSON readers; image ids may be any 64 bits.
            id=row * _OBJECTS_A_PICTURE + rank + 1,
            label=int(found.labels[at]),
            box_xyxy=tuple(float(v) for v in found.boxes_xyxy[at]),  # type: ignore[arg-type]
            area=float(found.areas[at]),
            # To whoever knows crowds alone (COCO's evaluation, the counts of a data set) it is one.
            crowd=fate is Fate.UNCERTAIN,
            ignore=fate is Fate.UNCERTAIN,
            polygons=None,
            rle=None if found.rles is None else found.rles[at],
            keypoints=_keypoints(found, at, rules),
            score=float(found.scores[at]),
            loss_weight=float(found.scores[at]) if rules.weight is Weight.SCORE else 1.0,
            view_agreement=float(found.view_agreement[at]),
            box_spread=float(found.box_spread[at]),
            mask_score=None if found.mask_agreement is None else float(found.mask_agreement[at]),
            keypoint_scores=_keypoint_scores(found, at, rules),
        )
        for rank, (at, fate) in enumerate(kept)
    )
    return dataclasses.replace(record, instances=instances, labelled=True)


class _Shard:
    """What becomes of one shard's pictures."""

    def __init__(self, number: int, rules: Rules) -> None:
        self.number, self.rules = number, rules
        self.rows: list[Record] = []
        self.lost: list[dict[str, Any]] = []
        self.pictures, self.detections = Counter[str](), Counter[str]()
        self.sheets: dict[str, list[Shown]] = {name: [] for name in SHEETS}

    def add(self, one: PoolPicture) -> None:
        """One more picture."""
        fates = selection.fates(one.found, self.rules.choices)
        made = pseudo_record(one.row, one.record, one.found, fates, self.rules)
        fate = PictureFate.UNSEEN if one.found.rejected else self._fate(made, one.known)
        self.pictures[fate.value] += 1
        if fate.is_written:
            self._show(made, one.found, fates)
            self.rows.append(made)
        else:
            self.lost.append(_row(made, fate.value))
        for at, of_detection in fates:
            self._account(one, at, of_detection, fate)

    def _fate(self, made: Record, known: bool) -> PictureFate:
        if known:
            return PictureFate.LEAKED
        if any(not instance.ignore for instance in made.instances):
            return PictureFate.LABELLED
        return PictureFate.EMPTY if self.rules.keep_empty else PictureFate.NOTHING_KEPT

    def _account(self, one: PoolPicture, at: int, fate: Fate, picture: PictureFate) -> None:
        """A detection is in the data set, or dropped with a reason: its own, or that its picture is not there."""
        own = fate in (Fate.BELOW_THRESHOLD, Fate.NO_PIXEL) and picture is not PictureFate.LEAKED
        reason = fate.value if own or picture.is_written else picture.value
        self.detections[reason] += 1
        if own or not picture.is_written:
            label = int(one.found.labels[at])
            self.lost.append(
                _row(one.record, reason)
                | {"label": label, "score": float(one.found.scores[at]),
                   "threshold": self.rules.choices[label].threshold}
            )  # fmt: skip

    def _show(self, made: Record, found: PicturePrediction, fates: selection.Fates) -> None:
        kept = [at for at, fate in fates if fate in (Fate.LABEL, Fate.UNCERTAIN)]
        labels = [(at, i) for at, i in zip(kept, made.instances, strict=True) if not i.ignore]
        if not labels:
            return
        choices = self.rules.choices
        self._offer("best", *min((-i.score, i.id) for _, i in labels))
        self._offer("nearest", *min((abs(i.score - choices[i.label].threshold), i.id) for _, i in labels))
        if not (found.view_agreement >= 1).all():  # else there is nothing to disagree about
            self._offer("disputed", *min((float(found.view_agreement[at]), i.id) for at, i in labels))

    def _offer(self, sheet: str, order: float, instance: int) -> None:
        one = Shown(order, self.number, len(self.rows), instance)
        self.sheets[sheet] = heapq.nsmallest(PICTURES_A_SHEET, [*self.sheets[sheet], one])


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes the pseudo-labelled shards.

    Attributes:
        source: pool and predictions.
        out: URI of the pseudo-labelled data set.
        rules: how detections become objects.
        fingerprint: of the whole, kept in each shard.
    """

    source: PoolShards
    out: str
    rules: Rules
    fingerprint: str

    def write(self, shard: int) -> dict[str, Any]:
        """Write one shard and what it lost; the same input gives the same bytes.

        Raises:
            DatasetError: the pool's shard is damaged.
            PredictionsError: predictions of other pictures.
        """
        made = _Shard(shard, self.rules)
        for picture in self.source.open(shard):
            made.add(picture)
        filesystem, folder = storage.open_uri(self.out)
        info = dataset_writer.write_shard(filesystem, folder, shard, made.rows, {"fingerprint": self.fingerprint})
        dropped = memoryview(_dropped(made.lost))
        commit.write_file(filesystem, storage.join(folder, dropped_name(shard)), dropped)
        return {
            "info": dataclasses.asdict(info),
            "dropped": commit.sha256_of(dropped),
            "pictures": made.pictures,
            "detections": made.detections,
            "labels": _label_counts(made.rows, len(self.rules.classes)),
            "shown": made.sheets,
        }


def _label_counts(rows: Sequence[Record], classes: int) -> list[list[int]]:
    """A class each: labels, ignored regions, and labels by COCO's size ranges."""
    counts = np.zeros((classes, 5), np.int64)
    for instance in (instance for row in rows for instance in row.instances):
        if instance.ignore:
            counts[instance.label, 1] += 1
        else:
            size = int(np.searchsorted((32**2, 96**2), instance.area, side="right"))
            counts[instance.label, (0, 2 + size)] += 1
    return [[int(count) for count in row] for row in counts]


def _row(record: Record, reason: str) -> dict[str, Any]:
    return {"image_id": record.image_id, "file_name": record.file_name, "reason": reason}


def _dropped(rows: Sequence[dict[str, Any]]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, _DROPPED_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema=_DROPPED_SCHEMA))
    return sink.getvalue()
