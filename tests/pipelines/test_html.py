"""A page is well-formed, self-contained and escaped."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipelines.html import Page

NASTY = '</script><img src=x onerror="alert(1)">&'
VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Checks that tags nest, and keeps them."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    outline = Outline()
    outline.feed(page.render())
    outline.close()
    assert outline.open == []
    return outline


def full():
    page = Page(NASTY)
    page.section(NASTY)
    page.paragraph(NASTY)
    page.table([NASTY, "AP"], [[NASTY, 0.5], ["b", None]])
    page.line_chart(NASTY, {NASTY: [(0, 1.0), (1, 2.0)]}, NASTY, NASTY)
    page.line_chart("second", {}, "x", "y")
    page.picture(np.zeros((8, 12, 3), np.uint8), NASTY)
    page.section("end")
    return page


def test_everything_is_escaped_and_nests():
    outline = parsed(full())
    assert "script" not in [tag for tag, _ in outline.tags]
    assert [attrs["src"][:22] for tag, attrs in outline.tags if tag == "img"] == ["data:image/jpeg;base64"]
    assert not any(name.startswith("on") for _, attrs in outline.tags for name in attrs)
    assert outline.text.count(NASTY) >= 6


def test_nothing_is_asked_of_the_network():
    source = full().render()
    for tag, attrs in parsed(full()).tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attrs.get(name, "data:").startswith("data:"), tag
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source


def test_light_and_dark_and_small_screens():
    source = full().render()
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source
    style = re.search(r"<style>(.*)</style>", source, re.DOTALL).group(1)
    assert style.count("{") == style.count("}")
    assert "%" not in re.sub(r"100%", "", style)
    used, defined = set(re.findall(r"var\((--\w+)\)", style)), set(re.findall(r"(--\w+):", style))
    assert used <= defined


def test_charts_and_pictures_stand_in_grids():
    page = Page("grids")
    for _ in range(2):
        page.line_chart("a", {"a": [(0, 1.0)]}, "x", "y")
    page.pictures([np.zeros((4, 4, 3), np.uint8)] * 3, ["one", "two", "three"])
    page.line_chart("b", {"a": [(0, 1.0)]}, "x", "y")
    rows = [attrs["class"] for tag, attrs in parsed(page).tags if tag == "div"]
    assert rows == ["row charts", "row pictures", "row charts"]


def test_cells_are_formatted_and_numbers_stand_right():
    page = Page("table")
    page.table(["name", "AP", "n", "ok"], [["a", 0.12345, 3, True], ["b", None, 4, False]])
    source = page.render()
    assert '<td class="number">0.123</td>' in source
    assert '<td class="number">&ndash;</td>' in source
    assert "<td>a</td>" in source
    assert ">yes<" in source
    assert '<th class="number">AP</th>' in source


def test_decimals_and_bold_cells():
    page = Page("table")
    page.table(["name", "AP"], [["<a>", 12.34], ["b", 56.78]], decimals=1, bold={(0, 0), (1, 1)})
    source = page.render()
    assert "<td><b>&lt;a&gt;</b></td>" in source
    assert '<td class="number">12.3</td>' in source
    assert '<td class="number"><b>56.8</b></td>' in source


@pytest.mark.parametrize(("count", "group"), [(2, "row comparisons"), (3, "row comparisons wide")])
def test_pictures_that_belong_together_share_a_card(count, group):
    page = Page("card")
    for title in (NASTY, "second"):
        page.comparison(title, [np.zeros((4, 4, 3), np.uint8)] * count, [NASTY] * count)
    outline = parsed(page)
    assert [attrs["class"] for tag, attrs in outline.tags if tag == "div" and attrs] == [
        group,
        "sides",
        "sides",
    ]
    assert [tag for tag, _ in outline.tags].count("img") == 2 * count
    with pytest.raises(ValueError, match="1 pictures have 2 captions: give one for each"):
        page.comparison("x", [np.zeros((4, 4, 3), np.uint8)], ["a", "b"])


def test_a_table_without_rows_has_its_head():
    page = Page("table")
    page.table(["a"], [])
    assert "<th>a</th>" in page.render()


def test_pictures_come_back_as_they_were():
    gradient = np.zeros((32, 48, 3), np.uint8)
    gradient[..., 0] = np.arange(48) * 5
    page = Page("picture")
    page.picture(gradient, "a gradient")
    image = next(attrs for tag, attrs in parsed(page).tags if tag == "img")
    assert (image["width"], image["height"], image["alt"]) == ("48", "32", "a gradient")
    with Image.open(BytesIO(base64.b64decode(image["src"].split(",")[1]))) as decoded:
        assert np.abs(np.asarray(decoded).astype(int) - gradient).mean() < 3


def test_save_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert full().save(str(path)) == str(path)
    assert path.read_text("utf-8") == full().render()
    assert list(tmp_path.iterdir()) == [path]


def test_save_makes_the_folder_and_takes_uris(tmp_path):
    uri = (tmp_path / "new" / "report.html").as_uri()
    assert full().save(uri) == uri
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == full().render()


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="a folder is there; give a file such as"):
        full().save(str(tmp_path))


def test_a_ragged_table_is_refused():
    with pytest.raises(ValueError, match="row 1 of the table has 1 cells, wanted 2: one a header"):
        Page("x").table(["a", "b"], [[1, 2], [3]])


def test_a_picture_must_be_one():
    with pytest.raises(ValueError, match=r"on a page is float64 \[4, 4\], wanted uint8 \[H, W, 3\]"):
        Page("x").picture(np.zeros((4, 4)), "grey")


def test_each_picture_needs_a_caption():
    with pytest.raises(ValueError, match="1 pictures have 2 captions: give one for each"):
        Page("x").pictures([np.zeros((4, 4, 3), np.uint8)], ["a", "b"])
