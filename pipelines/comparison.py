"""The same pictures as annotated and as runs saw them: which to look at, and how they stand on a page."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.dataset import Dataset
from pipelines.decode import DecodeError
from pipelines.gallery import draw_instances, load_shown
from pipelines.html import Page
from pipelines.picture_score import MIN_IOU, MIN_SCORE, PictureScore, score_picture
from pipelines.predictions import PicturePrediction, PredictionsError, PredictionsManifest, read_pictures
from pipelines.records import Instance, Record

_MOST_JUDGED = 2000
_A_GROUP = 4
_LONGEST_PX = 512


class Predicted(NamedTuple):
    """A run's predictions.

    Attributes:
        name: Of the run.
        uri: Of its predictions.
        manifest: Theirs.
    """

    name: str
    uri: str
    manifest: PredictionsManifest


class Judged(NamedTuple):
    """A picture with the score of every run.

    Attributes:
        row: Its index in the data set.
        scores: One a run.
    """

    row: int
    scores: tuple[PictureScore, ...]

    def value(self, run: int) -> float:
        """The mark of a run, 0..1; 1 where there was nothing to do and nothing was done."""
        value = self.scores[run].value
        return 1.0 if value is None else value


class Group(NamedTuple):
    """Pictures under one heading."""

    heading: str
    pictures: tuple[Judged, ...]


def judge(dataset: Dataset, runs: Sequence[Predicted]) -> list[Judged]:
    """Mark the labelled pictures, at most 2000 at even distances.

    Args:
        dataset: What the predictions were made on.
        runs: One or more.

    Returns:
        In the data set's order; pictures without objects on which no run found any are left out.

    Raises:
        ValueError: A shard of the data or of the predictions is missing or damaged.
    """
    labelled = np.flatnonzero(dataset.labelled)
    even = np.linspace(0, len(labelled) - 1, min(_MOST_JUDGED, len(labelled))).round().astype(int)
    judged = []
    opened = -1
    pictures: list[list[PicturePrediction]] = []
    for row in labelled[even].tolist():
        shard, inner = dataset.locate(row)
        if shard != opened:
            opened, pictures = shard, [read_pictures(run.uri, run.manifest.shards[shard]) for run in runs]
        record = dataset.record(row)
        scores = tuple(score_picture(record, _at(found, inner, record)) for found in pictures)
        if any(score.value is not None for score in scores):
            judged.append(Judged(row, scores))
    return judged


def choose(judged: Sequence[Judged], names: Sequence[str], count: int = _A_GROUP) -> list[Group]:
    """The last run's best and worst pictures, and those on which the first and the last run differ most.

    Args:
        judged: To choose among.
        names: Of the runs.
        count: Most pictures a group.

    Returns:
        Groups that are not empty; no picture is in two. Of equals, those with more objects or mistakes first.
    """
    last = len(names) - 1
    count = min(count, -(-len(judged) // 2))
    # To one decimal: among pictures about equally good, those with many objects say more.
    by_mark = sorted(
        judged,
        key=lambda one: (-round(one.value(last), 1), -one.scores[last].found, -one.value(last), one.row),
    )
    best = by_mark[:count]
    rest = sorted(by_mark[count:], key=lambda one: (round(one.value(last), 1), -one.scores[last].mistakes, one.row))
    worst = rest[:count]
    groups = [
        Group(f"Best pictures of {names[last]}", tuple(best)),
        Group(f"Worst pictures of {names[last]}", tuple(worst)),
    ]
    if last:
        apart = sorted(rest[count:], key=lambda one: (-abs(one.value(last) - one.value(0)), one.row))[:count]
        differing = tuple(one for one in apart if one.value(last) != one.value(0))
        groups.append(Group(f"Other pictures on which {names[0]} and {names[last]} differ most", differing))
    return [group for group in groups if group.pictures]


def add_comparisons(page: Page, dataset: Dataset, runs: Sequence[Predicted]) -> None:
    """Add chosen pictures, each as annotated and as every run saw it.

    Args:
        page: To add to.
        dataset: What the predictions were made on.
        runs: One or more.

    Raises:
        ValueError: A shard of the data or of the predictions is missing or damaged.
    """
    judged = judge(dataset, runs)
    groups = choose(judged, [run.name for run in runs])
    page.section("Pictures")
    page.paragraph(
        f"Only detections with a score of {MIN_SCORE:g} or more are drawn and counted. The number beside a "
        "run's name is its mark on the picture, 0 to 1: the mean mask overlap (IoU) over the objects and the "
        "false detections. Each detection, best first, is matched to the free object of its class that it "
        f"overlaps most, if by {MIN_IOU:g} or more; missed objects and false detections count 0, those on "
        f"crowds are left out. {len(judged):,} of {len(dataset):,} pictures were marked."
    )
    for group in groups:
        page.section(group.heading)
        for one in group.pictures:
            _add(page, dataset, runs, one)


def _add(page: Page, dataset: Dataset, runs: Sequence[Predicted], judged: Judged) -> None:
    record, names = dataset.record(judged.row), dataset.manifest.names
    shard, inner = dataset.locate(judged.row)
    try:
        shown = load_shown(record, _LONGEST_PX)
    except DecodeError as error:
        page.paragraph(f"{record.file_name} cannot be shown: {error}")
        return
    images = [draw_instances(shown, record.instances, names)]
    captions = [f"annotated: {judged.scores[0].objects} object" + "s" * (judged.scores[0].objects != 1)]
    for run, score in zip(runs, judged.scores, strict=True):
        found = _at(read_pictures(run.uri, run.manifest.shards[shard]), inner, record)
        images.append(draw_instances(shown, instances_of(found), names, every_score=True))
        mark = "" if score.value is None else f" {score.value:.2f}"
        captions.append(f"{run.name}{mark}: {score.found} of {score.objects} found, {score.false} false")
    page.comparison(record.file_name, images, captions)


def _at(pictures: Sequence[PicturePrediction], inner: int, record: Record) -> PicturePrediction:
    """The prediction on a record, at the record's own place in its shard."""
    if inner >= len(pictures) or pictures[inner].image_id != record.image_id:
        got = pictures[inner].image_id if inner < len(pictures) else "nothing"
        raise PredictionsError(
            f"the predictions have {got} where the data set has picture {record.image_id}: predict again"
        )
    return pictures[inner]


def instances_of(found: PicturePrediction) -> tuple[Instance, ...]:
    """Detections to draw, in the form of annotated objects."""
    boxes = found.boxes_xyxy.astype(float).tolist()
    return tuple(
        Instance(
            id=number,
            label=int(found.labels[number]),
            box_xyxy=(x1, y1, x2, y2),
            area=float(found.areas[number]),
            crowd=False,
            ignore=False,
            polygons=None,
            rle=None if found.rles is None else found.rles[number],
            keypoints=None,
            score=float(found.scores[number]),
        )
        for number, (x1, y1, x2, y2) in enumerate(boxes)
        if found.scores[number] >= MIN_SCORE
    )
