"""What a sweep varies: dimensions over settings by their dotted names, and the runs that choices make."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model.config.fit import require_fit
from model.settings import from_dict, to_dict
from pipelines.config import TrainConfig
from pipelines.optim import OptimConfig

_EXPRESSION = re.compile(r"^(?P<name>[\w.]+)=(?P<kind>[a-z]+)\((?P<arguments>.*)\)$", re.DOTALL)
_KINDS = ("uniform", "loguniform", "randint", "choice")
_EXAMPLE = "optim.learning_rate=loguniform(1e-3,1e-1)"


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers between two bounds.

    Attributes:
        name: dotted name of the setting.
        low: smallest value.
        high: largest value; of integers the largest but one.
        log: drawn evenly on a logarithmic scale.
        whole: integers.
    """

    name: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self.name} is searched from {self.low} to {self.high}, wanted a smaller and a larger")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.name} is searched from {self.low} on a logarithmic scale, wanted > 0")

    def settings(self, choice: Any) -> dict[str, Any]:
        """What a choice sets."""
        return {self.name: choice}

    def ends(self) -> tuple[Any, ...]:
        """Choices that stand for all when they are checked."""
        return (int(self.low), int(self.high) - 1) if self.whole else (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Options:
    """A few values of one setting.

    Attributes:
        name: dotted name of the setting.
        values: to choose from.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Check that there is a choice."""
        if not self.values:
            raise ValueError(f"{self.name} has no values to choose from: give some")

    def settings(self, choice: Any) -> dict[str, Any]:
        """What a choice sets."""
        return {self.name: choice}

    def ends(self) -> tuple[Any, ...]:
        """All choices."""
        return self.values


@dataclasses.dataclass(frozen=True)
class Variants:
    """Named groups of settings that belong together, such as a schedule.

    Attributes:
        name: of the dimension.
        groups: settings by dotted name, of each variant by its name.
    """

    name: str
    groups: Mapping[str, Mapping[str, Any]]

    def settings(self, choice: Any) -> dict[str, Any]:
        """What a choice sets."""
        return dict(self.groups[choice])

    def ends(self) -> tuple[Any, ...]:
        """All choices."""
        return tuple(self.groups)


Dimension = Range | Options | Variants


def parse_dimension(text: str) -> Dimension:
    """A dimension from the command line: NAME=uniform(a,b), loguniform(a,b), randint(a,b) or choice(x,y,...).

    Raises:
        ValueError: another form, or bounds that are none.
    """
    match = _EXPRESSION.match(text.strip())
    if not match or match["kind"] not in _KINDS:
        raise ValueError(f"cannot read {text!r}: search by NAME=KIND(...), KIND one of {', '.join(_KINDS)}: {_EXAMPLE}")
    values = tuple(_value(part) for part in _split(match["arguments"]))
    if match["kind"] == "choice":
        return Options(match["name"], values)
    if len(values) != 2 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError(f"cannot read {text!r}: {match['kind']} takes two numbers, such as {_EXAMPLE}")
    return Range(match["name"], values[0], values[1], match["kind"] == "loguniform", match["kind"] == "randint")


def parse_setting(text: str) -> tuple[str, Any]:
    """A setting from the command line, NAME=VALUE.

    Raises:
        ValueError: another form.
    """
    name, separator, value = text.partition("=")
    if not separator or not re.fullmatch(r"[\w.]+", name):
        raise ValueError(f"cannot read {text!r}: set by NAME=VALUE, such as optim.steps=400")
    return name, _value(value)


def _value(text: str) -> Any:
    """JSON where it is, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _split(text: str) -> list[str]:
    """Arguments at the commas outside brackets."""
    return [part for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def with_settings(base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The run with settings by dotted names, all set before any range is checked.

    A number of steps takes the place of a length in epochs.

    Raises:
        KeyError: a name that is not a setting.
        TypeError: a value of another type.
        ValueError: a value out of range, or settings that do not go together.
    """
    values = to_dict(base)
    for path, value in {**_counted_in_steps(base.optim, settings), **settings}.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            found = place.get(parent)
            if not isinstance(found, dict):
                raise KeyError(f"there is no setting {path!r}: {parent!r} is none of {', '.join(place)}")
            place = found
        if last not in place:
            raise KeyError(f"there is no setting {path!r}: {last!r} is none of {', '.join(place)}")
        place[last] = value
    return from_dict(TrainConfig, values)


def _counted_in_steps(optim: OptimConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be set beside a number of steps, so that epochs do not hide it; milestones keep their shares."""
    steps = settings.get("optim.steps")
    if steps is None:
        return {}
    if settings.get("optim.epochs"):
        raise ValueError("optim.steps and optim.epochs are both set: a run has one length, give one of them")
    if not optim.epochs or not isinstance(steps, int):
        return {}
    return {
        "optim.epochs": 0,
        "optim.milestones": [round(epoch / optim.epochs * steps) for epoch in optim.milestones],
    }


def chosen_settings(dimensions: Sequence[Dimension], choices: Mapping[str, Any]) -> dict[str, Any]:
    """What the choices of all dimensions set, by dotted name."""
    settings: dict[str, Any] = {}
    for dimension in dimensions:
        settings.update(dimension.settings(choices[dimension.name]))
    return settings


def variants(base: TrainConfig, dimensions: Sequence[Dimension]) -> Iterator[tuple[str, TrainConfig]]:
    """Every choice of every dimension once, the others at their first: NAME=CHOICE and the run.

    Raises:
        ValueError: a choice that no run can have.
    """
    first = {dimension.name: dimension.ends()[0] for dimension in dimensions}
    for dimension in dimensions:
        for choice in dimension.ends():
            try:
                run = with_settings(base, chosen_settings(dimensions, {**first, dimension.name: choice}))
                require_fit(run.detector)
            except (ValueError, TypeError, KeyError) as error:
                reason = error.args[0] if error.args else error
                raise ValueError(f"{dimension.name}={choice} cannot be run: {reason}") from error
            yield f"{dimension.name}={choice}", run


def check(base: TrainConfig, dimensions: Sequence[Dimension]) -> None:
    """Refuse a sweep with a value that no run can have, before the first trial.

    Raises:
        ValueError: no dimensions, two of one name, or a value that does not fit.
    """
    if not dimensions:
        raise ValueError(f"a sweep needs something to vary: name one (`maskray list sweeps`), or --search {_EXAMPLE}")
    names = [dimension.name for dimension in dimensions]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))} is varied twice: search each setting once")
    for _ in variants(base, dimensions):
        pass
