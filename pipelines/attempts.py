"""Attempts at a command inside a job, so that nobody has to wait for its end.

    python -m pipelines.attempts 3 -- train ...

Every command goes on where it stopped, so the same one is simply run again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_DONE = (0, 2, 130, 143)  # finished; wrong input, which would end the same way; interrupted; asked to end
_PAUSE_S = 5.0  # what broke may need a moment, such as a node that comes back


def run(retries: int, command: Sequence[str], pause_s: float = _PAUSE_S) -> int:
    """Run a command of maskray until it is done or its retries are used up; its last exit code.

    Args:
        retries: further attempts after one that failed.
        command: without the word maskray.
        pause_s: seconds between attempts.
    """
    asked: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if child is not None:
            child.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        for left in range(retries, -1, -1):
            child = subprocess.Popen([sys.executable, "-m", "pipelines", *command])
            code = child.wait()
            code = 128 - code if code < 0 else code  # as shells count those who die of a signal
            if asked or code in _DONE or not left:
                break
            sys.stderr.write(f"the command failed (exit code {code}); {left} further attempts\n")
            time.sleep(pause_s)
            if asked:
                break
        return code
    finally:
        signal.signal(signal.SIGTERM, before)


def main(words: Sequence[str]) -> int:
    """Read RETRIES -- COMMAND ... and run it."""
    if len(words) < 3 or not words[0].isdigit() or words[1] != "--":
        sys.stderr.write(
            f"usage: python -m pipelines.attempts RETRIES -- COMMAND ..., got {' '.join(words) or 'none'}\n"
        )
        return 2
    return run(int(words[0]), words[2:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
