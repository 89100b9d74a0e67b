"""What a measurement shows people: precision against recall, and pictures, the truth beside the predictions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pipelines.coco_metrics import Curves
from pipelines.comparison import instances_of
from pipelines.dataset import Dataset
from pipelines.gallery import draw_instances, load_shown
from pipelines.html import Page
from pipelines.predictions import PicturePrediction

_GAP_PX = 8


def chosen(count: int, pictures: int) -> list[int]:
    """Numbers of the pictures that are shown of a data set of so many: always the same, evenly over it."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, pictures))}) if count else []


def curves_page(title: str, curves: Mapping[str, Curves]) -> bytes:
    """A page with a chart of precision against recall for each kind (box, mask, keypoints), a line an overlap."""
    page = Page(title)
    for kind, lines in curves.items():
        page.line_chart(f"{kind}: precision at recall", lines, "recall", "precision")
    return page.render().encode()


def picture(dataset: Dataset, index: int, found: PicturePrediction, names: Sequence[str]) -> bytes:
    """A JPEG of one picture twice: left with its annotations, right with what was found, scores from 0.5."""
    record = dataset.record(index)
    shown = load_shown(record)
    sides = [
        draw_instances(shown, record.instances, names),
        draw_instances(shown, instances_of(found), names, every_score=True),
    ]
    gap = np.full((sides[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.concatenate([sides[0], gap, sides[1]], axis=1)).save(stream, "JPEG", quality=85)
    return stream.getvalue()
