"""The commands about clusters and many runs: doctor, submit, jobs, tune."""

import time
from collections.abc import Sequence
from typing import Any

from pipelines.terminal import parse, show, table, write


def doctor(arguments: Sequence[str]) -> None:
    """Check a cluster; ends the process with 1 where something is wrong."""
    from pipelines import doctor as command

    config = parse(command.DoctorConfig, arguments, "doctor")
    if config.is_remote:
        # Only a process inside the cluster sees its nodes: the same command looks there, as a job.
        options = ["--address", config.address, *(["--insecure"] if config.insecure else [])]
        options += ["--operators", config.operators.value, "--python", config.python]
        options += ["--wheel", config.wheel] if config.wheel else []
        wanted = ["--shared", config.shared] if config.shared else []
        wanted += ["--cpus", str(config.cpus), "--gpus", str(config.gpus)]
        submit([*options, "--", "doctor", *wanted, *(["--insecure"] if config.insecure else [])], ("doctor",))
        return
    found = command.run(config)
    show(table(("check", "", "where", "found"), [
        (row.check, "FAILED" if row.advice else "ok", row.where, row.found) for row in found
    ]))  # fmt: skip
    failed = [row for row in found if row.advice]
    for row in failed:
        show(f"{row.check} of {row.where}: {row.advice}")
    if failed:
        raise SystemExit(1)


def submit(arguments: Sequence[str], known: tuple[str, ...]) -> None:
    """Run a command as a job, and end as it ended.

    Args:
        arguments: options, --, and the command.
        known: names of all commands.
    """
    from pipelines import jobs as command

    own, words = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, words = own[:at], own[at + 1 :]
    config = parse(command.SubmitConfig, own, "submit")
    can_run = tuple(name for name in known if name not in ("submit", "jobs"))
    job = command.run(config, command.clean_command(tuple(words), can_run), show, write)
    _end_as(job)


def _end_as(job: Any) -> None:
    """Say how a job is, and end this process as it ended."""
    show(f"{job.id}: {job.status}{f' ({job.message})' if job.status == 'FAILED' else ''}")
    if job.is_over and job.status != "SUCCEEDED":
        raise SystemExit(job.exit_code or 1)


def jobs(arguments: Sequence[str]) -> None:
    """List, follow or stop jobs."""
    from pipelines import jobs as command
    from pipelines.progress import clock

    config = parse(command.JobsConfig, arguments, "jobs")
    found = command.manage(config, show, write)
    if config.attach:
        _end_as(found[0])
        return
    rows = [
        (job.id, job.status, clock((job.ended_s or time.time()) - job.started_s) if job.started_s else "-", job.command)
        for job in found
    ]
    show(table(("job", "state", "time", "command"), rows))


def tune(arguments: Sequence[str]) -> None:
    """Run a sweep; ends the process with 1 where every trial failed."""
    from pipelines import tune as command
    from pipelines.sweeps import SWEEPS
    from pipelines.tune_config import TuneConfig, settled

    words = list(arguments)
    named = bool(words) and not words[0].startswith("-")
    if named and words[0] not in SWEEPS:
        raise ValueError(
            f"tune needs a sweep, got {words[0]!r}: one of {', '.join(SWEEPS)}, or --search NAME=KIND(...)"
        )
    name = words.pop(0) if named else ""
    config = settled(parse(TuneConfig, words, f"tune {name}".strip()), name)
    result = command.run(config, name, show)
    names = list(result.trials[0].choices) if result.trials else []
    rows = [
        (trial.id, _short(trial.value), trial.points[-1].samples if trial.points else 0,
         *(_short(trial.choices.get(key)) for key in names), trial.error)
        for trial in result.trials
    ]  # fmt: skip
    show(table(("trial", config.metric, "pictures", *names, "failed"), rows))
    show(f"page: {result.page}")
    if not result.best:
        raise SystemExit(1)
    show(f"best: maskray train --config {result.best} --out ...")


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
