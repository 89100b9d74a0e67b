"""Attempts at a command: what is tried again, what is not, and how it is asked to end."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines import attempts

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def codes(monkeypatch):
    """Exit codes that commands end with, in order, and the commands."""
    left, commands = [], []

    class Child:
        def __init__(self, command):
            commands.append(command)

        def wait(self):
            return left.pop(0)

    monkeypatch.setattr(attempts.subprocess, "Popen", Child)

    def run(retries, *given):
        left[:], commands[:] = given, []
        return attempts.run(retries, ["train", "x"], 0.0), len(commands)

    run.commands = commands
    return run


@pytest.mark.parametrize(
    ("retries", "given", "wanted"),
    [
        (3, [0], (0, 1)),
        (3, [1, 1, 0], (0, 3)),
        (2, [1, 1, 1], (1, 3)),
        (0, [1], (1, 1)),
        (3, [2], (2, 1)),  # wrong input ends the same way again
        (3, [143], (143, 1)),
        (3, [-9, 0], (0, 2)),  # killed, such as for memory
        (0, [-9], (137, 1)),
    ],
)
def test_failures_are_tried_again_and_bad_input_is_not(codes, retries, given, wanted):
    assert codes(retries, *given) == wanted
    assert codes.commands[0] == [sys.executable, "-m", "pipelines", "train", "x"]


def test_the_commands_exit_code_is_the_jobs():
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.attempts", "3", "--", "inspekt"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "inspekt" in done.stderr
    assert attempts.main(["--", "train"]) == 2


def test_a_job_that_is_asked_to_end_passes_it_on_and_is_not_tried_again(tmp_path, monkeypatch):
    # A command that ends in its own way when it is asked, as a training does with a checkpoint.
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); open(sys.argv[1], 'w'); "
    script += "time.sleep(60)"
    started, begun = subprocess.Popen, []

    def start(command):
        begun.append(command)
        return started([sys.executable, "-c", script, str(tmp_path / "up")])

    monkeypatch.setattr(attempts.subprocess, "Popen", start)

    def ask():
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    assert attempts.run(3, ["train"], 0.0) == 7
    assert len(begun) == 1
