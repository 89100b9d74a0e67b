"""Who hangs: workers beat while they train, and this tells from the beats which one holds up all the others."""

from typing import NamedTuple

DONE = "done"
"""The phase of a worker's last beat."""


class Beat(NamedTuple):
    """What a worker says of itself every second, from a thread of its own.

    Attributes:
        rank: its number.
        step: the step it is at, counted from 1; 0 while it starts.
        phase: what it does of the step: start, data, compute, report or checkpoint; `DONE` after its last.
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

    def __init__(self, timeout_s: float, first_step_timeout_s: float = 0.0) -> None:
        """Take the limits.

        Args:
            timeout_s: seconds after which silence or standstill counts as hanging.
            first_step_timeout_s: of standstill before all workers have done a step, in which a network is compiled
                and a checkpoint read; never less than the other.
        """
        self._timeout_s, self._first_timeout_s = timeout_s, max(timeout_s, first_step_timeout_s)
        self._heard: dict[int, tuple[float, Beat]] = {}
        self._first: dict[int, int] = {}
        self._moved: dict[int, float] = {}
        self._finished: set[int] = set()

    def hear(self, beat: Beat, now: float) -> None:
        """Take a beat that arrived at `now` (seconds of any steady clock)."""
        if beat.phase == DONE or beat.rank in self._finished:
            self._finished.add(beat.rank)
            self._heard.pop(beat.rank, None)
            self._moved.pop(beat.rank, None)
            return
        known = self._heard.get(beat.rank)
        if known is None or known[1] != beat:
            self._moved[beat.rank] = now
        self._heard[beat.rank] = now, beat
        if beat.step:
            self._first.setdefault(beat.rank, beat.step)

    def hung(self, now: float) -> list[Hung]:
        """The workers that hold up the run at `now`; none while all is well."""
        found = []
        for when, beat in self._heard.values():
            if now - when > self._timeout_s:
                found.append(Hung(beat, f"{_name(beat)} was silent for {now - when:.0f} s {_place(beat)}"))
        if found or not self._moved or now - max(self._moved.values()) <= self._patience_s():
            return found
        # All are alive and none goes on. The others wait for those that are behind; of these, who computes may be
        # waiting too, and who does something else is not.
        living = [beat for _, beat in self._heard.values()]
        behind = [beat for beat in living if beat.step == min(other.step for other in living)]
        causes = [beat for beat in behind if beat.phase != "compute"] or behind
        idle = now - max(self._moved.values())
        return [Hung(beat, f"{_name(beat)} did not go on for {idle:.0f} s {_place(beat)}") for beat in causes]

    def _patience_s(self) -> float:
        is_first = any(beat.step == self._first.get(rank, beat.step) for rank, (_, beat) in self._heard.items())
        return self._first_timeout_s if is_first else self._timeout_s


def _name(beat: Beat) -> str:
    return f"worker {beat.rank} (process {beat.pid} on {beat.host})"


def _place(beat: Beat) -> str:
    return f"at step {beat.step}, in its {beat.phase} phase"
