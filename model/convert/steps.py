"""What a framework's order of classes and anchors asks of a layer's rows: named steps that can be undone exactly.

Every step works on weights [rows, ...] and biases [rows] alike. What ours has no place for is handed out as a
remainder; without it, the way back puts zeros there, which no framework reads.
"""

import dataclasses
import enum
import re
from typing import Protocol

import torch
from torch import Tensor


class Layer(enum.Enum):
    """The layers whose rows stand for classes or anchors, by the name of their parameters."""

    SCORES = r"roi\.box_heads?\.(\d\.)?scores\.(weight|bias)"
    DELTAS = r"roi\.box_heads?\.(\d\.)?deltas\.(weight|bias)"
    MASK_LOGITS = r"roi\.mask_heads?\.(\d\.)?logits\.(weight|bias)"
    OBJECTNESS = r"rpn\.head\.objectness\.(weight|bias)"
    RPN_DELTAS = r"rpn\.head\.deltas\.(weight|bias)"


def layer_of(name: str) -> Layer | None:
    """The layer that a parameter of ours belongs to, None for all others."""
    return next((layer for layer in Layer if re.fullmatch(layer.value, name)), None)


class Step(Protocol):
    """A change of a layer's rows between another framework and ours."""

    @property
    def done(self) -> str:
        """What the report says of it."""

    def to_ours(self, rows: Tensor, slots: int) -> tuple[Tensor, Tensor | None]:
        """Our rows, and what of theirs has no place in ours.

        Args:
            rows: their weight or bias.
            slots: classes of theirs with the background (the rows of the scores).
        """

    def to_theirs(self, rows: Tensor, slots: int, remainder: Tensor | None) -> Tensor:
        """The inverse; zeros stand for a remainder that is not there."""


@dataclasses.dataclass(frozen=True)
class BackgroundLast:
    """The background's row moves from the first place to the last."""

    done = "background moved from first to last"

    def to_ours(self, rows: Tensor, slots: int) -> tuple[Tensor, Tensor | None]:
        """See `Step`."""
        return torch.cat([rows[1:], rows[:1]]), None

    def to_theirs(self, rows: Tensor, slots: int, remainder: Tensor | None) -> Tensor:
        """See `Step`."""
        return torch.cat([rows[-1:], rows[:-1]])


BACKGROUND_LAST = BackgroundLast()


@dataclasses.dataclass(frozen=True)
class WithoutBackground:
    """The background's rows, the first, go; a layer that serves all classes alike has none.

    Attributes:
        rows: rows of a class.
    """

    rows: int

    @property
    def done(self) -> str:
        """What the report says of it."""
        return f"{self.rows} unused background row{'s' * (self.rows > 1)} left out"

    def to_ours(self, rows: Tensor, slots: int) -> tuple[Tensor, Tensor | None]:
        """See `Step`."""
        if len(rows) != self.rows * slots:
            return rows, None
        return rows[self.rows :], rows[: self.rows]

    def to_theirs(self, rows: Tensor, slots: int, remainder: Tensor | None) -> Tensor:
        """See `Step`."""
        if len(rows) != self.rows * (slots - 1):
            return rows
        unused = rows.new_zeros(rows[: self.rows].shape) if remainder is None else remainder
        return torch.cat([unused, rows])


@dataclasses.dataclass(frozen=True)
class AnchorsByRatio:
    """The anchors of a cell, ordered by size and then ratio, become ordered by ratio and then size.

    Attributes:
        rows: rows of an anchor.
        ratios: aspect ratios of a cell.
    """

    rows: int
    ratios: int = 3
    done = "anchors reordered from size-major to ratio-major"

    def to_ours(self, rows: Tensor, slots: int) -> tuple[Tensor, Tensor | None]:
        """See `Step`."""
        return self._swapped(rows, (-1, self.ratios)), None

    def to_theirs(self, rows: Tensor, slots: int, remainder: Tensor | None) -> Tensor:
        """See `Step`."""
        return self._swapped(rows, (self.ratios, -1))

    def _swapped(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        if len(rows) % (self.rows * self.ratios):
            raise ValueError(
                f"the region proposal head has {len(rows)} rows of {self.rows} an anchor, wanted a multiple of "
                f"{self.ratios} anchors (one for each aspect ratio): only detectors with three ratios can be read"
            )
        return rows.reshape(*grid, self.rows, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)
