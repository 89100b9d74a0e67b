"""Messages to something that may be slow or gone, passed on in order by a thread of their own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

_LOG = logging.getLogger("pipelines.tracking")
_MOST_WAITING = 1000
_FAILURES_IN_A_ROW = 3
_PAUSE_S = 60.0


class _Message(NamedTuple):
    """Something to do, what it is for people, and where the one who waits for it is told."""

    what: str
    action: Callable[[], Any]
    answer: "_Answer | None"


class _Answer:
    """What a message came to; `there` is set once it is known."""

    def __init__(self) -> None:
        self.there, self.value = threading.Event(), None


class Courier:
    """Does things one after the other in a thread of its own; whatever fails is a warning and no more.

    Of what nobody waits for, at most a thousand messages wait, the oldest being dropped. After three failures in a row
    nothing is tried for a minute, so that a peer that is gone costs a few time-outs and no more.

    Attributes:
        dropped: messages that were lost, of all.
    """

    def __init__(self, most_waiting: int = _MOST_WAITING, pause_s: float = _PAUSE_S) -> None:
        """Take how many messages may wait, and the pause after failures."""
        self._most, self._pause_s = most_waiting, pause_s
        self._waiting: deque[_Message] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy, self._hurry = False, False
        self._failures, self._blocked_until = 0, 0.0
        self.dropped = 0

    def tell(self, what: str, action: Callable[[], Any]) -> None:
        """Do something some time; returns at once."""
        self._put(_Message(what, action, None))

    def ask(self, what: str, action: Callable[[], T], wait_s: float) -> T | None:
        """Do something after all that was told before; what it gave, or None where it failed or took too long."""
        answer = _Answer()
        with self._changed:
            self._hurry = True  # somebody waits: what is overdue is tried now
        self._put(_Message(what, action, answer))
        if not answer.there.wait(wait_s):
            _LOG.warning("tracking: could not %s within %.0f s; the run goes on untracked there", what, wait_s)
        return answer.value

    def close(self, wait_s: float) -> None:
        """Wait until all is done, at most so many seconds; what is left then is lost, and counted in a warning."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while (self._waiting or self._busy) and time.monotonic() < deadline:
                self._changed.wait(max(0.01, deadline - time.monotonic()))
            self.dropped += len(self._waiting) + self._busy
            self._waiting.clear()
            lost, self.dropped = self.dropped, 0
            self._thread, self._busy = None, False
            self._changed.notify_all()
        if lost:
            _LOG.warning("tracking: %d messages to the server are lost", lost)

    def _put(self, message: _Message) -> None:
        with self._changed:
            self._waiting.append(message)
            if len(self._waiting) > self._most:
                self._drop_oldest()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="tracking")
                self._thread.start()
            self._changed.notify_all()

    def _drop_oldest(self) -> None:
        for message in self._waiting:
            if message.answer is None:
                self._waiting.remove(message)
                self.dropped += 1
                return

    def _run(self) -> None:
        while (message := self._next()) is not None:
            failed = self._do(message)
            with self._changed:
                if self._thread is not threading.current_thread():
                    return
                self._busy = False
                self._failures = self._failures + 1 if failed else 0
                self.dropped += failed and message.answer is None
                if self._failures >= _FAILURES_IN_A_ROW:
                    self._give_up()
                self._changed.notify_all()

    def _next(self) -> _Message | None:
        """What is to be done next; None where this thread is closed."""
        with self._changed:
            while self._thread is threading.current_thread():
                pause_s = 0.0 if self._hurry else self._blocked_until - time.monotonic()
                if self._waiting and pause_s <= 0:
                    self._busy = True
                    return self._waiting.popleft()
                if not self._waiting:
                    self._hurry = False
                self._changed.wait(pause_s if self._waiting else None)
            return None

    def _give_up(self) -> None:
        """The peer is gone for now: who waits is told at once, and the next try is after the pause."""
        self._blocked_until = time.monotonic() + self._pause_s
        if self._hurry:
            for message in self._waiting:
                if message.answer is not None:
                    message.answer.there.set()
                else:
                    self.dropped += 1
            self._waiting.clear()
        self._hurry = False

    def _do(self, message: _Message) -> bool:
        """Whether it failed."""
        try:
            value = message.action()
        except Exception as error:
            # Whatever a server does must not cost the training that reports to it.
            if self._failures < _FAILURES_IN_A_ROW:
                _LOG.warning("tracking: could not %s (%s); the run goes on untracked there", message.what, error)
            return True
        else:
            if message.answer is not None:
                message.answer.value = value
            return False
        finally:
            if message.answer is not None:
                message.answer.there.set()
