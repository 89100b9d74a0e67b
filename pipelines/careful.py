"""Judging pictures in a process that may die: for shards whose making has taken a process with it before.

Decoders are compiled code that strangers' bytes reach. Should one of them crash or never return, the picture is
rejected and the rest of its shard goes on.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from pipelines import check
from pipelines.rejections import Reason, Rejection
from pipelines.source_index import RawRow

Judge = Callable[[RawRow, bytes, check.Rules, bytes | None, bytes | None], check.Checked | Rejection]

_LONGEST_S = 120.0


def _serve(connection: Connection, judge: Judge) -> None:
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send(judge(*arguments))


class CarefulJudge:
    """`check.check` in another process, which is replaced when it dies; to be closed, or used as a context."""

    def __init__(self, judge: Judge = check.check, longest_s: float = _LONGEST_S) -> None:
        """Take what judges, a function of a module, and the seconds after which it counts as stuck."""
        self._judge, self._longest_s = judge, longest_s
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> CarefulJudge:
        """Nothing starts before the first picture."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._end()

    def __call__(
        self, row: RawRow, data: bytes, rules: check.Rules, semantic: bytes | None, labels: bytes | None
    ) -> check.Checked | Rejection:
        """As `check.check`; a picture that kills or holds up the process is rejected as corrupt."""
        connection = self._connection or self._start()
        try:
            connection.send((row, data, rules, semantic, labels))
            if connection.poll(self._longest_s):
                found: check.Checked | Rejection = connection.recv()
                return found
            reason = f"its decoder did not return in {self._longest_s:g} s"
        except (EOFError, OSError):
            reason = "its decoder crashed"
        self._end()
        return check.reject_row(row, Reason.CORRUPT_PICTURE, "file_name", reason)

    def _start(self) -> Connection:
        context: Any = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._judge), daemon=True)
        self._process.start()
        theirs.close()  # so that its death is seen as the end of the stream
        try:
            self._connection.recv()  # ready: from now on the time is the picture's
        except EOFError as error:
            self._end()
            raise OSError("cannot start a process to check pictures in: see its own message above") from error
        return self._connection

    def _end(self) -> None:
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._connection = self._process = None
