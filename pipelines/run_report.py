"""The report command: one page on a training run, from its tracking and its evaluation."""

import dataclasses

from pipelines import evaluate, run_file, storage
from pipelines.loop import METRICS
from pipelines.report import RunReport, save_report
from pipelines.tracking import Tracker


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page on a training run: curves, AP by class, best and worst pictures.

    Attributes:
        run: folder or URI of the run, as given to `maskray train --out`.
        evaluation: what `maskray evaluate` made of its checkpoint; empty takes the one that `train --val` made.
        out: the page; empty writes report.html into the run's folder.
    """

    run: str
    evaluation: str = ""
    out: str = ""


def load_run(run: str, name: str, evaluation: str) -> RunReport:
    """A run with its curves and, where `evaluation` is not empty, what was measured.

    Raises:
        ValueError: no run or no evaluation there.
    """
    uri, run_id = run_file.tracking_of(run)
    tracker = Tracker(uri, run_id, name)
    found = evaluate.load(evaluation) if evaluation else evaluate.Evaluation(None, None)
    facts = {"run": run, "MLflow run": run_id}
    curves = {curve: tracker.history(curve) for curve in _curves(tracker.metric_names())}
    return RunReport(name, curves, found.box, found.mask, found.data, found.predictions, facts)


def _curves(names: list[str]) -> list[str]:
    """The loop's metrics in its order, and the losses of this detector after the total."""
    losses = [name for name in names if name.startswith("loss/") and name not in METRICS]
    return [METRICS[0], *losses, *METRICS[1:]]


def run(config: ReportConfig) -> str:
    """Write the page; where it is.

    Raises:
        ValueError: no run or no evaluation there.
    """
    place = storage.canonical_uri(config.run)
    name = storage.name_of(place)
    evaluation = config.evaluation
    if not evaluation:
        own = storage.child_uri(place, "evaluation")
        evaluation = own if storage.is_folder(*storage.open_uri(own)) else ""
    return save_report(name, [load_run(place, name, evaluation)], config.out or storage.child_uri(place, "report.html"))
