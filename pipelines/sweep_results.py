"""What came of a sweep: trials in order, the best run as a file for `maskray train --config`, and one page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model.settings import to_dict
from pipelines import commit, storage
from pipelines.html import Page
from pipelines.sweep_history import Point, load_choices, load_history
from pipelines.sweep_trial import Plan, trial_config


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        id: its name.
        run: folder or URI of its last run.
        choices: by dimension.
        points: its measured checkpoints, in order; none where it failed before the first.
        error: why it failed, or empty.
    """

    id: str
    run: str
    choices: Mapping[str, Any]
    points: tuple[Point, ...]
    error: str

    @property
    def value(self) -> float | None:
        """The metric at its last checkpoint."""
        return self.points[-1].value if self.points else None

    @property
    def is_whole(self) -> bool:
        """Whether it was trained to its own end; else it was stopped early, or failed."""
        return bool(self.points) and self.points[-1].is_last


class SweepResult(NamedTuple):
    """What came of a sweep.

    Attributes:
        trials: best first, those without a value last.
        best: URI of the best run's settings, for `maskray train --config`; empty where every trial failed.
        page: URI of the HTML page.
    """

    trials: tuple[Trial, ...]
    best: str
    page: str


def load_trial(trial_id: str, run: str, choices: Mapping[str, Any], error: str) -> Trial:
    """A trial with what it left in its folder."""
    return Trial(trial_id, run, load_choices(run) or choices, tuple(load_history(run)), error)


def best_first(trials: Sequence[Trial], mode: str) -> tuple[Trial, ...]:
    """Trials by their last value: first those that reached their own last step, then others, failed ones last.

    A trial that was stopped half way is not the best run: trained to its end it might be better, or worse.
    """
    sign = -1 if mode == "max" else 1
    return tuple(sorted(trials, key=lambda t: (t.value is None, not t.is_whole, sign * (t.value or 0.0), t.id)))


def finish(out: str, plan: Plan, mode: str, trials: Sequence[Trial]) -> SweepResult:
    """Write the best run's settings and the page of a sweep.

    Args:
        out: folder or URI of the sweep.
        plan: of the sweep.
        mode: max or min.
        trials: in any order.
    """
    ordered = best_first(trials, mode)
    place = storage.canonical_uri(out)
    best = ""
    if ordered and ordered[0].value is not None:
        best = storage.child_uri(place, "best.json")
        config = trial_config(plan, ordered[0].choices, ordered[0].id)
        values = to_dict(dataclasses.replace(config, out=""))
        commit.write_file(storage.open_uri(best)[0], storage.open_uri(best)[1], json.dumps(values, indent=1).encode())
    return SweepResult(ordered, best, _page(place, plan, ordered))


def _page(place: str, plan: Plan, trials: Sequence[Trial]) -> str:
    page = Page(f"Sweep {storage.name_of(place)}")
    whole = sum(trial.is_whole for trial in trials)
    page.paragraph(
        f"{len(trials)} trials, ordered by {plan.metric} at their last checkpoint; the {whole} that reached their own "
        "last step come before those that were stopped early."
    )
    names = [dimension.name for dimension in plan.dimensions]
    rows: list[list[str | float | int | None]] = [
        [trial.id, trial.value, trial.points[-1].samples if trial.points else None, "" if trial.is_whole else "early",
         *(_plain(trial.choices.get(name)) for name in names), trial.error]
        for trial in trials
    ]  # fmt: skip
    page.table(["trial", plan.metric, "pictures", "ended", *names, "failed"], rows, decimals=5)
    page.section("Settings, outcome and learning")
    shown = [trial for trial in trials if trial.value is not None]
    lines = {trial.id: [*(_plain(trial.choices.get(name)) for name in names), trial.value or 0.0] for trial in shown}
    page.parallel_coordinates("One line a trial", [*names, plan.metric], lines)
    curves = {trial.id: [(float(point.samples), point.value) for point in trial.points] for trial in shown}
    page.line_chart(plan.metric, curves, "pictures seen", plan.metric)
    return page.save(storage.child_uri(place, "report.html"))


def _plain(value: Any) -> str | float | int:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value).strip('"')
