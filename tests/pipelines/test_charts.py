"""Charts are well-formed, inside their frame, and honest about missing values."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from pipelines.charts import line_chart_svg, parallel_coordinates_svg


def chart(series):
    return ET.fromstring(line_chart_svg("Loss", series, "step", "loss"))


def coordinates(root):
    paths = [node.get("d") for node in root.iterfind(".//g/path")]
    return [tuple(map(float, pair)) for path in paths for pair in re.findall(r"[ML](\S+) ([\d.-]+)", path)]


def ticks(root, axis):
    return [float(node.text) for node in root.iterfind(f".//text[@class='{axis}']")]


VALUES = [
    pytest.param([(0, 0.0), (100, 1.0)], id="plain"),
    pytest.param([(5, 3.0)], id="one-point"),
    pytest.param([(1, 0.0), (2, 0.0), (3, 0.0)], id="all-zero"),
    pytest.param([(1, -7.0), (2, -7.0)], id="all-the-same"),
    pytest.param([(0, 1e-9), (1e6, 3e-9)], id="tiny"),
    pytest.param([(0, -1e12), (1, 1e12)], id="huge"),
    pytest.param([(x, math.exp(-x / 50)) for x in range(1000)], id="long"),
    pytest.param([(0, 0.1), (1, 0.3), (2, 0.6)], id="inexact-tenths"),
]


@pytest.mark.parametrize("points", VALUES)
def test_lines_and_ticks_stay_in_the_frame(points):
    root = chart({"a": points})
    drawn = coordinates(root)
    assert drawn
    assert all(57.9 <= x <= 616.1 and 11.9 <= y <= 276.1 for x, y in drawn)
    for axis, values in (("x", [x for x, _ in points]), ("y", [y for _, y in points])):
        marks = ticks(root, axis)
        assert 2 <= len(marks) <= 9
        assert marks == sorted(set(marks))
        if axis == "y":
            assert marks[0] <= min(values) + 1e-12
            assert marks[-1] >= max(values) - 1e-12


def test_up_is_more():
    (_, low), (_, high) = coordinates(chart({"a": [(0, 0.0), (1, 1.0)]}))
    assert high < low


def test_ticks_are_round():
    assert ticks(chart({"a": [(0, 0.0), (1, 1.0)]}), "y") == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_gap_breaks_the_line():
    root = chart({"a": [(0, 1.0), (1, 2.0), (2, math.nan), (3, 3.0), (4, 4.0)]})
    assert root.find(".//g/path").get("d").count("M") == 2


def test_a_long_series_keeps_its_last_point():
    root = chart({"a": [(x, float(x)) for x in range(100_000)]})
    assert len(coordinates(root)) <= 302
    assert root.findall(".//circle/title")[-1].text == "a: 1e+05 at 99999"


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)]}, {"a": [(math.inf, 0.5)]}])
def test_no_values_is_said(series):
    root = chart(series)
    assert root.find("p").text == "No values yet."
    assert root.find("svg") is None


def test_the_legend_has_the_last_value_and_text_is_escaped():
    root = chart({"<script>&": [(0, 0.25), (1, 0.75), (2, math.nan)], "none": [(0, math.nan)]})
    legend = ["".join(node.itertext()) for node in root.iterfind(".//li")]
    assert legend == ["<script>& 0.75", "none no values"]


def test_more_series_than_colours_are_dashed():
    root = chart({f"s{number}": [(0, 0.0), (1, float(number))] for number in range(10)})
    classes = [node.get("class") for node in root.iterfind(".//g")]
    assert classes[0] == "c0 few"
    assert classes[8] == "c0 dashed few"


def test_parallel_coordinates_have_an_axis_a_property_and_a_line_a_thing():
    lines = {"a": [0.001, "1x", 0.2], "b": [0.1, "2x", 0.5], "<c>": [0.01, "1x", 0.5]}
    root = ET.fromstring(parallel_coordinates_svg("Trials", ["optim.rate", "length", "AP"], lines))
    places = [
        [tuple(map(float, pair)) for pair in re.findall(r"[ML]?([\d.]+) ([\d.]+)", path.get("d"))]
        for path in root.iterfind(".//g/path")
    ]
    a, b, c = places
    assert [len(place) for place in places] == [3, 3, 3]
    assert a[0][1] > c[0][1] > b[0][1]  # larger values stand higher
    assert a[1] == c[1] != b[1]
    assert b[2] == c[2]
    titles = [node.text for node in root.iterfind(".//g/path/title")]
    assert titles[2] == "<c>: optim.rate 0.01, length 1x, AP 0.5"
    assert {"rate", "length", "AP", "1x", "2x", "0.001", "0.1"} <= {node.text for node in root.iterfind(".//text")}


@pytest.mark.parametrize("lines", [{"a": [1.0, 2.0]}, {"a": [1.0, 1.0], "b": [1.0, 1.0]}])
def test_parallel_coordinates_of_equal_values_stay_inside(lines):
    text = parallel_coordinates_svg("Trials", ["x", "y"], lines)
    assert "nan" not in text
    assert "inf" not in text


def test_parallel_coordinates_without_lines_say_so():
    assert "No values yet" in parallel_coordinates_svg("Trials", ["x"], {})
