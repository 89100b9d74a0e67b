"""Who hangs: workers beat while they train, and this tells from the beats which one holds up all the others."""

from typing import NamedTuple


class Beat(NamedTuple):
    """What a worker says of itself every second, from a thread of its own.

    Attributes:
        rank: its number.
        step: the step it is at, counted from 1; 0 while it starts.
        phase: what it does of the step: start, data, compute, report or checkpoint.
        pid: its process.
        node: id of its Ray node.
        host: address of its machine.
    """

    rank: int
    step: int
    phase: str
    pid: int
    node: str
    host: str


class Hung(NamedTuple):
    """A worker that holds up the run, and a line that says how."""

    beat: Beat
    reason: str


class Watchdog:
    """Remembers when each worker was last heard of, and when it last went on."""

    def __init__(self, timeout_s: float) -> None:
        """Take the seconds after which silence or standstill counts as hanging."""
        self._timeout_s = timeout_s
        self._heard: dict[int, tuple[float, Beat]] = {}
        self._moved: dict[int, float] = {}

    def hear(self, beat: Beat, now: float) -> None:
        """Take a beat that arrived at `now` (seconds of any steady clock)."""
        known = self._heard.get(beat.rank)
        if known is None or known[1] != beat:
            self._moved[beat.rank] = now
        self._heard[beat.rank] = now, beat

    def hung(self, now: float) -> list[Hung]:
        """The workers that hold up the run at `now`; none while all is well."""
        found = []
        for when, beat in self._heard.values():
            if now - when > self._timeout_s:
                found.append(Hung(beat, f"{_name(beat)} was silent for {now - when:.0f} s {_place(beat)}"))
        if found or not self._moved or now - max(self._moved.values()) <= self._timeout_s:
            return found
        # All are alive and none goes on. Who computes may be waiting for the others; who does something else is not.
        still = [beat for _, beat in self._heard.values()]
        causes = [beat for beat in still if beat.phase != "compute"] or still
        idle = now - max(self._moved.values())
        return [Hung(beat, f"{_name(beat)} did not go on for {idle:.0f} s {_place(beat)}") for beat in causes]


def _name(beat: Beat) -> str:
    return f"worker {beat.rank} (process {beat.pid} on {beat.host})"


def _place(beat: Beat) -> str:
    return f"at step {beat.step}, in its {beat.phase} phase"
