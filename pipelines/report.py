"""The run report: one page with AP, training curves, and pictures as annotated and as detected."""

import dataclasses
from collections.abc import Mapping, Sequence

from pipelines.coco_metrics import Metrics
from pipelines.comparison import Predicted, add_comparisons
from pipelines.dataset import Dataset
from pipelines.html import Cell, Page
from pipelines.manifest import Manifest
from pipelines.predictions import PredictionsManifest

_KINDS = ("box", "mask")
_AP_NAMES = ("AP", "AP50", "AP75")
_CURVES = {
    "loss/total": ("Total loss", "loss"),
    "loss/rpn_cls": ("RPN class loss", "loss"),
    "loss/rpn_box": ("RPN box loss", "loss"),
    "loss/cls": ("Class loss", "loss"),
    "loss/box": ("Box loss", "loss"),
    "loss/mask": ("Mask loss", "loss"),
    "learning_rate": ("Learning rate", "learning rate"),
    "pictures_per_s": ("Training speed", "pictures/s"),
    "data_wait_share": ("Share of the time spent waiting for data", "share, 0 to 1"),
}
_NOT_CURVES = frozenset({"step", "epoch"})


class ReportError(ValueError):
    """Runs that cannot stand in one report."""


@dataclasses.dataclass(frozen=True)
class RunReport:
    """One run, as the report shows it.

    Attributes:
        name: Of the run, such as teacher; no two runs of a report share one.
        curves: (step, value) points by metric name, such as loss/total.
        box: COCO metrics of the boxes; None where they were not measured.
        mask: Of the masks.
        data: URI of the data set it was measured on, the same for all runs of a report; empty for none.
        predictions: URI of its predictions on that data set; empty for none.
        facts: Whatever else should be said, value by name.
    """

    name: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    box: Metrics | None
    mask: Metrics | None
    data: str
    predictions: str
    facts: Mapping[str, str]


def save_report(
    title: str,
    runs: Sequence[RunReport],
    out: str,
    intro: str = "",
    seconds: Mapping[str, float] | None = None,
) -> str:
    """Write a page on one run, or on several to compare.

    Args:
        title: Of the page.
        runs: In the order to show; the last is the one whose best and worst pictures are shown.
        out: Path or URI of the HTML file to write.
        intro: A paragraph at the top.
        seconds: Time by stage, in the order of the stages.

    Returns:
        Where the page is.

    Raises:
        ReportError: No runs, two of one name, or measured on different data.
        ValueError: Data or predictions are missing or damaged, or ``out`` cannot be a file.
    """
    dataset, predicted = _open(runs)
    page = Page(title)
    if intro:
        page.paragraph(intro)
    _add_accuracy(page, runs)
    _add_classes(page, runs, dataset.manifest if dataset else None)
    _add_curves(page, runs)
    if dataset is not None and predicted:
        add_comparisons(page, dataset, predicted)
    _add_facts(page, runs)
    if seconds:
        page.section("Time")
        rows: list[list[Cell]] = [[stage, float(value)] for stage, value in seconds.items()]
        rows.append(["total", float(sum(seconds.values()))])
        page.table(["stage", "seconds"], rows, decimals=1, bold={(len(rows) - 1, 1)})
    return page.save(out)


def _open(runs: Sequence[RunReport]) -> tuple[Dataset | None, list[Predicted]]:
    """The data set of all runs, and the runs with predictions on it."""
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise ReportError(f"the report's runs are {names}, wanted one or more with a name each: rename or drop some")
    uris = list(dict.fromkeys(run.data for run in runs if run.data))
    if not uris:
        return None, []
    dataset = Dataset(uris[0])
    for uri in uris[1:]:
        if Manifest.load(uri).hash != dataset.manifest.hash:
            raise ReportError(f"the runs were measured on {uris[0]} and on {uri}, wanted one data set: measure again")
    return dataset, [_predicted(run, dataset) for run in runs if run.predictions]


def _predicted(run: RunReport, dataset: Dataset) -> Predicted:
    """A run's predictions, which must be on this data set."""
    manifest = PredictionsManifest.load(run.predictions)
    known, found = dataset.manifest, [info.name for info in manifest.classes]
    if manifest.dataset != known.hash or len(manifest.shards) != len(known.shards):
        raise ReportError(f"the predictions at {run.predictions} are on other data than {dataset.uri}: predict again")
    if manifest.classes != known.classes:
        raise ReportError(
            f"the predictions at {run.predictions} have the classes {found}, "
            f"{dataset.uri} has {list(known.names)}: report on data of the detector's classes"
        )
    return Predicted(run.name, run.predictions, manifest)


def _percent(value: float) -> float | None:
    """None where nothing was measured or, -1, there was nothing to find."""
    return 100.0 * value if value >= 0 else None


def _measured(runs: Sequence[RunReport]) -> list[str]:
    return [kind for kind in _KINDS if any(getattr(run, kind) is not None for run in runs)]


def _per_class(run: RunReport, kind: str) -> dict[str, float]:
    metrics: Metrics | None = getattr(run, kind)
    return metrics.per_class if metrics else {}


def _best(cells: Mapping[tuple[int, int], Cell]) -> set[tuple[int, int]]:
    """Where the highest number stands; nowhere if all look the same."""
    shown = {at: round(cell, 1) for at, cell in cells.items() if isinstance(cell, float)}
    if len(set(shown.values())) < 2:
        return set()
    return {at for at, value in shown.items() if value == max(shown.values())}


def _add_accuracy(page: Page, runs: Sequence[RunReport]) -> None:
    page.section("Accuracy")
    kinds = _measured(runs)
    if not kinds:
        page.paragraph("No AP was measured.")
        return
    page.paragraph(
        "COCO's average precision in percent: AP is the mean over overlaps (IoU) of 0.50 to 0.95, AP50 and "
        "AP75 are those at 0.50 and at 0.75." + (" The best run of each column is bold." if len(runs) > 1 else "")
    )
    columns = [(kind, name) for kind in kinds for name in _AP_NAMES]
    rows: list[list[Cell]] = [
        [run.name, *(_percent(getattr(getattr(run, kind), name, -1.0)) for kind, name in columns)] for run in runs
    ]
    bold: set[tuple[int, int]] = set()
    for column in range(1, len(columns) + 1):
        bold |= _best({(number, column): row[column] for number, row in enumerate(rows)})
    page.table(["run", *(f"{kind} {name}" for kind, name in columns)], rows, decimals=1, bold=bold)


def _add_classes(page: Page, runs: Sequence[RunReport], manifest: Manifest | None) -> None:
    kinds = _measured(runs)
    columns = [(kind, run, _per_class(run, kind)) for kind in kinds for run in runs]
    names = list(dict.fromkeys(name for _, _, scores in columns for name in scores))
    if not names:
        return
    page.section("AP by class")
    counts = dict(zip(manifest.names, manifest.class_counts, strict=True)) if manifest else {}
    rows: list[list[Cell]] = []
    bold: set[tuple[int, int]] = set()
    for number, name in enumerate(names):
        cells = [_percent(scores.get(name, -1.0)) for _, _, scores in columns]
        rows.append([name, counts.get(name), *cells])
        for first in range(0, len(columns), len(runs)):
            bold |= _best({(number, first + i + 2): cells[first + i] for i in range(len(runs))})
    headers = [f"{kind} AP" + (f", {run.name}" if len(runs) > 1 else "") for kind, run, _ in columns]
    page.table(["class", "objects", *headers], rows, decimals=1, bold=bold)


def _add_curves(page: Page, runs: Sequence[RunReport]) -> None:
    """A chart a metric, with every run in each, so that a run keeps its colour."""
    present = list(dict.fromkeys(name for run in runs for name in run.curves if name not in _NOT_CURVES))
    losses = [name for name in present if name.startswith("loss/")]
    known = [name for name in _CURVES if name in present]
    known += [name for name in (*losses, *present) if name not in _CURVES]
    if not known:
        return
    page.section("Training")
    for name in dict.fromkeys(known):
        title, unit = _CURVES.get(name, (name, name))
        page.line_chart(title, {run.name: run.curves.get(name, ()) for run in runs}, "step", unit)


def _add_facts(page: Page, runs: Sequence[RunReport]) -> None:
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    if names:
        page.section("Runs")
        rows = [[name, *(run.facts.get(name) for run in runs)] for name in names]
        page.table(["", *(run.name for run in runs)], rows)
