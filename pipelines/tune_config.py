"""What the tune command is told, and the sweep it makes, checked against its data before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipelines import storage, sweep_space, sweeps, train
from pipelines.coco_metrics import KEYPOINT_STAT_NAMES, STAT_NAMES
from pipelines.coco_rows import NUM_KEYPOINTS
from pipelines.config import TrainConfig
from pipelines.loop import METRICS
from pipelines.manifest import ClassInfo
from pipelines.presets import preset
from pipelines.sweep_search import Algorithm, Scheduler, require_mutable, searcher, space
from pipelines.sweep_trial import Plan

_MEASURED = {"mask": STAT_NAMES, "box": STAT_NAMES, "keypoints": KEYPOINT_STAT_NAMES}
_METRICS = (
    *(f"{kind}/{name}" for kind, names in _MEASURED.items() for name in names if name.startswith("AP")),
    *(name for name in METRICS if name.startswith("loss/")),
)


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
        predictions: of `maskray predict` on `pool`, where floors are compared.
        pool: prepared data set of unlabelled pictures.
        floors: least scores of pseudo-labels; each gets a training set of its own, made before the trials.
        trials: how many; a grid takes all its combinations.
        algorithm: how choices are made; left out, that of the named sweep, else random.
        scheduler: which trials are stopped early, or, with pbt, go on from better ones; left out, that of the named
            sweep, else asha.
        metric: that decides: mask/AP, box/AP, keypoints/AP, mask/AP50, ... (larger is better) or loss/total (smaller
            is); empty takes that of the named sweep, else mask/AP.
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
    predictions: str = ""
    pool: str = ""
    floors: tuple[float, ...] = ()
    trials: int = 16
    algorithm: Algorithm | None = None
    scheduler: Scheduler | None = None
    metric: str = ""
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
        if self.metric and self.metric not in _METRICS:
            raise ValueError(f"metric is {self.metric!r}, wanted one of {', '.join(_METRICS)}")
        for name in ("train", "out"):
            if not getattr(self, name):
                wanted = "prepared data sets" if name == "train" else "a folder"
                raise ValueError(f"a sweep needs --{name}: give {wanted}")
        self._check_floors()
        if self.metric.partition("/")[0] in _MEASURED and not self.val:
            raise ValueError(f"the metric {self.metric} needs --val: give a prepared data set, or --metric loss/total")

    def _check_floors(self) -> None:
        if self.floors and not (self.predictions and self.pool and len(self.train) == 1):
            raise ValueError("floors need --predictions and --pool, and one --train: the labelled set")
        if len(set(self.floors)) < len(self.floors):
            raise ValueError(f"floors are {list(self.floors)}, wanted each once")

    @property
    def mode(self) -> str:
        """Whether the metric is to be large or small."""
        return "min" if self.metric.startswith("loss/") else "max"


def settled(config: TuneConfig, name: str) -> TuneConfig:
    """The sweep with what its user left open, as the named sweep has it.

    Args:
        config: the sweep.
        name: of a named sweep; empty takes `search` alone.

    Raises:
        ValueError: there is none of that name, or its metric cannot be measured.
    """
    known = sweeps.named(name)
    return dataclasses.replace(
        config,
        metric=config.metric or known.metric,
        algorithm=config.algorithm or known.algorithm,
        scheduler=config.scheduler or known.scheduler,
    )


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
    config = settled(config, name)
    base = base_run(config)
    dimensions = (*sweeps.named(name).make(base), *map(sweep_space.parse_dimension, config.search))
    sweep_space.check(base, dimensions)
    # What cannot be searched is refused here, before Ray starts and the folder is claimed.
    algorithm = config.algorithm or Algorithm.RANDOM
    space(dimensions, algorithm)
    searcher(algorithm, config.mode, config.seed, 1)
    if config.scheduler is Scheduler.PBT:
        require_mutable(dimensions)
    _, _, classes = train.resolve(dataclasses.replace(base, out=storage.child_uri(base.out, "check")))
    _require_heads(config.metric, base, dimensions, classes)
    is_population = config.scheduler is Scheduler.PBT
    return Plan(base, dimensions, config.metric, config.reports, config.gpu, is_population)


def _require_heads(
    metric: str, base: TrainConfig, dimensions: Sequence[sweep_space.Dimension], classes: Sequence[ClassInfo]
) -> None:
    """Refuse runs that do not find what the metric measures, or learn what the data do not show."""
    kind = metric.partition("/")[0]
    points = {len(info.keypoints) for info in classes if info.keypoints}
    # COCO's metric knows persons of 17 keypoints alone.
    if kind == "keypoints" and points != {NUM_KEYPOINTS}:
        raise ValueError(
            f"the metric {metric} needs classes of {NUM_KEYPOINTS} keypoints, the data have "
            f"{sorted(points) or 'none'}: prepare a keypoints json, or choose another --metric"
        )
    for choice, run in sweep_space.variants(base, dimensions):
        finds = {"mask": run.detector.mask.enabled, "keypoints": run.detector.keypoint.enabled}
        if not finds.get(kind, True):
            raise ValueError(f"{choice} finds no {kind}, and the metric is {metric}: choose another --metric")
        wanted = run.detector.keypoint.num_keypoints
        if finds["keypoints"] and not 0 < max(points, default=0) <= wanted:
            raise ValueError(
                f"{choice} learns {wanted} keypoints, the data have {sorted(points) or 'none'}: prepare a keypoints "
                "json"
            )
