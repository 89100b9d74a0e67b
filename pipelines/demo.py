"""The whole road on a generated data set: the real commands, one after the other, and one page at the end."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipelines import (
    commit,
    distill,
    distill_config,
    evaluate,
    inspect,
    predict,
    prepare,
    prepare_config,
    shapes,
    storage,
    train,
)
from pipelines.config import TrainConfig
from pipelines.dataset import Dataset
from pipelines.gallery import save_gallery
from pipelines.presets import preset
from pipelines.ray_session import ray_session
from pipelines.report import save_report
from pipelines.run_report import load_run

_ROWS_PER_SHARD = 32
_HOLDOUT = 0.05
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Generate pictures of overlapping shapes, train a teacher, label a pool with it, train a student on both.

    Attributes:
        out: local folder of everything the demo makes; the same command goes on where it stopped.
        train: labelled training pictures.
        val: held-out pictures.
        unlabelled: pictures of the pool nobody labelled.
        steps: training steps of the teacher.
        student_steps: training steps of the student; more, since its data are more.
        workers: training processes; 0 takes two, or one on a machine with one core.
        seed: of the pictures and of the training.
    """

    out: str = "demo"
    train: int = 240
    val: int = 60
    unlabelled: int = 240
    steps: int = 320
    student_steps: int = 420
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("train", "val", "unlabelled", "steps", "student_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"demo needs {name} >= 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"demo needs workers >= 0, got {self.workers}")
        if not self.out or "://" in self.out:
            raise ValueError(f"demo writes to a local folder, got {self.out!r}: give a path")


class DemoResult(NamedTuple):
    """What the demo measured, and its page."""

    teacher: evaluate.Evaluation
    student: evaluate.Evaluation
    report: str


class _Stages:
    """Names the stages as they begin, and keeps what each took over restarts."""

    def __init__(self, folder: Path, say: Say, count: int) -> None:
        self._path, self._say, self._count = str(folder / "seconds.json"), say, count
        self._filesystem = storage.open_uri(self._path)[0]
        known = storage.is_file(self._filesystem, self._path)
        self.seconds: dict[str, float] = json.loads(storage.read_bytes(self._filesystem, self._path)) if known else {}
        self._number = 0

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        self._number += 1
        self._say(f"[{self._number}/{self._count}] {name}: {what}")
        started = time.monotonic()
        yield
        # A stage that an earlier run finished takes no time now; what it took then is what counts.
        self.seconds.setdefault(name, round(time.monotonic() - started, 1))
        commit.write_file(self._filesystem, self._path, json.dumps(self.seconds, indent=1).encode())


def _training(config: DemoConfig, folder: Path, name: str, steps: int, sets: tuple[str, ...]) -> TrainConfig:
    base = preset("small_mask_rcnn_r18_fpn")
    workers = config.workers or min(2, os.cpu_count() or 1)
    return dataclasses.replace(
        base,
        train=tuple(str(folder / "data" / part) for part in sets),
        out=str(folder / name),
        # The distillation paper's 6 : 4 of labelled and pseudo-labelled pictures in every batch.
        ratio=(6, 4) if len(sets) == 2 else (),
        # The teacher does not see a few pictures, so that its labels can be audited on them.
        holdout=0.0 if len(sets) == 2 else _HOLDOUT,
        seed=config.seed,
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        optim=dataclasses.replace(base.optim, steps=steps),
        execution=dataclasses.replace(base.execution, workers=workers, report_every=10, checkpoint_every=200),
    )


def _prepare(config: DemoConfig, folder: Path, say: Say) -> None:
    raw = folder / "raw"
    annotations = raw / "annotations"
    plans: dict[str, prepare_config.PrepareConfig] = {
        part: prepare_config.PrepareCoco(
            images=str(raw / f"{part}2017"), annotations=str(annotations / f"instances_{part}2017.json"),
            out=str(folder / "data" / part), rows_per_shard=_ROWS_PER_SHARD, seed=config.seed,
        )
        for part in ("train", "val")
    }  # fmt: skip
    plans["pool"] = prepare_config.PrepareImages(
        images=str(raw / "unlabeled2017"),
        out=str(folder / "data" / "pool"),
        rows_per_shard=_ROWS_PER_SHARD,
        seed=config.seed,
    )
    for name, plan in plans.items():
        made = prepare.run(plan)
        say(f"  {name}: {made.rows_written} pictures, {made.instances_kept} objects, {made.rows_rejected} rejected")


def _evaluate(config: DemoConfig, folder: Path, name: str, result: train.TrainResult) -> evaluate.Evaluation:
    found = evaluate.run(
        evaluate.EvaluateConfig(
            checkpoint=result.checkpoint, data=str(folder / "data" / "val"), out=str(folder / f"{name}_val")
        )
    )
    train.log_evaluation(result, found, config.steps if name == "teacher" else config.student_steps)
    return found


def _distill(folder: Path, teacher: train.TrainResult, say: Say) -> None:
    pool, labels = str(folder / "data" / "pool"), str(folder / "pool_predictions")
    predict.run(predict.PredictConfig(checkpoint=teacher.checkpoint, data=pool, out=labels))
    chosen = distill.run(
        distill_config.DistillConfig(
            predictions=labels,
            pool=pool,
            labelled=str(folder / "data" / "train"),
            out=str(folder / "data" / "pseudo"),
            val=str(folder / "data" / "val"),
            teacher=teacher.checkpoint,
            audit=True,
        )
    )
    kept = sum(row.kept for row in chosen.selection)
    say(f"  {kept} pseudo-labels on {chosen.manifest.rows_written} of {len(Dataset(pool))} pictures")
    if chosen.audit is not None and chosen.audit.total.precision is not None:
        total = chosen.audit.total
        say(f"  audit on {chosen.audit.pictures} held-out pictures: {total.matched} of {total.labels} labels are right")


def _report(config: DemoConfig, folder: Path, seconds: dict[str, float]) -> str:
    runs = [load_run(str(folder / name), name, str(folder / f"{name}_val")) for name in ("teacher", "student")]
    intro = (
        f"A teacher learned from {config.train} labelled pictures, labelled {config.unlabelled} more by itself, and a "
        f"student learned from both. Measured on {config.val} held-out pictures, with one seed ({config.seed})."
    )
    return save_report("maskray demo", runs, str(folder / "report.html"), intro, seconds)


def _summary(folder: Path, found: dict[str, evaluate.Evaluation], seconds: dict[str, float]) -> None:
    body: dict[str, object] = {
        name: {kind: part.numbers() for kind, part in (("box", of.box), ("mask", of.mask)) if part is not None}
        for name, of in found.items()
    }
    body["seconds"] = seconds
    path = str(folder / "summary.json")
    commit.write_file(storage.open_uri(path)[0], path, json.dumps(body, indent=1).encode())


def run(config: DemoConfig, say: Say) -> DemoResult:
    """Walk the whole road; leaves report.html and summary.json in the folder.

    Args:
        config: sizes and folder.
        say: takes a line for people at each stage.

    Raises:
        ValueError: the folder holds something else, or a stage could not go on; the message says what to do.
    """
    folder = Path(config.out).absolute()
    stages = _Stages(folder, say, 8)
    with stages.stage(
        "generate", f"{config.train} + {config.val} labelled and {config.unlabelled} unlabelled pictures"
    ):
        shapes.generate(
            shapes.ShapesConfig(train=config.train, val=config.val, unlabelled=config.unlabelled, seed=config.seed),
            folder / "raw",
        )
    with ray_session():
        with stages.stage("prepare", "COCO json and bare pictures to checked shards"):
            _prepare(config, folder, say)
        with stages.stage("inspect", "check every hash, picture and mask again; draw a gallery"):
            data = str(folder / "data" / "train")
            problems = inspect.run(inspect.InspectConfig(uri=data, verify=True)).problems
            say(f"  {len(problems)} problems; {save_gallery(Dataset(data), str(folder / 'gallery.html'))}")
        with stages.stage("train teacher", f"{config.steps} steps on the labelled pictures"):
            teacher = train.run(_training(config, folder, "teacher", config.steps, ("train",)))
        with stages.stage("evaluate teacher", "COCO AP on held-out pictures"):
            of_teacher = _evaluate(config, folder, "teacher", teacher)
        with stages.stage("distill", "label the pool, keep as many objects a picture as people annotated"):
            _distill(folder, teacher, say)
        with stages.stage("train student", f"{config.student_steps} steps on labelled and pseudo-labelled pictures"):
            student = train.run(_training(config, folder, "student", config.student_steps, ("train", "pseudo")))
        with stages.stage("evaluate student", "COCO AP on the same held-out pictures"):
            of_student = _evaluate(config, folder, "student", student)
    report = _report(config, folder, stages.seconds)
    _summary(folder, {"teacher": of_teacher, "student": of_student}, stages.seconds)
    return DemoResult(of_teacher, of_student, report)
