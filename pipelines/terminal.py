"""What commands have in common: arguments from a config dataclass, and text on the terminal."""

import sys
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def parse(
    kind: type[T], arguments: Sequence[str], command: str, default: T | None = None, positional: bool = False
) -> T:
    """The config of a command line; `positional` takes its required fields without their names."""
    import tyro

    parsed: T = tyro.cli(
        kind,
        args=list(arguments),
        prog=f"maskray {command}",
        default=default,
        config=(tyro.conf.EnumChoicesFromValues, *([tyro.conf.PositionalRequiredArgs] if positional else [])),
    )
    return parsed


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows below their headers in columns as wide as they need."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def show(text: str) -> None:
    """Print a line of results."""
    print(text)


def write(text: str) -> None:
    """Print text as it comes, without a line of its own."""
    sys.stdout.write(text)
    sys.stdout.flush()
