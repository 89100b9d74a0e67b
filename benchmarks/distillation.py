"""Does a student beat its teacher for what it was taught, and not for having been trained longer?

    PYTHONPATH=. python benchmarks/distillation.py [--seeds 3] [--labels 0.1] [--out FOLDER]

For each seed and share of labels: a teacher learns from the labelled pictures, labels the rest, and a student learns
from both for a longer schedule. A control is trained for the student's schedule on the labels alone, so that student
minus control is what the pseudo-labels are worth. `--full` adds an upper bound, trained on the true labels of all
pictures. Everything is generated; pictures, weights and order follow from the seed. All runs use the same recipe, and
AP is COCO's on the same held-out pictures. The teacher looks at the pool in several views; what it is sure of is kept,
what it is in doubt about is neither object nor background, and the student sees pseudo-labelled pictures in changed
colours. The default takes about an hour on two cores; the same command goes on where it was stopped.
`--labels 0.05 0.1 0.25 0.5 --full` draws AP over the share of labels.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines import distill, distill_config, evaluate, predict, prepare, prepare_config, shapes, train
from pipelines.config import TrainConfig
from pipelines.presets import preset
from pipelines.ray_session import ray_session
from pipelines.terminal import show, table

ROWS_PER_SHARD = 32


class Outcome(NamedTuple):
    """Mask AP in percent of one seed at one share of labels; None where it was not trained."""

    share: float
    seed: int
    teacher: float
    control: float
    student: float
    full: float | None

    @property
    def gain(self) -> float:
        """What the pseudo-labels are worth."""
        return self.student - self.control


class Bench:
    """One seed at one share of labels, in its own folder."""

    def __init__(self, options: argparse.Namespace, share: float, seed: int) -> None:
        self.options, self.share, self.seed = options, share, seed
        self.folder = Path(options.out).absolute() / f"share-{share:g}" / f"seed-{seed}"

    def data(self, name: str) -> str:
        return str(self.folder / "data" / name)

    def prepare(self) -> None:
        """Generate and prepare: labelled and validation pictures, the pool, and the pool with its true labels."""
        labelled = round(self.share * self.options.pictures)
        raw = self.folder / "raw"
        config = shapes.ShapesConfig(
            train=labelled, val=self.options.val, unlabelled=self.options.pictures - labelled, seed=self.seed
        )
        shapes.generate(config, raw)
        files = {"train": "instances_train2017", "val": "instances_val2017", "truth": "hidden_unlabeled2017"}
        for name, file in files.items():
            split = "unlabeled" if name == "truth" else name
            prepare.run(
                prepare_config.PrepareCoco(
                    images=str(raw / f"{split}2017"), annotations=str(raw / "annotations" / f"{file}.json"),
                    out=self.data(name), rows_per_shard=ROWS_PER_SHARD, seed=self.seed,
                )
            )  # fmt: skip
        images = str(raw / "unlabeled2017")
        prepare.run(prepare_config.PrepareImages(images=images, out=self.data("pool"), rows_per_shard=ROWS_PER_SHARD))

    def train(self, name: str, steps: int, sets: tuple[str, ...]) -> tuple[str, float]:
        """Train and measure one run; its checkpoint and mask AP in percent."""
        result = train.run(self.run_config(name, steps, sets))
        found = evaluate.run(
            evaluate.EvaluateConfig(
                result.checkpoint, self.data("val"), str(self.folder / f"{name}_val"), gpu=self.options.device == "cuda"
            )
        )
        assert found.mask is not None
        return result.checkpoint, 100 * found.mask.AP

    def run_config(self, name: str, steps: int, sets: tuple[str, ...]) -> TrainConfig:
        """The recipe all runs share."""
        base = preset("small_mask_rcnn_r18_fpn")
        return dataclasses.replace(
            base,
            train=tuple(self.data(part) for part in sets),
            out=str(self.folder / name),
            seed=self.seed,
            pseudo=dataclasses.replace(base.pseudo, strong="pseudo" in sets),
            tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}",
            optim=dataclasses.replace(base.optim, steps=steps),
            execution=dataclasses.replace(
                base.execution,
                workers=self.options.workers,
                gpu=self.options.device == "cuda",
                report_every=10,
                checkpoint_every=steps,
            ),
        )

    def distill(self, teacher: str) -> None:
        """Label the pool."""
        labels = str(self.folder / "labels")
        gpu = self.options.device == "cuda"
        predict.run(
            predict.PredictConfig(
                checkpoint=teacher, data=self.data("pool"), out=labels, views=self.options.views, gpu=gpu
            )
        )
        distill.run(
            distill_config.DistillConfig(
                predictions=labels, pool=self.data("pool"), labelled=self.data("train"), out=self.data("pseudo"),
                val=self.data("val"), teacher=teacher, uncertain=self.options.uncertain,
                min_score=self.options.min_score,
            )
        )  # fmt: skip

    def run(self) -> Outcome:
        """Everything, from pictures to AP."""
        steps, longer = self.options.steps, self.options.student_steps
        self.prepare()
        checkpoint, teacher = self.train("teacher", steps, ("train",))
        self.distill(checkpoint)
        _, student = self.train("student", longer, ("train", "pseudo"))
        _, control = self.train("control", longer, ("train",))
        full = self.train("full", longer, ("train", "truth"))[1] if self.options.full else None
        return Outcome(self.share, self.seed, teacher, control, student, full)


def rows_of(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """Each seed, and the mean of each share."""
    rows = []
    for share in dict.fromkeys(one.share for one in outcomes):
        mine = [one for one in outcomes if one.share == share]
        for one in mine:
            rows.append((f"{100 * share:g} %", str(one.seed), *numbers([one])))
        rows.append((f"{100 * share:g} %", "mean", *numbers(mine)))
    return rows


def numbers(outcomes: list[Outcome]) -> list[str]:
    """Means of the columns."""
    columns = ("teacher", "control", "student", "gain", "full")
    values = [[getattr(one, name) for one in outcomes] for name in columns]
    return ["-" if None in of else f"{np.mean(of):.1f}" for of in values]


def verdicts(outcomes: list[Outcome]) -> list[str]:
    """Whether the pseudo-labels are worth something in each seed, and a point of AP on average; a line a share."""
    lines = []
    for share in dict.fromkeys(one.share for one in outcomes):
        gains = [one.gain for one in outcomes if one.share == share]
        each, mean = min(gains) > 0, float(np.mean(gains)) >= 1
        lines.append(
            f"{100 * share:g} % of labels, {len(gains)} seeds: student - control is above 0 in each seed: "
            f"{'yes' if each else 'NO'} (least {min(gains):+.1f}); 1 or more on average: {'yes' if mean else 'NO'} "
            f"(mean {np.mean(gains):+.1f})"
        )
    return lines


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--labels", type=float, nargs="+", default=[0.1], help="shares of labelled pictures, 0 to 1")
    parser.add_argument("--pictures", type=int, default=600, help="labelled and unlabelled ones together")
    parser.add_argument("--val", type=int, default=120, help="pictures to measure on")
    parser.add_argument("--steps", type=int, default=320, help="of the teacher")
    parser.add_argument("--student-steps", type=int, default=480, help="of student, control and upper bound")
    parser.add_argument("--views", default="fast", help="the teacher looks at the pool in, as of maskray predict")
    parser.add_argument("--uncertain", type=float, default=0.25, help="as of maskray distill")
    parser.add_argument("--min-score", type=float, default=0.9, help="as of maskray distill")
    parser.add_argument("--workers", type=int, default=2, help="training processes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where training and predicting run")
    parser.add_argument("--full", action="store_true", help="train on all true labels too")
    parser.add_argument("--out", default="distillation", help="folder for everything")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, then print the table and write it as JSON."""
    options = options_of()
    outcomes = []
    headers = ("labels", "seed", "teacher", "control", "student", "student - control", "all labels")
    with ray_session():
        for share in options.labels:
            for seed in range(options.seeds):
                outcomes.append(Bench(options, share, seed).run())
                show(table(headers, rows_of(outcomes)[-2:]))
    show("\nmask AP, %\n" + table(headers, rows_of(outcomes)))
    show("\n".join(verdicts(outcomes)))
    path = Path(options.out) / "distillation.json"
    path.write_text(json.dumps([{**one._asdict(), "gain": one.gain} for one in outcomes], indent=1))
    show(f"{path}")


if __name__ == "__main__":
    main()
