"""Progress of long work on standard error: a line that rewrites itself on a terminal, now and then one elsewhere."""

import sys
import time

_EVERY_S_TERMINAL = 0.5
_EVERY_S_FILE = 10.0


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    whole = int(seconds + 0.5)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Reports how much of `total` is done, how fast, and how long the rest will take."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """Start the clock.

        Args:
            what: the work, first on the line.
            total: units of the whole work.
            unit: name of a unit, in the plural.
            done: units that an earlier run did; they do not count for the speed.
        """
        self._what, self._total, self._unit, self._first = what, total, unit, done
        self._started = time.monotonic()
        self._last = -1e9
        self._open_line = False

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Say that `done` units are done; prints at most every half second (terminal) or ten seconds.

        Args:
            done: units done so far.
            note: printed after them.
            total: units of the whole work, where it was not known before.
        """
        self._total = self._total if total is None else total
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if done < self._total and now - self._last < (_EVERY_S_TERMINAL if terminal else _EVERY_S_FILE):
            return
        self._last = now
        speed = (done - self._first) / max(now - self._started, 1e-9)
        left = clock((self._total - done) / speed) if speed > 0 else "?"
        line = (
            f"{self._what}: {done}/{self._total} {self._unit}  {note}{'  ' if note else ''}{speed:.1f}/s  {left} left"
        )
        sys.stderr.write(f"\r\x1b[2K{line}" if terminal else f"{line}\n")
        self._open_line = terminal
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False
