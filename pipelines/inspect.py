"""`maskray inspect`: what a committed data set holds, as text; on request everything is checked again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import provenance, rejections
from pipelines.dataset import Dataset
from pipelines.manifest import Manifest
from pipelines.verify import verify

_MOST_CLASSES = 100
_MOST_PROBLEMS = 20
_SHOWN = ("kind", "images", "annotations")
_PER_PICTURE = ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, None))


@dataclass(frozen=True)
class InspectConfig:
    """What to look at.

    Attributes:
        uri: path or URI of a prepared data set.
        verify: check again every hash, record, picture and mask, the index and the account; reads everything.
        gallery: write an HTML page of pictures with their objects to this file.
    """

    uri: str
    verify: bool = False
    gallery: str | None = None


@dataclass(frozen=True)
class InspectResult:
    """What was found.

    Attributes:
        text: for people, several lines.
        manifest: of the data set.
        problems: what --verify found wrong, one line each; empty where all is well or nothing was verified.
    """

    text: str
    manifest: Manifest
    problems: tuple[str, ...]


def run(config: InspectConfig) -> InspectResult:
    """Describe a data set; the gallery is made elsewhere.

    Raises:
        ManifestError: no data set there.
        DatasetError: its index or its rejections are damaged.
    """
    # What is verified is what the store holds, not this machine's copy of it.
    dataset = Dataset(config.uri, cached=not config.verify)
    problems = tuple(verify(dataset)) if config.verify else ()
    return InspectResult(_text(dataset, problems, config.verify), dataset.manifest, problems)


def _text(dataset: Dataset, problems: Sequence[str], verified: bool) -> str:
    manifest = dataset.manifest
    total_bytes = sum(s.bytes for s in manifest.shards)
    lines = [
        f"data set      {dataset.uri}",
        f"hash          {manifest.hash}",
        f"from          {', '.join(f'{k} {manifest.source[k]}' for k in _SHOWN if k in manifest.source)}",
        f"shards        {len(manifest.shards)}, {total_bytes / 1e6:.1f} MB",
        f"pictures      {manifest.rows_in} in = {manifest.rows_written} written + "
        f"{manifest.rows_rejected} rejected; {manifest.labelled_images} of the written are labelled",
        f"objects       {manifest.instances_in} in = {manifest.instances_kept} kept + "
        f"{manifest.instances_rejected} rejected; {manifest.crowds} of the kept are crowds or ignored",
    ]
    if len(dataset):
        lines += ["", *_size_lines(dataset), "", *_histogram_lines(dataset)]
    if manifest.classes:
        lines += ["", *_class_lines(manifest)]
    # What a distillation leaves out is listed in files of its own.
    lost = dataset.rejections() if manifest.rows_rejected or manifest.instances_rejected else ()
    lines += ["", *_rejection_lines(lost)] if lost else []
    lines += _chain_lines(manifest)
    if verified:
        found = [f"  {problem}" for problem in problems[:_MOST_PROBLEMS]]
        more = [f"  and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        verdict = f"verified      {len(problems)} problems" if problems else "verified      everything is as committed"
        lines += ["", verdict, *found, *more]
    return "\n".join(lines)


def _chain_lines(manifest: Manifest) -> list[str]:
    """Where the labels of a pseudo-labelled data set come from."""
    chain = provenance.of_data_set(manifest)
    return [] if chain is None else ["", *provenance.lines(chain)]


def _size_lines(dataset: Dataset) -> list[str]:
    heights, widths = dataset.sizes_hw[:, 0], dataset.sizes_hw[:, 1]
    rows = [
        (name, f"{values.min()}", f"{np.median(values):.0f}", f"{values.max()}")
        for name, values in (("height px", heights), ("width px", widths))
    ]
    return _table(("size", "min", "median", "max"), rows)


def _histogram_lines(dataset: Dataset) -> list[str]:
    objects = np.diff(dataset.label_offsets)
    rows = []
    for low, high in _PER_PICTURE:
        count = int(np.count_nonzero((objects >= low) & (objects <= (high if high is not None else objects.max()))))
        name = f"{low}" if low == high else f"{low}-{high}" if high is not None else f"{low}+"
        rows.append((name, str(count), "#" * round(40 * count / len(objects))))
    return _table(("objects a picture", "pictures", ""), rows)


def _class_lines(manifest: Manifest) -> list[str]:
    rows = [
        (str(label), str(c.id), c.name, str(count))
        for label, (c, count) in enumerate(zip(manifest.classes, manifest.class_counts, strict=True))
    ]
    more = [f"and {len(rows) - _MOST_CLASSES} more classes"] if len(rows) > _MOST_CLASSES else []
    return _table(("label", "id", "class", "objects"), rows[:_MOST_CLASSES]) + more


def _rejection_lines(lost: Sequence[rejections.Rejection]) -> list[str]:
    counts = Counter((r.is_row, r.reason) for r in lost)
    rows = []
    for (is_row, reason), count in counts.most_common():
        example = next(r for r in lost if r.is_row == is_row and r.reason is reason)
        where = f" ({example.file_name})" if example.file_name else ""
        rows.append(
            (
                "picture" if is_row else "object",
                reason.value,
                str(count),
                f"{example.field}: {example.value}{where}",
            )
        )
    return _table(("rejected", "reason", "count", "example"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    numeric = [all(row[i].replace(".", "").isdigit() for row in rows) for i in range(len(head))]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]
