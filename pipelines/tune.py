"""The tune command: many trainings that differ in a few settings, by Ray Tune, and what came of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from pipelines import commit, storage, sweep_space, sweep_tracking, train
from pipelines.coco_metrics import STAT_NAMES
from pipelines.config import TrainConfig
from pipelines.loop import METRICS
from pipelines.presets import preset
from pipelines.ray_session import ray_session
from pipelines.sweep_results import SweepResult, Trial, finish, load_trial
from pipelines.sweep_runner import Search, concurrency, fit, require_dashboard
from pipelines.sweep_search import Algorithm, Scheduler, searcher, space
from pipelines.sweep_trial import Plan, trial_config
from pipelines.sweeps import sweep

_SWEEP_FILE = "sweep.json"
_KIND = "sweep"
_FORMAT_VERSION = 1
Say = Callable[[str], None]


class SweepConflictError(ValueError):
    """The output folder holds another sweep."""


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Vary settings of a preset over many trainings: maskray tune SWEEP ..., or maskray tune --search ...

    Attributes:
        preset: the run that trials vary.
        train: prepared data sets to train on.
        val: prepared data set that checkpoints are measured on; not needed for the metric loss/total.
        out: folder or URI of the sweep; the same command with the same folder goes on where it stopped.
        search: settings to vary: NAME=loguniform(a,b), uniform(a,b), randint(a,b) or choice(x,y,...).
        set: settings of every trial: NAME=VALUE.
        trials: how many; a grid takes all its combinations.
        algorithm: how choices are made.
        scheduler: which trials are stopped early, or, with pbt, go on from better ones.
        metric: that decides: mask/AP, box/AP, mask/AP50, ... (larger is better) or loss/total (smaller is).
        reports: checkpoints a trial that are measured, its last included.
        workers: training processes of each trial.
        cpus_per_worker: CPU cores and threads of each.
        gpu: one GPU a worker.
        max_concurrent: trials at the same time; 0 takes as many as the cluster holds.
        pictures_per_s: speed of one worker, if known; turns the estimated pictures into hours.
        seed: of choices and trainings.
        tracking_uri: MLflow server or sqlite:///FILE; empty is mlflow.db in `out`.
        address: Ray cluster to use; empty starts one on this machine.
    """

    preset: str = "small_mask_rcnn_r18_fpn"
    train: tuple[str, ...] = ()
    val: str = ""
    out: str = ""
    search: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    trials: int = 16
    algorithm: Algorithm = Algorithm.RANDOM
    scheduler: Scheduler = Scheduler.ASHA
    metric: str = "mask/AP"
    reports: int = 4
    workers: int = 1
    cpus_per_worker: int = 1
    gpu: bool = False
    max_concurrent: int = 0
    pictures_per_s: float = 0.0
    seed: int = 0
    tracking_uri: str = ""
    address: str = ""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        for name in ("trials", "reports", "workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("max_concurrent", "pictures_per_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        measured = [f"{kind}/{name}" for kind in ("mask", "box") for name in STAT_NAMES if name.startswith("AP")]
        logged = [name for name in METRICS if name.startswith("loss/")]
        if self.metric not in (*measured, *logged):
            raise ValueError(f"metric is {self.metric!r}, wanted one of {', '.join((*measured, *logged))}")
        for name in ("train", "out"):
            if not getattr(self, name):
                wanted = "prepared data sets" if name == "train" else "a folder"
                raise ValueError(f"a sweep needs --{name}: give {wanted}")
        if self.metric in measured and not self.val:
            raise ValueError(f"the metric {self.metric} needs --val: give a prepared data set, or --metric loss/total")

    @property
    def mode(self) -> str:
        """Whether the metric is to be large or small."""
        return "min" if self.metric.startswith("loss/") else "max"


def base_run(config: TuneConfig) -> TrainConfig:
    """The run that trials vary.

    Raises:
        ValueError: no such preset, or a setting that does not fit.
    """
    out = storage.canonical_uri(config.out)
    if "://" in out and not config.tracking_uri:
        raise ValueError(f"{out} cannot hold the sweep's database: give --tracking-uri, such as http://mlflow:5000")
    database = f"sqlite:///{out}/mlflow.db" if "://" not in out else ""
    base = preset(config.preset)
    settings: dict[str, Any] = {
        "train": [storage.canonical_uri(uri) for uri in config.train],
        "val": storage.canonical_uri(config.val) if config.val else "",
        "out": storage.child_uri(out, "trials"),
        "seed": config.seed,
        "tracking_uri": config.tracking_uri or database,
        "execution.workers": config.workers,
        "execution.cpus_per_worker": config.cpus_per_worker,
        "execution.gpu": config.gpu,
    }
    settings |= dict(sweep_space.parse_setting(text) for text in config.set)
    return sweep_space.with_settings(base, settings)


def plan_of(config: TuneConfig, name: str) -> Plan:
    """The plan of a sweep, checked against its data.

    Args:
        config: the sweep.
        name: of a named sweep; empty takes `search` alone.

    Raises:
        ValueError: names, values or data that do not fit.
    """
    base = base_run(config)
    dimensions = (*(sweep(name, base) if name else ()), *map(sweep_space.parse_dimension, config.search))
    sweep_space.check(base, dimensions)
    # What cannot be searched is refused here, before Ray starts and the folder is claimed.
    space(dimensions, config.algorithm)
    searcher(config.algorithm, config.mode, config.seed, 1)
    train.resolve(dataclasses.replace(base, out=storage.child_uri(base.out, "check")))
    is_population = config.scheduler is Scheduler.PBT
    return Plan(base, dimensions, config.metric, config.reports, config.gpu, is_population)


class Estimate(NamedTuple):
    """What a sweep may cost.

    Attributes:
        trials: how many there are.
        pictures: of all trials to their last steps.
        hours: of one worker for these; 0 where its speed is not known.
    """

    trials: int
    pictures: int
    hours: float


def _longest(plan: Plan) -> TrainConfig:
    """The trial that sees the most pictures."""
    sizes = ("optim.steps", "optim.batch")
    options = [
        one.ends() if any(name in sizes for name in one.settings(one.ends()[0])) else one.ends()[:1]
        for one in plan.dimensions
    ]
    names = [one.name for one in plan.dimensions]
    runs = [
        trial_config(plan, dict(zip(names, choices, strict=True)), "longest") for choices in itertools.product(*options)
    ]
    return max(runs, key=lambda run: run.optim.steps * run.optim.batch)


def estimate(config: TuneConfig, plan: Plan) -> Estimate:
    """An upper bound: no trial is stopped early, and each is as long as the longest."""
    count = config.trials
    if config.algorithm is Algorithm.GRID:
        count = math.prod(len(dimension.ends()) for dimension in plan.dimensions)
    run = _longest(plan)
    pictures = count * run.optim.steps * run.optim.batch
    return Estimate(count, pictures, pictures / config.pictures_per_s / 3600 if config.pictures_per_s else 0.0)


def _claim(config: TuneConfig, plan: Plan) -> None:
    """Make the folder this sweep's, or find that it is already.

    Raises:
        SweepConflictError: it holds another sweep, or something else.
    """
    identity = {
        "base": {**plan.base.identity(), "train": list(plan.base.train), "val": plan.base.val},
        "dimensions": [repr(dimension) for dimension in plan.dimensions],
        "metric": config.metric,
        "algorithm": config.algorithm.value,
        "scheduler": config.scheduler.value,
        "trials": config.trials,
        "reports": config.reports,
    }
    filesystem, folder = storage.open_uri(config.out)
    path = storage.join(folder, _SWEEP_FILE)
    data = commit.sealed(_KIND, _FORMAT_VERSION, {"identity": identity})
    if not storage.is_file(filesystem, path):
        if storage.is_folder(filesystem, folder) and storage.list_files(filesystem, folder):
            raise SweepConflictError(f"{config.out} holds other files and no sweep: choose another --out")
        commit.write_file(filesystem, path, data, exclusive=True)
    elif storage.read_bytes(filesystem, path) != data:
        raise SweepConflictError(
            f"{config.out} holds a sweep with other settings: repeat its command to go on with it, or choose another "
            "--out"
        )


def run(config: TuneConfig, name: str, say: Say) -> SweepResult:
    """Run all trials that are not finished yet, and write what came of them.

    Args:
        config: the sweep.
        name: of a named sweep; empty takes `search` alone.
        say: takes lines about the sweep for people.

    Raises:
        ValueError: names, values, data or the cluster do not fit; the message says what to do.
    """
    plan = plan_of(config, name)
    cost = estimate(config, plan)
    say(
        f"at most {cost.trials} trials, {cost.pictures} pictures in all, before any is stopped early"
        + (f": {cost.hours:.1f} hours of one worker" if cost.hours else " (--pictures-per-s turns that into hours)")
    )
    _claim(config, plan)
    search = Search(config.algorithm, config.scheduler, config.mode, config.trials, config.seed)
    longest = _longest(plan).optim
    with ray_session(config.address or None, dashboard=True):
        require_dashboard()
        at_once = concurrency(plan.base.execution, config.max_concurrent, ray.cluster_resources())
        say(f"{at_once} at the same time, each with {config.workers} workers")
        found = fit(plan, search, longest.steps * longest.batch, config.out, at_once, say)
    trials = [_trial(plan, one) for one in found]
    result = finish(config.out, plan, config.mode, trials)
    settings = {"sweep": name or "search", **dataclasses.asdict(config)}
    sweep_tracking.record(plan.base.tracking_uri, f"sweep {name}".strip(), settings, config.metric, result)
    return result


def _trial(plan: Plan, found: Any) -> Trial:
    """A trial as Ray Tune tells of it, with what it left in its folder."""
    trial_id = str(found.metrics.get("trial_id") or found.path.rsplit("/", 1)[-1])
    run = str(found.metrics.get("run") or storage.child_uri(plan.base.out, trial_id))
    error = (str(found.error).strip().splitlines() or ["unknown"])[-1] if found.error else ""
    return load_trial(trial_id, run, found.config or {}, error)
