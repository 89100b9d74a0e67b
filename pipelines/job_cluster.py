"""The jobs of one cluster, through Ray's job API: start, follow, stop and list attempts at commands of maskray."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines import cluster_access

_OLDEST_RAY = (2, 60)
_POLL_S = 1.0
_LOST_AFTER_S = 60.0
_STOP_WITHIN_S = 120  # to write a checkpoint; Ray itself gives 3 s
_NAME_KEY, _COMMAND_KEY = "maskray_name", "maskray_command"
Say = Callable[[str], None]


class JobError(ValueError):
    """A job that cannot be submitted, found or followed; the message is one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One attempt at a command on a cluster.

    Attributes:
        id: submission id, NAME-ATTEMPT.
        name: of the job.
        attempt: counted from 1.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        command: as it was given.
        exit_code: of its process, once it ended by itself.
        message: what Ray says about it.
        started_s: since the epoch.
        ended_s: the same; None before the end.
    """

    id: str
    name: str
    attempt: int
    status: str
    command: str
    exit_code: int | None
    message: str
    started_s: float
    ended_s: float | None

    @property
    def is_over(self) -> bool:
        """Whether it ended, in whatever way."""
        return bool(JobStatus(self.status).is_terminal())


class Way(NamedTuple):
    """How nodes run a job.

    Attributes:
        python: the interpreter that has torch and Ray.
        env: environment of the command.
    """

    python: str
    env: Mapping[str, str]


def as_text(command: tuple[str, ...]) -> str:
    """A command of maskray as a person would write it."""
    return shlex.join(["maskray", *command])


class Cluster:
    """The jobs of one cluster.

    Raises:
        AccessError: it cannot be reached, or not safely.
        JobError: it runs a Ray too old.
    """

    def __init__(self, address: str, *, insecure: bool = False) -> None:
        """Connect."""
        self.url = cluster_access.check_url(address)
        cluster_access.require_token(insecure=insecure)
        cluster_access.check_closed(self.url, insecure=insecure)
        with self._answering():
            self._client = JobSubmissionClient(self.url)
        found = cluster_access.ray_version(self.url)
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST_RAY:
            raise JobError(f"{self.url} runs Ray {found}, maskray needs 2.60 or newer: use a newer image")

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """What Ray's client raises, as one line."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            raise JobError(f"{self.url} refused: {_first_line(error)}") from error

    def jobs(self) -> list[Job]:
        """All jobs of maskray, oldest first."""
        with self._answering():
            found = [_job(info) for info in self._client.list_jobs() if _NAME_KEY in (info.metadata or {})]
        return sorted(found, key=lambda job: (job.started_s, job.attempt))

    def latest(self, name: str) -> Job | None:
        """The last attempt of a job, or None."""
        named = [job for job in self.jobs() if job.name == name]
        return max(named, key=lambda job: job.attempt) if named else None

    def find(self, name_or_id: str) -> Job | None:
        """The last attempt of the job of that name, else the attempt of that id, or None."""
        return self.latest(name_or_id) or next((job for job in self.jobs() if job.id == name_or_id), None)

    def start(self, name: str, command: tuple[str, ...], retries: int, wheel: Path, way: Way) -> Job:
        """Start the next attempt of a job.

        Args:
            name: of the job.
            command: of maskray, without that word.
            retries: of the command, inside the job.
            wheel: to run from, without requirements.
            way: how the nodes run it.
        """
        last = self.latest(name)
        attempt = last.attempt + 1 if last else 1
        module = ["pipelines.attempts", str(retries), "--"] if retries else ["pipelines"]
        with self._answering():
            self._client.submit_job(
                entrypoint=shlex.join([way.python, "-m", *module, *command]),
                submission_id=f"{name}-{attempt}",
                metadata={_NAME_KEY: name, _COMMAND_KEY: as_text(command)},
                runtime_env={
                    "py_modules": [str(wheel)],
                    "env_vars": {
                        "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WITHIN_S), **way.env,
                    },
                },
            )  # fmt: skip
        return self.job(f"{name}-{attempt}")

    def job(self, job_id: str) -> Job:
        """An attempt by its id."""
        with self._answering():
            return _job(self._client.get_job_info(job_id))

    def stop(self, job_id: str) -> None:
        """Ask an attempt to end."""
        with self._answering():
            self._client.stop_job(job_id)

    def follow(self, job_id: str, say: Say) -> Job:
        """Pass on what an attempt writes, until it ends.

        A connection that breaks is taken up again, without saying anything twice.

        Raises:
            JobError: the cluster has not answered for a minute.
        """
        log, answered = _Log(say), time.monotonic()
        while True:
            try:
                job = _job(self._client.get_job_info(job_id))
                answered = time.monotonic()
                if job.is_over:
                    break
                asyncio.run(log.follow(self._client.tail_job_logs(job_id)))
            except (OSError, RuntimeError) as error:
                if time.monotonic() - answered > _LOST_AFTER_S:
                    raise JobError(
                        f"{self.url} has not answered for {_LOST_AFTER_S:g} s ({_first_line(error)}): the job "
                        f"may go on; follow it with `maskray jobs --attach {job_id}`"
                    ) from error
            time.sleep(_POLL_S)
        with self._answering():
            log.add(self._client.get_job_logs(job_id))
        return job


class _Log:
    """A job's log as it is passed on: whatever is read again is said once."""

    def __init__(self, say: Say) -> None:
        self._say, self._shown = say, 0

    def add(self, text: str, before: int = 0) -> None:
        """Pass on what is new of a text that begins `before` characters into the log."""
        fresh = text[max(self._shown - before, 0) :]
        if fresh:
            self._say(fresh)
            self._shown = before + len(text)

    async def follow(self, chunks: AsyncIterator[str]) -> None:
        """Pass on a log from its beginning, as it comes.

        Raises:
            ConnectionError: it broke off.
        """
        seen = 0
        while True:
            try:
                text = await anext(chunks)
            except StopAsyncIteration:
                return
            except Exception as error:
                # The client of Ray's client has errors of its own for this.
                raise ConnectionError(_first_line(error)) from error
            self.add(text, seen)
            seen += len(text)


def _job(info: Any) -> Job:
    metadata = info.metadata or {}
    attempt = re.search(r"-(\d+)$", info.submission_id or "")
    return Job(
        id=info.submission_id or "",
        name=metadata.get(_NAME_KEY, ""),
        attempt=int(attempt[1]) if attempt else 0,
        status=str(info.status),
        command=metadata.get(_COMMAND_KEY, info.entrypoint),
        exit_code=info.driver_exit_code,
        message=" ".join((info.message or "").split()),
        started_s=(info.start_time or 0) / 1000,
        ended_s=info.end_time / 1000 if info.end_time else None,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
