"""The jobs of one cluster, through Ray's job API: start, follow, stop and list attempts at commands of maskray."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from pipelines import cluster_access

_OLDEST_RAY = (2, 60)
_POLL_S = 1.0
_LOST_AFTER_S = 60.0
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
        self._client = JobSubmissionClient(self.url)
        found = cluster_access.ray_version(self.url)
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < _OLDEST_RAY:
            raise JobError(f"{self.url} runs Ray {found}, maskray needs 2.60 or newer: use a newer image")

    def jobs(self) -> list[Job]:
        """All jobs of maskray, oldest first."""
        found = [_job(info) for info in self._client.list_jobs() if _NAME_KEY in (info.metadata or {})]
        return sorted(found, key=lambda job: (job.started_s, job.attempt))

    def latest(self, name: str) -> Job | None:
        """The last attempt of a job, or None."""
        named = [job for job in self.jobs() if name in (job.name, job.id)]
        return max(named, key=lambda job: job.attempt) if named else None

    def start(self, name: str, command: tuple[str, ...], wheel: Path, python: str, env: Mapping[str, str]) -> Job:
        """Start the next attempt of a job.

        Args:
            name: of the job.
            command: of maskray, without that word.
            wheel: to run from, without requirements.
            python: the interpreter on the head.
            env: environment of the command.
        """
        last = self.latest(name)
        attempt = last.attempt + 1 if last else 1
        self._client.submit_job(
            entrypoint=shlex.join([python, "-m", "pipelines", *command]),
            submission_id=f"{name}-{attempt}",
            metadata={_NAME_KEY: name, _COMMAND_KEY: shlex.join(["maskray", *command])},
            runtime_env={
                "py_modules": [str(wheel)],
                "env_vars": {"PYTHONUNBUFFERED": "1", **env},
            },
        )
        return self.job(f"{name}-{attempt}")

    def job(self, job_id: str) -> Job:
        """An attempt by its id."""
        return _job(self._client.get_job_info(job_id))

    def stop(self, job_id: str) -> None:
        """Ask an attempt to end."""
        self._client.stop_job(job_id)

    def follow(self, job_id: str, say: Say) -> Job:
        """Pass on what an attempt writes, until it ends.

        A connection that breaks is taken up again, without saying anything twice.

        Raises:
            JobError: the cluster has not answered for a minute.
        """
        shown, answered = 0, time.monotonic()
        while True:
            try:
                job = self.job(job_id)
                answered = time.monotonic()
                if job.is_over:
                    break
                shown = asyncio.run(self._tail(job_id, shown, say))
            except (OSError, RuntimeError) as error:
                if time.monotonic() - answered > _LOST_AFTER_S:
                    raise JobError(
                        f"{self.url} has not answered for {_LOST_AFTER_S:g} s ({_first_line(error)}): the job "
                        f"may go on; follow it with `maskray jobs --attach {job_id}`"
                    ) from error
            time.sleep(_POLL_S)
        rest = self._client.get_job_logs(job_id)[shown:]
        if rest:
            say(rest)
        return job

    async def _tail(self, job_id: str, shown: int, say: Say) -> int:
        seen = 0
        async for text in self._client.tail_job_logs(job_id):
            fresh = text[max(shown - seen, 0) :]
            seen += len(text)
            if fresh:
                say(fresh)
                shown = seen
        return shown


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
