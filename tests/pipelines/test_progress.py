import io
import re

import pytest

from pipelines import progress
from pipelines.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def time_at(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def move(seconds):
        now[0] = 100.0 + seconds

    return move


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (90_061, "25:01:01"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_speed_and_time_left(time_at, capsys):
    shown = Progress("train", 100, "steps")
    time_at(10)
    shown.update(20, "loss 1.5")
    assert capsys.readouterr().err == "train: 20/100 steps  loss 1.5  2.0/s  0:40 left\n"
    shown.close()
    assert capsys.readouterr().err == ""


def test_what_an_earlier_run_did_is_not_counted_as_speed(time_at, capsys):
    shown = Progress("train", 100, "steps", done=60)
    time_at(10)
    shown.update(80)
    assert capsys.readouterr().err == "train: 80/100 steps  2.0/s  0:10 left\n"


def test_nothing_done_yet_has_no_end(time_at, capsys):
    shown = Progress("train", 100, "steps", done=60)
    time_at(10)
    shown.update(60)
    assert capsys.readouterr().err == "train: 60/100 steps  0.0/s  ? left\n"


def test_a_file_gets_a_line_now_and_then_and_the_last(time_at, capsys):
    shown = Progress("train", 1000, "steps")
    for tenth in range(1, 1001):
        time_at(tenth / 10)
        shown.update(tenth)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0].startswith("train: 1/1000")
    assert lines[-1] == "train: 1000/1000 steps  10.0/s  0:00 left"


def test_a_terminal_keeps_one_line(time_at, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    shown = Progress("train", 100, "steps")
    for tenth in range(1, 101):
        time_at(tenth / 10)
        shown.update(tenth)
    shown.close()
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert 18 <= text.count("\r") <= 22
    assert re.fullmatch(r"train: 100/100 steps  10\.0/s  0:00 left", text.rsplit("\x1b[2K", 1)[1].strip())
    shown.close()
    assert terminal.getvalue() == text


def test_a_total_that_is_known_late(time_at, capsys):
    shown = Progress("prepare", 0, "pictures")
    time_at(1)
    shown.update(5, total=50)
    assert capsys.readouterr().err == "prepare: 5/50 pictures  5.0/s  0:09 left\n"
