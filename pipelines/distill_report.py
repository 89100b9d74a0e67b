"""The report on a pseudo-labelled data set: report.json beside its shards, and a page with contact sheets."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import audit, commit, provenance, storage
from pipelines.dataset import Dataset
from pipelines.decode import DecodeError
from pipelines.gallery import draw_instances, load_shown
from pipelines.html import Cell, Page
from pipelines.leakage import Leak
from pipelines.pseudo_labels import Shown
from pipelines.selection import ClassSelection

FILE_NAME, PAGE_NAME = "report.json", "report.html"
_TITLES = {
    "best": "The best labels",
    "nearest": "Labels nearest their threshold",
    "disputed": "Labels that the views agree on least",
}
_PICTURES = {
    "labelled": "with pseudo-labels",
    "empty": "kept without an object",
    "nothing_kept": "left out: no detection was kept",
    "leaked": "left out: labelled or validation pictures",
    "unseen": "left out: the detector could not look at them",
}
_DETECTIONS = {
    "label": "became labels",
    "uncertain": "became ignored regions",
    "below_threshold": "below their threshold",
    "no_pixel": "without a pixel",
    "nothing_kept": "uncertain ones of pictures left out",
    "leaked": "on labelled or validation pictures",
}


@dataclasses.dataclass(frozen=True)
class Account:
    """What was done to the pool.

    Attributes:
        selection: one row a class.
        pictures: of the pool by what became of them; they add up to all of it.
        detections: on the pool by what became of them; they add up to all of them.
        sizes: labels a class by mask area: below 32 x 32, below 96 x 96, larger.
        full: pictures with as many detections as the detector gives at most: there may be more objects.
        leak: labelled and validation pictures that were left out.
        held_out: labelled pictures that the teacher held out, and the labelled rate leaves out.
        histograms: detections a class by score, ten bins from 0 to 1.
    """

    selection: tuple[ClassSelection, ...]
    pictures: Mapping[str, int]
    detections: Mapping[str, int]
    sizes: Sequence[Sequence[int]]
    full: int
    leak: Leak
    held_out: int
    histograms: Sequence[Sequence[int]]


def write(out: str, account: Account, sheets: Mapping[str, Sequence[Shown]], times: tuple[float, float]) -> str:
    """Write report.json, the same bytes of the same inputs, and timing.json beside it; the report's sha256.

    Args:
        out: URI of the data set.
        account: of the pool.
        sheets: pictures to show by name of the sheet.
        times: when the work began and ended, seconds since 1970.
    """
    body = {
        **dataclasses.asdict(account),
        "selection": [row._asdict() for row in account.selection],
        "sheets": sheets,
        "versions": provenance.versions(),
    }
    data = json.dumps(body, indent=1, sort_keys=True).encode()
    filesystem, folder = storage.open_uri(out)
    commit.write_file(filesystem, storage.join(folder, FILE_NAME), data)
    timing = json.dumps({"started": times[0], "finished": times[1]}).encode()
    commit.write_file(filesystem, storage.join(folder, "timing.json"), timing)
    return commit.sha256_of(data)


def save_page(out: str) -> str:
    """Draw report.html from report.json, the data set and, if there is one, its audit; where it is.

    Raises:
        ValueError: the data set or its report is missing or damaged.
    """
    dataset = Dataset(out)
    filesystem, folder = storage.open_uri(out)
    body = json.loads(storage.read_bytes(filesystem, storage.join(folder, FILE_NAME)))
    page = Page(f"Pseudo-labels {out.rsplit('/', 1)[-1]}")
    rows = [ClassSelection(**row) for row in body["selection"]]
    _add_account(page, body)
    _add_classes(page, rows, body)
    found = audit.load(out)
    if found is not None:
        _add_audit(page, found)
    for name, title in _TITLES.items():
        _add_sheet(page, title, dataset, [Shown(*one) for one in body["sheets"][name]])
    chain = provenance.of_data_set(dataset.manifest)
    if chain is not None:
        page.section("Where the labels come from")
        for line in provenance.lines(chain):
            page.paragraph(line)
    return page.save(storage.child_uri(out, PAGE_NAME))


def _add_account(page: Page, body: Mapping[str, Any]) -> None:
    page.section("Pictures of the pool")
    rows: list[list[Cell]] = [[_PICTURES[name], count] for name, count in body["pictures"].items()]
    rows.append(["all", sum(body["pictures"].values())])
    page.table(["", "pictures"], rows, bold={(len(rows) - 1, 1)})
    page.paragraph(
        "Detections: "
        + ", ".join(f"{count} {_DETECTIONS.get(name, name)}" for name, count in body["detections"].items())
    )
    if body["full"]:
        page.paragraph(
            f"{body['full']} pictures have as many detections as the detector gives at most: objects may be missing "
            "there, and the rule's threshold may be too low."
        )
    if body["leak"]["count"]:
        page.paragraph(f"Left out as known: such as {', '.join(body['leak']['examples'])}.")


def _add_classes(page: Page, rows: Sequence[ClassSelection], body: Mapping[str, Any]) -> None:
    page.section("Classes")
    page.paragraph(
        "As many labels a picture are wanted as people annotated; the rule's threshold is the score of the last of "
        "them, and the threshold used is kept within the floor and the cap. Detections below it that are still likely "
        "are uncertain: the student learns nothing from their regions."
    )
    headers = ["class", "labels a picture", "wanted", "found", "kept", "kept a picture", "uncertain",
               "rule's threshold", "threshold", ""]  # fmt: skip
    pool = max(1, sum(body["pictures"].values()))
    cells: list[list[Cell]] = [
        [
            row.name, row.labelled_rate, row.wanted, row.found, row.kept, row.kept / pool, row.uncertain,
            None if row.rule_threshold > 1 else row.rule_threshold, row.threshold,
            f"only {row.labelled} human labels: unsure" if row.few_labels else "",
        ]
        for row in rows
    ]  # fmt: skip
    page.table(headers, cells)
    page.section("Labels by mask area")
    sizes = ["class", "small (below 32 x 32 px)", "medium (below 96 x 96)", "large"]
    page.table(sizes, [[row.name, *counts] for row, counts in zip(rows, body["sizes"], strict=True)])
    page.section("Detections by score")
    bins = [f"{low / 10:.1f}" for low in range(10)]
    page.table(["class", *bins], [[row.name, *counts] for row, counts in zip(rows, body["histograms"], strict=True)])


def _add_audit(page: Page, found: audit.Audit) -> None:
    page.section("Audit on pictures the teacher held out")
    page.paragraph(
        f"{found.pictures} labelled pictures that the teacher never saw were labelled at the thresholds above, which "
        "were fixed before. A label is right where its mask overlaps an object of its class by half or more (IoU)."
    )
    headers = ["class", "objects", "labels", "precision", "recall", "mean mask IoU", "missed but ignored"]
    page.table(headers, [list(row) for row in audit.table(found)], bold={(len(found.classes), n) for n in range(7)})


def _add_sheet(page: Page, title: str, dataset: Dataset, shown: Sequence[Shown]) -> None:
    if not shown:
        return
    page.section(title)
    first = [0, *dataset.rows_per_shard.cumsum().tolist()]
    for one in shown:
        record = dataset.record(first[one.shard] + one.row)
        chosen = next(i for i in record.instances if i.id == one.instance)
        name = dataset.manifest.names[chosen.label]
        try:
            picture = draw_instances(load_shown(record), [chosen], dataset.manifest.names, every_score=True)
        except DecodeError as error:
            page.paragraph(f"{record.file_name} cannot be shown: {error}")
            continue
        page.picture(picture, f"{name} {chosen.score:.3f}, {record.file_name}")
