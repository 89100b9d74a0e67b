"""Whole state dicts between the other frameworks and ours, by their tables and steps; every key is accounted for."""

import dataclasses
import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from model.convert import detectron2, mmdetection, torchvision
from model.convert.names import Table
from model.convert.steps import Layer, Step, layer_of

COUNTER = "num_batches_tracked"


class Framework(enum.Enum):
    """Whose names and orders a state dict follows."""

    TORCHVISION = "torchvision"
    DETECTRON2 = "detectron2"
    MMDETECTION = "mmdet"


class _Names(Protocol):
    def table_to_read(self, names: Collection[str]) -> Table: ...

    def table_to_write(self, names: Collection[str]) -> Table: ...


_NAMES: dict[Framework, _Names] = {
    Framework.TORCHVISION: torchvision,
    Framework.DETECTRON2: detectron2,
    Framework.MMDETECTION: mmdetection,
}
_STEPS: dict[Framework, dict[Layer, Step]] = {
    Framework.TORCHVISION: torchvision.STEPS,
    Framework.DETECTRON2: detectron2.STEPS,
    Framework.MMDETECTION: {},
}


@dataclasses.dataclass(frozen=True)
class Use:
    """Where one of their keys went.

    Attributes:
        theirs: their name.
        ours: our name.
        done: what happened to its values; empty where they are as they were.
    """

    theirs: str
    ours: str
    done: str


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Their state dict as ours, with the account of every key.

    Attributes:
        state: our state dict.
        uses: every key that was used.
        dropped: keys that ours has no need of, with the reason.
        leftover: keys that no rule knows.
        remainder: rows of theirs that ours has no place for, by their name; `to_theirs` puts them back.
    """

    state: dict[str, Tensor]
    uses: tuple[Use, ...]
    dropped: dict[str, str]
    leftover: tuple[str, ...]
    remainder: dict[str, Tensor]


def identify(names: Collection[str]) -> Framework:
    """The framework whose table knows most of these names.

    Raises:
        ValueError: none knows half of them.
    """
    known = {
        framework: sum(table.ours(name) is not None for name in names)
        for framework, table in ((f, _NAMES[f].table_to_read(names)) for f in Framework)
    }
    best = max(known, key=lambda framework: known[framework])
    if known[best] * 2 < len(names) or not names:
        counts = ", ".join(f"{framework.value} {number}" for framework, number in known.items())
        example = next(iter(names), "nothing")
        raise ValueError(
            f"the {len(names)} names, such as {example!r}, are not those of a detector of torchvision, Detectron2 or "
            f"MMDetection (names known to each: {counts}): give the weights of a whole detector"
        )
    return best


def convert(state: Mapping[str, Tensor], framework: Framework, *, background_first: bool = False) -> Conversion:
    """Their state dict under our names and in our order.

    Args:
        state: their state dict.
        framework: whose.
        background_first: weights of MMDetection 1.x.

    Raises:
        ValueError: two keys mean the same parameter, there are no class scores, or a shape is impossible.
    """
    table = _NAMES[framework].table_to_read(state)
    steps = mmdetection.VERSION_1_STEPS if background_first else _STEPS[framework]
    why_dropped = detectron2.DROPPED if framework is Framework.DETECTRON2 else {}
    renamed: dict[str, str] = {}
    dropped, leftover = {}, []
    for name in state:
        ours = table.ours(name)
        if ours is not None and ours in renamed:
            raise ValueError(f"both {renamed[ours]!r} and {name!r} stand for {ours}: remove one of them from the file")
        if ours is not None:
            renamed[ours] = name
        elif name in why_dropped:
            dropped[name] = why_dropped[name]
        else:
            leftover.append(name)
    slots = _slots({ours: state[name] for ours, name in renamed.items()})
    converted, uses, remainder = {}, [], {}
    for ours, name in renamed.items():
        layer = layer_of(ours)
        step = steps.get(layer) if layer else None
        converted[ours], rest = step.to_ours(state[name], slots) if step else (state[name], None)
        if rest is not None:
            remainder[name] = rest
        uses.append(Use(name, ours, step.done if step else ""))
    return Conversion(converted, tuple(uses), dropped, tuple(leftover), remainder)


def _slots(state: Mapping[str, Tensor]) -> int:
    """Classes with the background, from the rows of the first class scores."""
    for name, value in state.items():
        if layer_of(name) is Layer.SCORES and value.ndim > 0:
            return len(value)
    raise ValueError("the weights have no class scores: give those of a whole detector, not of a backbone")


def to_theirs(
    state: Mapping[str, Tensor], framework: Framework, remainder: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The exact inverse of `convert`.

    Args:
        state: our state dict.
        framework: whose names and order to write.
        remainder: what has no place in ours, by their name: unused rows, counters of constant norms; zeros without it.

    Raises:
        ValueError: a parameter that the framework does not have.
    """
    names = peer_names(state, framework)
    slots = _slots(state)
    found: dict[str, Tensor] = {}
    for ours, value in state.items():
        layer = layer_of(ours)
        step = _STEPS[framework].get(layer) if layer else None
        rest = (remainder or {}).get(names[ours])
        found[names[ours]] = step.to_theirs(value, slots, rest) if step else value
    if framework is Framework.MMDETECTION:
        # Its norms count batches even where all is frozen.
        statistics = [name for name in found if name.endswith(".running_mean")]
        for name in (name.removesuffix("running_mean") + COUNTER for name in statistics):
            found.setdefault(name, (remainder or {}).get(name, torch.zeros((), dtype=torch.int64)))
    return found


def peer_names(names: Iterable[str], framework: Framework) -> dict[str, str]:
    """Their name of each of our parameters.

    Raises:
        ValueError: a parameter that the framework does not have.
    """
    names = list(names)
    table = _NAMES[framework].table_to_write(names)
    found: dict[str, str] = {}
    for ours in names:
        theirs = table.theirs(ours)
        if theirs is None:
            raise ValueError(
                f"{framework.value} has no parameter like {ours}: its detectors lack this part, export to another one"
            )
        found[ours] = theirs
    return found


def fit_counters(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The state with the norms' batch counters that `wanted` names, from zero where missing, and no others."""
    fitted = {name: value for name, value in state.items() if not name.endswith(COUNTER) or name in wanted}
    for name in wanted:
        if name.endswith(COUNTER):
            fitted.setdefault(name, torch.zeros((), dtype=torch.int64))
    return fitted
