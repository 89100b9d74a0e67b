"""Commands of maskray as Ray jobs: submit one, follow it, try again, stop it.

A job is named by its command. While one of that name runs, the same command follows it instead of starting a second;
afterwards it starts the next attempt, which goes on where the last one stopped, as every command does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines import job_wheel, secrets
from pipelines.job_cluster import Cluster, Job, JobError, Say, Way, as_text
from pipelines.job_wheel import Operators


@dataclasses.dataclass(frozen=True)
class SubmitConfig:
    """Run a command of maskray on a cluster and follow it: maskray submit [options] -- COMMAND ...

    Attributes:
        address: URL of the cluster's dashboard; empty takes RAY_API_SERVER_ADDRESS, then http://127.0.0.1:8265.
        name: of the job; empty makes one from the command, so that the same command is the same job.
        wheel: a built wheel of maskray to send; empty builds this source tree (once for each state of it).
        operators: the compiled operators that the job uses: those of the wheel, or those installed on the nodes, which
            have CUDA where the image does and this machine does not.
        retries: further attempts, inside the job, after one that failed for another reason than bad input.
        detach: do not wait for the end.
        env: NAME=VALUE to set in the job; not for secrets, which everyone who reaches the cluster could read.
        python: the interpreter on the nodes that has torch and Ray.
        insecure: accept a cluster that asks for no token.
    """

    address: str = ""
    name: str = ""
    wheel: str = ""
    operators: Operators = Operators.WHEEL
    retries: int = 0
    detach: bool = False
    env: tuple[str, ...] = ()
    python: str = "python"
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without the cluster."""
        if self.retries < 0:
            raise ValueError(f"retries must be >= 0, got {self.retries}")
        if self.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", self.name):
            raise ValueError(f"name is {self.name!r}, wanted at most 63 letters, digits, dots, dashes and underscores")
        for pair in self.env:
            name, separator, value = pair.partition("=")
            if not separator or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"env takes NAME=VALUE, got {pair!r}")
            if secrets.is_name_of_secret(name) or secrets.has_password(value):
                raise ValueError(
                    f"env {name} looks like a secret, and a job's environment is logged: give it to the nodes instead"
                )


@dataclasses.dataclass(frozen=True)
class JobsConfig:
    """List the jobs of a cluster, or follow or stop one.

    Attributes:
        attach: name of a job to follow to its end.
        stop: name of a job to stop; its command goes on there when it is submitted again.
        address: URL of the cluster's dashboard; empty takes RAY_API_SERVER_ADDRESS, then http://127.0.0.1:8265.
        insecure: accept a cluster that asks for no token.
    """

    attach: str = ""
    stop: str = ""
    address: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check that one thing is asked."""
        if self.attach and self.stop:
            raise ValueError("jobs takes --attach or --stop, got both")


def name_of(command: tuple[str, ...]) -> str:
    """The name that a command has by itself: its first word and a hash of all of them."""
    digest = hashlib.sha256("\0".join(command).encode()).hexdigest()
    return f"{command[0]}-{digest[:10]}"


def clean_command(words: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The command without the word maskray.

    Raises:
        JobError: none of the known commands, or one with a password in it.
    """
    command = words[1:] if words[:1] == ("maskray",) else words
    if not command or command[0] not in known:
        got = repr(command[0]) if command else "none"
        raise JobError(f"submit needs a command after --, got {got}: one of {', '.join(known)}")
    for word in command:
        if secrets.has_password(word):
            raise JobError(
                "the command holds a password in a URI, and commands are logged: give it to the nodes instead"
            )
    return command


@contextlib.contextmanager
def _job_wheel(given: str, operators: Operators) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="maskray-job-") as folder:
        yield job_wheel.for_job(Path(given) if given else job_wheel.build(), Path(folder), operators)


def run(config: SubmitConfig, command: tuple[str, ...], say: Say, show_log: Say) -> Job:
    """Submit a command and follow it to its end, unless it runs already: then only follow it.

    Args:
        config: where and how.
        command: of maskray, without that word.
        say: takes lines about the job.
        show_log: takes what the job writes.

    Returns:
        The last attempt; still running with `detach`.

    Raises:
        ValueError: the cluster, the wheel or the command do not fit; the message says what to do.
    """
    cluster = Cluster(config.address, insecure=config.insecure)
    name = config.name or name_of(command)
    last = cluster.latest(name)
    if last and not last.is_over:
        if last.command != as_text(command):
            raise JobError(f"{last.id} runs another command ({last.command}): stop it first, or choose another --name")
        say(f"{last.id} runs already: following it")
        job = last
    else:
        env = dict(pair.split("=", 1) for pair in config.env)
        with _job_wheel(config.wheel, config.operators) as wheel:
            job = cluster.start(name, command, config.retries, wheel, Way(config.python, env))
            say(f"submitted {job.id} to {cluster.url}: {as_text(command)}\n  code: {wheel.name}")
    if config.detach:
        return job
    try:
        return cluster.follow(job.id, show_log)
    except KeyboardInterrupt:
        say(f"{job.id} goes on; follow it with `maskray jobs --attach {name}`, stop it with --stop {name}")
        return cluster.job(job.id)


def manage(config: JobsConfig, say: Say, show_log: Say) -> list[Job]:
    """List, follow or stop jobs.

    Returns:
        The jobs: all of them, or the one that was followed or stopped.

    Raises:
        JobError: there is no job of that name.
    """
    cluster = Cluster(config.address, insecure=config.insecure)
    wanted = config.attach or config.stop
    if not wanted:
        return cluster.jobs()
    job = cluster.find(wanted)
    if job is None:
        names = sorted({known.name for known in cluster.jobs()})
        raise JobError(f"{cluster.url} has no job {wanted!r}: it has {', '.join(names) or 'none'}")
    if config.attach:
        return [cluster.follow(job.id, show_log)]
    cluster.stop(job.id)
    say(f"asked {job.id} to end")
    return [cluster.job(job.id)]
