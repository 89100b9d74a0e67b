"""Which detections become labels: of each class the best, as many a picture as people annotated.

The rule is that of data distillation (Radosavovic et al. 2017, section 3). It is computed by order statistics over all
shards: each counts its scores in bins, the sums tell in which bin the last wanted detection of a class lies, and the
detections of that bin alone are then ranked. Equal scores are ranked by picture and by what was detected, so that the
choice depends neither on shards nor on any order, and is exact.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.predictions import PicturePrediction, PredictionsError

_BITS = 16
_FEW_OBJECTS = 20

IntArray = npt.NDArray[np.int64]


class Fate(enum.Enum):
    """What becomes of a detection."""

    LABEL = "label"
    UNCERTAIN = "uncertain"  # a region that is neither object nor background
    BELOW_THRESHOLD = "below_threshold"
    NO_PIXEL = "no_pixel"


class Key(NamedTuple):
    """The place of a detection in its class's ranking; a smaller one is better.

    Attributes:
        minus_score: the score times -1.
        image_id: of the picture.
        rank: in the picture, by `ranking`.
    """

    minus_score: float
    image_id: int
    rank: int


KEEP_ALL = Key(np.inf, 0, 0)
KEEP_NONE = Key(-np.inf, 0, 0)


class ClassSelection(NamedTuple):
    """What the rule chose for one class.

    Attributes:
        name: of the class.
        labelled: objects in the labelled pictures.
        labelled_rate: objects a labelled picture.
        wanted: objects to keep in the pool by the rule.
        rule_threshold: score of the last detection the rule keeps; 0 where it keeps all, above 1 where none.
        threshold: score from which detections are kept: the rule's within the floor and the cap.
        uncertain_from: score from which detections that are not kept are uncertain.
        kept: detections kept.
        uncertain: detections that become ignored regions.
        found: detections in all.
        few_labels: the labelled rate rests on few objects and is unsure.
    """

    name: str
    labelled: int
    labelled_rate: float
    wanted: int
    rule_threshold: float
    threshold: float
    uncertain_from: float
    kept: int
    uncertain: int
    found: int
    few_labels: bool


@dataclasses.dataclass(frozen=True)
class Limits:
    """What holds whatever the rule says.

    Attributes:
        min_score: detections below are never kept.
        max_score: detections from here on are always kept; 1 for none, since a score may well round to 1.
        uncertain: share of the threshold from which detections that are not kept are uncertain; 1 for none.
    """

    min_score: float
    max_score: float
    uncertain: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """The choice of one class.

    Attributes:
        last: the last detection that the rule keeps.
        threshold: score within the limits.
        limits: around the rule.
    """

    last: Key
    threshold: float
    limits: Limits

    @property
    def uncertain_from(self) -> float:
        """Lowest score of an uncertain detection."""
        return self.threshold * self.limits.uncertain

    def fate(self, key: Key) -> Fate:
        """What becomes of a detection of this class."""
        score = -key.minus_score
        by_rule = key <= self.last and score >= self.limits.min_score
        if by_rule or (self.limits.max_score < 1 and score >= self.limits.max_score):
            return Fate.LABEL
        uncertain = self.limits.uncertain < 1 and score >= self.uncertain_from
        return Fate.UNCERTAIN if uncertain else Fate.BELOW_THRESHOLD


def ranking(found: PicturePrediction) -> list[int]:
    """A picture's detections, best first; equal scores by class, box and mask, so that their order says nothing."""
    masks = found.rles or (b"",) * len(found.scores)
    rows = zip((-found.scores).tolist(), found.labels.tolist(), found.boxes_xyxy.tolist(), masks, strict=True)
    ordered = list(rows)
    return sorted(range(len(ordered)), key=ordered.__getitem__)


Fates = list[tuple[int, Fate]]
"""A picture's detections by their places, best first, and what becomes of each."""


def fates(found: PicturePrediction, choices: Sequence[Choice]) -> Fates:
    """Every detection of a picture, best first, with what becomes of it."""
    made = []
    for rank, at in enumerate(ranking(found)):
        key = Key(-float(found.scores[at]), found.image_id, rank)
        made.append((at, choices[int(found.labels[at])].fate(key) if found.areas[at] else Fate.NO_PIXEL))
    return made


def _bins(scores: npt.NDArray[np.float32]) -> IntArray:
    # The bits of a float32 that is not negative are in the order of its values.
    return (np.ascontiguousarray(scores, np.float32).view(np.uint32) >> np.uint32(_BITS)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Tally:
    """Detections counted by class and bin of score; adding is in any order.

    Attributes:
        codes: int64 [N], ascending: label << 16 | bin.
        counts: int64 [N].
    """

    codes: IntArray
    counts: IntArray

    @classmethod
    def of(cls, pictures: Iterable[PicturePrediction]) -> "Tally":
        """Count what has a pixel.

        Raises:
            PredictionsError: a score outside of 0..1.
        """
        parts = [np.empty(0, np.int64)]
        for found in pictures:
            usable = found.areas > 0
            scores = found.scores[usable]
            if not ((scores >= 0) & (scores <= 1)).all():
                raise PredictionsError(f"picture {found.image_id} has a score outside of 0..1: predict it again")
            parts.append(found.labels[usable] << _BITS | _bins(scores))
        codes, counts = np.unique(np.concatenate(parts), return_counts=True)
        return cls(codes, counts.astype(np.int64))

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        codes, places = np.unique(np.concatenate([self.codes, other.codes]), return_inverse=True)
        counts = np.zeros(len(codes), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        return Tally(codes, counts)

    def to_plain(self) -> list[list[int]]:
        """As JSON-able values; see `from_plain`."""
        return [self.codes.tolist(), self.counts.tolist()]

    @classmethod
    def from_plain(cls, plain: Sequence[Sequence[int]]) -> "Tally":
        """The inverse of `to_plain`."""
        return cls(np.array(plain[0], np.int64), np.array(plain[1], np.int64))

    def found(self, label: int) -> int:
        """Detections of a class."""
        return int(self.counts[self.codes >> _BITS == label].sum())

    def last_bin(self, label: int, wanted: int) -> tuple[int, int] | None:
        """The bin in which the last of the best `wanted` lies, and how many of that bin belong to them.

        None where all are wanted, or none.
        """
        mine = self.codes >> _BITS == label
        bins, counts = (self.codes[mine] & ((1 << _BITS) - 1))[::-1], self.counts[mine][::-1]
        if not 0 < wanted < counts.sum():
            return None
        at = int(np.searchsorted(np.cumsum(counts), wanted))
        return int(bins[at]), wanted - int(counts[:at].sum())


def histogram(pictures: Iterable[PicturePrediction], classes: int) -> IntArray:
    """Detections with a pixel by class and tenth of score: [classes, 10], each tenth with its lower end."""
    edges = np.array([tenth / 10 for tenth in range(1, 10)], np.float32)
    counts = np.zeros((classes, 10), np.int64)
    for found in pictures:
        usable = found.areas > 0
        np.add.at(counts, (found.labels[usable], np.searchsorted(edges, found.scores[usable], side="right")), 1)
    return counts


class Search(NamedTuple):
    """What is left to rank of a class: the best `wanted` of those in the bin `place` of score."""

    place: int
    wanted: int


def candidates(pictures: Iterable[PicturePrediction], searches: dict[int, Search]) -> dict[int, list[Key]]:
    """The best keys in the bin of each class's search: no more than it can need."""
    made: dict[int, list[Key]] = {label: [] for label in searches}
    for found in pictures:
        bins = _bins(found.scores)
        wanted = [
            int(label) in searches and searches[int(label)].place == place and area > 0
            for label, place, area in zip(found.labels, bins, found.areas, strict=True)
        ]
        if not any(wanted):
            continue
        for rank, at in enumerate(ranking(found)):
            if wanted[at]:
                made[int(found.labels[at])].append(Key(-float(found.scores[at]), found.image_id, rank))
    return best_of(made, searches)


def best_of(keys: dict[int, list[Key]], searches: dict[int, Search]) -> dict[int, list[Key]]:
    """The best keys of each class, as many as its search asks for."""
    return {label: sorted(of_class)[: searches[label].wanted] for label, of_class in keys.items()}


def keys_from_plain(plain: dict[str, Any]) -> dict[int, list[Key]]:
    """What `candidates` made, after a way through JSON."""
    return {int(label): [Key(*key) for key in keys] for label, keys in plain.items()}


def choose(last: Key, limits: Limits) -> Choice:
    """The choice of a class from the last detection the rule keeps."""
    # Where none is kept, more than any score can be.
    cap = limits.max_score if limits.max_score < 1 else math.nextafter(1.0, 2.0)
    threshold = min(max(-last.minus_score, limits.min_score), cap)
    return Choice(last, threshold, limits)


def described(
    name: str, labelled: int, pictures: int, wanted: int, choice: Choice, counts: tuple[int, int, int]
) -> ClassSelection:
    """One row of the account.

    Args:
        name: of the class.
        labelled: its objects in the labelled pictures.
        pictures: labelled pictures.
        wanted: by the rule.
        choice: of the class.
        counts: detections kept, uncertain and found.
    """
    # Finite, since JSON has no infinity.
    rule = min(max(-choice.last.minus_score, 0.0), 2.0)
    kept, uncertain, found = counts
    return ClassSelection(
        name, labelled, labelled / pictures, wanted, rule, choice.threshold, choice.uncertain_from, kept, uncertain,
        found, labelled < _FEW_OBJECTS,
    )  # fmt: skip
