"""A data set to look at: one page with its classes and some of its pictures, their objects drawn on.

Also how a record's objects become a drawing, of whatever size, which the run report shares.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines import decode, masks
from pipelines.dataset import Dataset
from pipelines.draw import Drawn, Pixels, overlay
from pipelines.html import Cell, Page
from pipelines.manifest import Manifest
from pipelines.records import Instance, Record

_LONGEST_PX = 512
_MOST_SHARDS = 16


class Shown(NamedTuple):
    """A picture, small enough for a page.

    Attributes:
        pixels: [h, w, 3] RGB.
        scale_yx: Size shown over original size, 1 or less.
        size_hw: Of the original, pixels.
    """

    pixels: Pixels
    scale_yx: tuple[float, float]
    size_hw: tuple[int, int]


def load_shown(record: Record, longest_px: int = _LONGEST_PX) -> Shown:
    """A record's picture, with its longer side scaled down to at most ``longest_px``.

    Raises:
        DecodeError: Its bytes are no picture, or one of another size than the record says.
    """
    pixels = decode.decode_rgb(record.image, max_pixels=record.height * record.width)
    height, width = pixels.shape[:2]
    if (height, width) != (record.height, record.width):
        raise decode.DecodeError(
            decode.DecodeFault.CORRUPT, f"is {height}x{width}, its record says {record.height}x{record.width}"
        )
    if max(height, width) > longest_px:
        small = tuple(max(1, round(side * longest_px / max(height, width))) for side in (width, height))
        pixels = np.array(Image.fromarray(pixels).resize((small[0], small[1]), Image.Resampling.LANCZOS))
    scale_yx = pixels.shape[0] / height, pixels.shape[1] / width
    return Shown(pixels, scale_yx, (height, width))


def draw_instances(
    shown: Shown, instances: Sequence[Instance], names: Sequence[str], every_score: bool = False
) -> Pixels:
    """Boxes, masks, labels and keypoints on a picture.

    Args:
        shown: The picture.
        instances: In pixels of the original; small ones are drawn on top of large ones.
        names: Class names in the order of labels.
        every_score: Write scores of 1 too, which human labels have.

    Returns:
        [h, w, 3] RGB; small pictures are enlarged so that labels can be read.
    """
    ordered = sorted(instances, key=lambda instance: -instance.area)
    return overlay(shown.pixels, [_drawn(shown, instance, names, every_score) for instance in ordered])


def save_gallery(dataset: Dataset, out: str, limit: int = 60) -> str:
    """Write a page with the class table and pictures chosen evenly over the data set.

    Args:
        dataset: To show.
        out: Path or URI of the HTML file to write.
        limit: Most pictures, 1 or more.

    Returns:
        Where the page is.

    Raises:
        ValueError: ``limit`` is below 1, or ``out`` cannot be a file.
        DatasetError: A shard is missing or damaged.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}, wanted 1 or more: how many pictures the gallery shows")
    manifest = dataset.manifest
    rows = _even_rows(dataset, limit)
    page = Page(f"Data set {dataset.uri.rstrip('/').rsplit('/', 1)[-1]}")
    page.paragraph(_account(manifest))
    page.section("Classes")
    _class_table(page, dataset)
    page.section("Pictures")
    page.paragraph(_legend(manifest, len(rows), len(dataset)))
    unreadable = []
    for row in rows:
        record = dataset.record(row)
        try:
            shown = load_shown(record)
        except decode.DecodeError as error:
            unreadable.append(f"{record.file_name} cannot be shown: {error}")
            continue
        page.picture(draw_instances(shown, record.instances, manifest.names), _caption(record))
    for line in unreadable:
        page.paragraph(line)
    return page.save(out)


def _drawn(shown: Shown, instance: Instance, names: Sequence[str], every_score: bool) -> Drawn:
    y, x = shown.scale_yx
    x1, y1, x2, y2 = instance.box_xyxy
    points = None
    if instance.keypoints is not None:
        points = instance.keypoints * np.array([x, y, 1.0], np.float32)
    mark = " (crowd)" if instance.crowd else " (ignored)" if instance.ignore else ""
    return Drawn(
        box_xyxy=(x1 * x, y1 * y, x2 * x, y2 * y),
        label=names[instance.label] + mark,
        colour=instance.label,
        score=instance.score if every_score or instance.score != 1.0 else None,
        mask=_mask(shown, instance),
        keypoints=points,
    )


def _mask(shown: Shown, instance: Instance) -> npt.NDArray[np.uint8] | None:
    segmentation = instance.rle if instance.polygons is None else instance.polygons
    if segmentation is None:
        return None
    full = masks.rasterise(segmentation, *shown.size_hw)
    height, width = shown.pixels.shape[:2]
    if full.shape == (height, width):
        return full
    small = Image.fromarray(full * np.uint8(255)).resize((width, height), Image.Resampling.BOX)
    # Below a half, so that thin parts do not vanish as the picture shrinks.
    return (np.asarray(small) >= 100).astype(np.uint8)


def _even_rows(dataset: Dataset, limit: int) -> list[int]:
    """Rows at even distances, of at most 16 shards: each is read and hashed whole, maybe over a network."""
    shards = len(dataset.rows_per_shard)
    first = np.concatenate([[0], np.cumsum(dataset.rows_per_shard)])
    opened = np.unique(np.linspace(0, shards - 1, min(shards, _MOST_SHARDS)).round().astype(int))
    if not len(dataset):
        return []
    rows = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in opened])
    chosen = np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)
    return [int(row) for row in rows[chosen]]


def _account(manifest: Manifest) -> str:
    written = f"{manifest.rows_written:,} pictures"
    if manifest.labelled_images < manifest.rows_written:
        written += f", {manifest.rows_written - manifest.labelled_images:,} of them unlabelled"
    kept = f"{manifest.instances_kept:,} objects"
    if manifest.crowds:
        kept += f", {manifest.crowds:,} of them crowds or ignored"
    lost = f"{manifest.rows_rejected:,} pictures and {manifest.instances_rejected:,} objects of the source were"
    if not manifest.rows_rejected + manifest.instances_rejected:
        lost = "Nothing of the source was"
    return f"{written}; {kept}. {lost} rejected."


def _class_table(page: Page, dataset: Dataset) -> None:
    """Objects and pictures of each class, crowds and ignored regions not counted."""
    manifest = dataset.manifest
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.label_offsets))
    pairs = np.unique(np.stack([owner, dataset.labels.astype(np.int64)]), axis=1)
    pictures = np.bincount(pairs[1], minlength=len(manifest.classes))
    total = max(1, sum(manifest.class_counts))
    counts = zip(manifest.classes, manifest.class_counts, pictures.tolist(), strict=True)
    rows: list[list[Cell]] = [
        [info.name, info.id, count, 100.0 * count / total, seen, len(info.keypoints) or None]
        for info, count, seen in counts
    ]
    headers = ["class", "source id", "objects", "share, %", "pictures", "keypoints"]
    kept = 6 if any(info.keypoints for info in manifest.classes) else 5
    page.table(headers[:kept], [row[:kept] for row in rows], decimals=1)


def _legend(manifest: Manifest, shown: int, total: int) -> str:
    text = f"{shown:,} of {total:,}, chosen evenly over the data set. A colour is a class."
    if manifest.crowds:
        text += " Crowds and ignored regions are neither learned nor counted against a detector."
    return text


def _caption(record: Record) -> str:
    size = f"{record.file_name}, {record.width} x {record.height}"
    if not record.labelled:
        return f"{size}, not labelled"
    crowds = sum(instance.crowd for instance in record.instances)
    ignored = sum(instance.ignore and not instance.crowd for instance in record.instances)
    objects = len(record.instances) - crowds - ignored
    parts = [f"{objects} object" + "s" * (objects != 1)]
    if crowds:
        parts.append(f"{crowds} crowd" + "s" * (crowds != 1))
    if ignored:
        parts.append(f"{ignored} ignored")
    return f"{size}, {', '.join(parts)}"
