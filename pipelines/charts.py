"""Line charts as inline SVG: no script, no font, no request; colours come from the page's style sheet."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

Point = tuple[float, float]

NUM_COLOURS = 8
_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 12, 44
_MOST_POINTS = 300


class _Axis(NamedTuple):
    """A linear map from values to drawing units."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart_svg(title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """A chart of some series, with axes, ticks, hover titles and a legend.

    Args:
        title: Shown above, and read aloud by screen readers.
        series: (x, y) points by name, in drawing order; a point that is not finite breaks the line.
        x_label: With the unit.
        y_label: With the unit.

    Returns:
        A ``figure`` element; it says so where there is no finite point.
    """
    shown = {name: _thinned(points) for name, points in series.items()}
    finite = [point for points in shown.values() for point in points if _is_finite(point)]
    caption = f"<figcaption>{escape(title)}</figcaption>"
    if not finite:
        return f'<figure class="chart">{caption}<p class="empty">No values yet.</p></figure>'
    x_ticks, y_ticks = _ticks([x for x, _ in finite]), _ticks([y for _, y in finite])
    x_low, x_high = _span([x for x, _ in finite])
    x_axis = _Axis(x_low, x_high, _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    inner = [_grid(x_axis, y_axis, [x for x in x_ticks if x_low <= x <= x_high], y_ticks)]
    inner.append(f'<text class="axis" x="{(_LEFT + _WIDTH) // 2}" y="{_HEIGHT - 6}">{escape(x_label)}</text>')
    middle = (_TOP + _HEIGHT - _BOTTOM) // 2
    inner.append(f'<text class="axis" transform="rotate(-90)" x="{-middle}" y="14">{escape(y_label)}</text>')
    for number, (name, points) in enumerate(shown.items()):
        inner.append(_line(name, points, x_axis, y_axis, number))
    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
    return f'<figure class="chart">{caption}<svg {view}>{"".join(inner)}</svg>{_legend(series)}</figure>'


def parallel_coordinates_svg(title: str, axes: Sequence[str], lines: Mapping[str, Sequence[float | str]]) -> str:
    """A chart of many things by several properties: an upright axis a property, a line a thing.

    Args:
        title: Shown above, and read aloud by screen readers.
        axes: Names, from left to right.
        lines: Values by the name of the thing, one an axis; text stands at places of its own.

    Returns:
        A ``figure`` element; it says so where there is no line.
    """
    caption = f"<figcaption>{escape(title)}</figcaption>"
    if not lines:
        return f'<figure class="chart">{caption}<p class="empty">No values yet.</p></figure>'
    gap = (_WIDTH - _LEFT - _RIGHT) / max(len(axes) - 1, 1)
    heights, inner = [], []
    for number, name in enumerate(axes):
        x = _LEFT + number * gap
        marks = _marks([values[number] for values in lines.values()])
        heights.append(marks)
        inner.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        below = _HEIGHT - _BOTTOM + (17 if number % 2 == 0 else 34)  # in turn, so that long names have room
        inner.append(f'<text class="x" x="{x:.1f}" y="{below}">{escape(name.rsplit(".", 1)[-1])}</text>')
        ends = sorted(set(marks.items()), key=lambda mark: mark[1])
        shown = ends if isinstance(ends[0][0], str) else [ends[0], ends[-1]]
        for value, y in dict(shown).items():
            text = value if isinstance(value, str) else f"{value:.3g}"
            inner.append(f'<text class="y" x="{x - 4:.1f}" y="{y:.1f}" dy="4">{escape(text)}</text>')
    for number, (name, values) in enumerate(lines.items()):
        places = [(_LEFT + at * gap, heights[at][value]) for at, value in enumerate(values)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        tip = escape(f"{name}: " + ", ".join(f"{axis} {value}" for axis, value in zip(axes, values, strict=True)))
        inner.append(f'<g class="{_colour(number)}"><path d="{path}"><title>{tip}</title></path></g>')
    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"'
    return f'<figure class="chart">{caption}<svg {view}>{"".join(inner)}</svg></figure>'


def _marks(values: Sequence[float | str]) -> dict[float | str, float]:
    """Where each value stands on an upright axis; on equal distances where there is text among them."""
    low, high = float(_HEIGHT - _BOTTOM), float(_TOP)
    if any(isinstance(value, str) for value in values):
        named = sorted(set(values), key=str)
        return {value: low + (high - low) * (at + 1) / (len(named) + 1) for at, value in enumerate(named)}
    numbers = [float(value) for value in values]
    axis = _Axis(*_span(numbers), low, high)
    return {value: axis.at(float(value)) for value in values}


def _line(name: str, points: Sequence[Point], x_axis: _Axis, y_axis: _Axis, number: int) -> str:
    """Line pieces between the gaps, and a dot with a hover title a point."""
    pieces, dots, pen_down = [], [], False
    for point in points:
        if not _is_finite(point):
            pen_down = False
            continue
        x, y = f"{x_axis.at(point[0]):.1f}", f"{y_axis.at(point[1]):.1f}"
        pieces.append(f"{'L' if pen_down else 'M'}{x} {y}")
        pen_down = True
        tip = escape(f"{name}: {point[1]:.4g} at {point[0]:g}")
        dots.append(f'<circle cx="{x}" cy="{y}" r="5"><title>{tip}</title></circle>')
    few = " few" if len(dots) <= 40 else ""
    return f'<g class="{_colour(number)}{few}"><path d="{"".join(pieces)}"/>{"".join(dots)}</g>'


def _colour(number: int) -> str:
    """Class names of the page's style sheet: the colours in turn, dashed from the second round on."""
    return f"c{number % NUM_COLOURS}" + (" dashed" if number >= NUM_COLOURS else "")


def _legend(series: Mapping[str, Sequence[Point]]) -> str:
    """Names with the last value, so that the chart can be read without hovering."""
    entries = []
    for number, (name, points) in enumerate(series.items()):
        last = next((y for x, y in reversed(points) if _is_finite((x, y))), None)
        value = "no values" if last is None else f"{last:.4g}"
        entries.append(f'<li class="{_colour(number)}">{escape(name)} <b>{value}</b></li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _grid(x_axis: _Axis, y_axis: _Axis, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    parts = []
    for value in y_ticks:
        y = f"{y_axis.at(value):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 6}" y="{y}" dy="4">{value:g}</text>')
    for value in x_ticks:
        x = f"{x_axis.at(value):.1f}"
        parts.append(f'<path class="grid" d="M{x} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="x" x="{x}" y="{_HEIGHT - _BOTTOM + 17}">{value:g}</text>')
    return "".join(parts)


def _span(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    if high > low:
        return low, high
    room = abs(low) * 0.5 or 1.0
    return low - room, high + room


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers whose first and last enclose the values."""
    low, high = _span(values)
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded, so that 3 * 0.1 is written 0.3; the digits follow from the step.
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Every n-th point of a long series and its last, so that a long run stays a small page."""
    stride = max(1, math.ceil(len(points) / _MOST_POINTS))
    kept = list(points[::stride])
    return [*kept, points[-1]] if points and (len(points) - 1) % stride else kept


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
