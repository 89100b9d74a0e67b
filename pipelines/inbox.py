"""What passes between the driver and its workers: metrics, beats and failures one way, the wish to stop the other.

Light on purpose: the actor that holds it imports no torch.
"""

from typing import NamedTuple

from pipelines.watchdog import Beat


class Failure(NamedTuple):
    """What a worker raised.

    Attributes:
        rank: the worker's number; -1 where it is not known.
        text: one line for people.
        certain: the same error will come again, however often it is tried.
    """

    rank: int
    text: str
    certain: bool


class Mail(NamedTuple):
    """What the driver fetches.

    Attributes:
        rows: metrics.
        committed: steps whose checkpoints are there.
        beats: of the workers, oldest first.
        failures: first one first.
        number: of this mail; said with the next request, it tells that this one arrived.
    """

    rows: list[dict[str, float]]
    committed: list[int]
    beats: list[Beat]
    failures: list[Failure]
    number: int = 0


class Inbox:
    """An actor on no CPU; workers put in, the driver drains."""

    def __init__(self) -> None:
        """Start empty."""
        self._mail, self._given = Mail([], [], [], []), Mail([], [], [], [])
        self._number, self._stop = 0, False

    def put(self, row: dict[str, float]) -> None:
        """Take a row of metrics."""
        self._mail.rows.append(row)

    def committed(self, step: int) -> None:
        """Take the news of a checkpoint."""
        self._mail.committed.append(step)

    def beat(self, beat: Beat) -> bool:
        """Take a beat; whether the run shall stop."""
        self._mail.beats.append(beat)
        return self._stop

    def failed(self, failure: Failure) -> None:
        """Take what a worker raised."""
        self._mail.failures.append(failure)

    def stop(self) -> None:
        """Ask the workers to stop with a checkpoint."""
        self._stop = True

    def drain(self, received: int) -> Mail:
        """Give everything that came after mail number `received`, and forget what came before.

        An answer that never reached the driver, which asks again with the number it has, is given again.
        """
        if received == self._given.number:
            self._given = Mail([], [], [], [])
        given, new = self._given, self._mail
        self._number += 1
        self._given = Mail(
            given.rows + new.rows, given.committed + new.committed, given.beats + new.beats,
            given.failures + new.failures, self._number,
        )  # fmt: skip
        self._mail = Mail([], [], [], [])
        return self._given
