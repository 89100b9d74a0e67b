"""Named sweeps: what each varies, as functions of the run that is varied."""

from collections.abc import Callable
from typing import Any

from pipelines import paper_sweeps
from pipelines.config import TrainConfig
from pipelines.optim import OptimConfig
from pipelines.sweep_space import Dimension, Options, Range, Variants

Sweep = Callable[[TrainConfig], tuple[Dimension, ...]]


def _longer(optim: OptimConfig, times: int) -> dict[str, Any]:
    """A schedule so many times as long, its milestones moved with it."""
    return {
        "optim.steps": optim.steps * times,
        "optim.milestones": [milestone * times for milestone in optim.milestones],
    }


def length(base: TrainConfig) -> tuple[Dimension, ...]:
    """Schedules of one, two and three times the length (1x, 2x, 3x), milestones moved along."""
    return (Variants("length", {f"{times}x": _longer(base.optim, times) for times in (1, 2, 3)}),)


def schedules(base: TrainConfig) -> tuple[Dimension, ...]:
    """Length 1x to 3x, warm-up, learning rate and total batch together."""
    optim = base.optim
    warmup = max(optim.warmup_steps, 2)
    batches = sorted({max(optim.batch // 2, 1), optim.batch, optim.batch * 2})
    return (
        *length(base),
        Options("optim.warmup_steps", (warmup // 2, warmup, 2 * warmup)),
        Range("optim.learning_rate", optim.learning_rate / 4, optim.learning_rate * 4, log=True),
        Options("optim.batch", tuple(batch for batch in batches if batch % base.execution.workers == 0)),
    )


def learning_rate(base: TrainConfig) -> tuple[Dimension, ...]:
    """Learning rate and weight decay, each over a factor of sixteen and more."""
    optim = base.optim
    decay = optim.weight_decay or 1e-4
    return (
        Range("optim.learning_rate", optim.learning_rate / 4, optim.learning_rate * 4, log=True),
        Range("optim.weight_decay", decay / 10, decay * 10, log=True),
    )


def augmentation(base: TrainConfig) -> tuple[Dimension, ...]:
    """Flips, and one size of pictures or several (between 80 and 120 % of the detector's)."""
    edge = base.detector.picture.short_edge_px
    several = [round(edge * share) for share in (0.8, 0.9, 1.0, 1.1, 1.2)]
    return (Options("augment.flip", (0.0, 0.5)), Options("augment.short_edges_px", ([], several)))


def distillation(base: TrainConfig) -> tuple[Dimension, ...]:
    """Share of pseudo-labelled pictures in a batch, and augmentation; takes a labelled and a pseudo-labelled --train.

    Score floors are made by `maskray distill` before: search them by --search 'train=choice(["a","low"],["a","high"])'.
    """
    if len(base.train) != 2:
        raise ValueError(
            f"the sweep distillation needs two training sets, got {len(base.train)}: labelled, then pseudo-labelled"
        )
    return (Options("ratio", ([8, 2], [6, 4], [5, 5], [3, 7])), *augmentation(base))


SWEEPS: dict[str, Sweep] = {
    "length": length,
    "schedules": schedules,
    "learning_rate": learning_rate,
    "augmentation": augmentation,
    "distillation": distillation,
    "table_2a": paper_sweeps.table_2a,
    "table_2b": paper_sweeps.table_2b,
    "table_2c": paper_sweeps.table_2c,
    "table_2d": paper_sweeps.table_2d,
    "table_2e": paper_sweeps.table_2e,
    "class_agnostic": paper_sweeps.class_agnostic,
    "table_3": paper_sweeps.table_3,
    "table_5": paper_sweeps.table_5,
    "table_6": paper_sweeps.table_6,
    "table_8": paper_sweeps.table_8,
    "table_9": paper_sweeps.table_9,
}


def sweep(name: str, base: TrainConfig) -> tuple[Dimension, ...]:
    """The dimensions of a named sweep over a run.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SWEEPS:
        raise ValueError(f"unknown sweep {name!r}: choose one of {', '.join(SWEEPS)} (`maskray list sweeps`)")
    return SWEEPS[name](base)
