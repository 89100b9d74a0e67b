"""One self-contained HTML page: text, tables, charts and pictures, all escaped, all inline.

The page asks for nothing over the network, and its own policy forbids it; so a report can be mailed or kept.
"""

import base64
from collections.abc import Container, Mapping, Sequence
from html import escape
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import commit, storage
from pipelines.charts import Point, line_chart_svg, parallel_coordinates_svg

Cell = str | int | float | None

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LIGHT = ("#1764c0", "#c2410c", "#15803d", "#9333ea", "#b91c1c", "#0e7490", "#a16207", "#be185d")
_DARK = ("#6cb0ff", "#ff9a5c", "#5fd38a", "#c99bff", "#ff8080", "#5cd0e6", "#e8c15a", "#ff8ac2")
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5c6370; --page: #fff; --card: #f5f6f8;
  --rule: #d9dce1; %(light)s }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3af; --page: #15171a;
  --card: #1f2226; --rule: #363b42; %(dark)s } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
p { max-width: 45rem; margin: .5rem 0; }
.table { overflow: auto; max-height: 34rem; margin: .75rem 0; }
@media print { .table { max-height: none; } }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem;
  overflow-wrap: normal; }
th, td { padding: .3rem .8rem; text-align: left; border-bottom: 1px solid var(--rule); }
th { position: sticky; top: 0; background: var(--page); color: var(--soft);
  font-weight: 600; vertical-align: bottom; }
td.number { white-space: nowrap; }
.number { text-align: right; }
.row { display: grid; gap: 1rem; align-items: start; margin: .75rem 0; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%%, 24rem), 1fr)); }
.pictures { grid-template-columns: repeat(auto-fill, minmax(min(100%%, 19rem), 1fr)); }
.comparisons { grid-template-columns: repeat(auto-fit, minmax(min(100%%, 28rem), 1fr)); }
.comparisons.wide { grid-template-columns: 1fr; }
.sides { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 12rem), 1fr)); }
.sides span { font-size: .9rem; color: var(--soft); }
.comparisons figcaption { margin-bottom: .5rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border-radius: .5rem; }
figcaption { font-size: .9rem; color: var(--soft); }
.chart figcaption { font-weight: 600; color: var(--ink); }
.empty { color: var(--soft); }
img, svg { display: block; width: 100%%; height: auto; }
img { border-radius: .25rem; margin-bottom: .4rem; }
svg text { fill: var(--soft); font-size: 13px; }
svg .x, svg .axis { text-anchor: middle; }
svg .y { text-anchor: end; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg g path { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg g.dashed path { stroke-dasharray: 6 4; }
svg circle { fill: var(--c); opacity: 0; }
svg g.few circle { opacity: .35; }
svg circle:hover { opacity: 1; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .4rem 0 0; padding: 0;
  font-size: .9rem; }
.legend li::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  border-radius: 2px; background: var(--c); }
.legend .dashed::before { background: none; border: 2px dashed var(--c); }
@media (max-width: 36rem) { table { font-size: .85rem; } th, td { padding: .3rem .35rem; } }
%(classes)s
"""


class Page:
    """A page that grows downward; ``render`` or ``save`` gives it out.

    Args:
        title: The heading and the browser's tab.
    """

    def __init__(self, title: str) -> None:
        """Start an empty page."""
        self._title = title
        self._parts: list[tuple[str, str]] = []

    def section(self, title: str) -> None:
        """Begin a section."""
        self._parts.append(("", f"<h2>{escape(title)}</h2>"))

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append(("", f"<p>{escape(text)}</p>"))

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        decimals: int = 3,
        bold: Container[tuple[int, int]] = (),
    ) -> None:
        """Add a table; numbers stand right, None as a dash.

        Args:
            headers: One a column.
            rows: Each as long as ``headers``.
            decimals: Of the floats.
            bold: (row, column) of the cells that stand out, from 0.

        Raises:
            ValueError: A row is longer or shorter.
        """
        for number, row in enumerate(rows):
            if len(row) != len(headers):
                raise ValueError(f"row {number} of the table has {len(row)} cells, wanted {len(headers)}: one a header")
        numeric = [
            bool(rows) and all(row[column] is None or isinstance(row[column], (int, float)) for row in rows)
            for column in range(len(headers))
        ]
        marks = [' class="number"' if is_number else "" for is_number in numeric]
        head = _cells("th", marks, [escape(name) for name in headers])
        texts = [[_text(cell, decimals) for cell in row] for row in rows]
        for number, line in enumerate(texts):
            line[:] = [f"<b>{text}</b>" if (number, at) in bold else text for at, text in enumerate(line)]
        body = "".join(_cells("td", marks, line) for line in texts)
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        self._parts.append(("", f'<div class="table">{table}</div>'))

    def line_chart(self, title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> None:
        """Add a chart; charts that follow each other stand side by side where there is room.

        Args:
            title: Shown above.
            series: (x, y) points by name; a point that is not finite breaks the line.
            x_label: With the unit.
            y_label: With the unit.
        """
        self._parts.append(("charts", line_chart_svg(title, series, x_label, y_label)))

    def parallel_coordinates(self, title: str, axes: Sequence[str], lines: Mapping[str, Sequence[float | str]]) -> None:
        """Add a chart of many things by several properties.

        Args:
            title: Shown above.
            axes: Names of the properties.
            lines: Values by the name of the thing, one an axis.
        """
        self._parts.append(("charts", parallel_coordinates_svg(title, axes, lines)))

    def picture(self, image: NDArray[np.uint8], caption: str) -> None:
        """Add a picture; pictures that follow each other form a grid.

        Args:
            image: [H, W, 3] RGB.
            caption: Shown below, and read aloud by screen readers.

        Raises:
            ValueError: ``image`` is not such an array.
        """
        text = escape(caption)
        shown = f"{_img(image, text)}<figcaption>{text}</figcaption>"
        self._parts.append(("pictures", f"<figure>{shown}</figure>"))

    def pictures(self, images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> None:
        """Add a grid of pictures [H, W, 3], one caption each.

        Raises:
            ValueError: There are more or fewer captions than pictures, or one is not a picture.
        """
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} pictures have {len(captions)} captions: give one for each")
        for image, caption in zip(images, captions, strict=True):
            self.picture(image, caption)

    def comparison(self, title: str, images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> None:
        """Add a card of pictures that belong together, side by side; two narrow cards share a line.

        Args:
            title: Shown above the pictures.
            images: [H, W, 3] RGB each.
            captions: One each, shown below it.

        Raises:
            ValueError: There are more or fewer captions than pictures, or one is not a picture.
        """
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} pictures have {len(captions)} captions: give one for each")
        sides = "".join(
            f"<div>{_img(image, escape(f'{caption}: {title}'))}<span>{escape(caption)}</span></div>"
            for image, caption in zip(images, captions, strict=True)
        )
        card = f'<figure><figcaption>{escape(title)}</figcaption><div class="sides">{sides}</div></figure>'
        self._parts.append(("comparisons" if len(images) <= 2 else "comparisons wide", card))

    def render(self) -> str:
        """The whole page."""
        title = escape(self._title)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_style()}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
            + "\n".join(self._grouped())
            + "\n</body>\n</html>\n"
        )

    def save(self, uri: str) -> str:
        """Write the page, whole or not at all; a page already there is replaced.

        Args:
            uri: Path or URI of the file to write.

        Returns:
            The same place, a local one as an absolute path.

        Raises:
            ValueError: A folder is there, or the URI cannot be opened.
        """
        filesystem, path = storage.open_uri(uri)
        if storage.is_folder(filesystem, path):
            raise ValueError(f"cannot write the page {uri}: a folder is there; give a file such as {uri}/page.html")
        commit.write_file(filesystem, path, self.render().encode())
        return storage.canonical_uri(uri)

    def _grouped(self) -> list[str]:
        """Parts, with runs of charts or pictures inside one grid."""
        lines: list[str] = []
        group = ""
        for kind, part in self._parts:
            if kind != group:
                lines += ["</div>"] * bool(group) + [f'<div class="row {kind}">'] * bool(kind)
                group = kind
            lines.append(part)
        return lines + ["</div>"] * bool(group)


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return " ".join(f"--c{number}: {value};" for number, value in enumerate(values))

    classes = "\n".join(f".c{number} {{ --c: var(--c{number}); }}" for number in range(len(_LIGHT)))
    return _STYLE % {"light": colours(_LIGHT), "dark": colours(_DARK), "classes": classes}


def _img(image: NDArray[np.uint8], alt: str) -> str:
    """The picture as an element that holds it; ``alt`` is escaped already."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"a picture on a page is {image.dtype} {list(image.shape)}, wanted uint8 [H, W, 3]: convert")
    data = BytesIO()
    # Full colour resolution: halved, it smears thin coloured outlines and labels.
    Image.fromarray(image).save(data, "JPEG", quality=88, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    height, width = image.shape[:2]
    return f'<img width="{width}" height="{height}" alt="{alt}" src="{source}">'


def _text(cell: Cell, decimals: int) -> str:
    if cell is None:
        return "&ndash;"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return escape(f"{cell:.{decimals}f}" if isinstance(cell, float) else str(cell))


def _cells(tag: str, marks: Sequence[str], escaped: Sequence[str]) -> str:
    cells = (f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, escaped, strict=True))
    return f"<tr>{''.join(cells)}</tr>"
