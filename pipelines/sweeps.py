"""Named sweeps: what each varies, as functions of the run that is varied, and how it is searched."""

from collections.abc import Callable
from typing import NamedTuple

from pipelines import paper_sweeps, storage
from pipelines.config import TrainConfig
from pipelines.paper_sweeps import longer
from pipelines.sweep_search import Algorithm, Scheduler
from pipelines.sweep_space import Dimension, Options, Range, Variants


class Sweep(NamedTuple):
    """A named sweep.

    Attributes:
        make: its dimensions over a run; its docstring says what it compares.
        metric: that decides, where the user names none.
        algorithm: the same for how choices are made.
        scheduler: the same for which trials are stopped early.
    """

    make: Callable[[TrainConfig], tuple[Dimension, ...]]
    metric: str = "mask/AP"
    algorithm: Algorithm = Algorithm.GRID
    scheduler: Scheduler = Scheduler.NONE


def length(base: TrainConfig) -> tuple[Dimension, ...]:
    """Schedules of one, two and three times the length (1x, 2x, 3x), milestones moved along."""
    return (Variants("length", {f"{times}x": longer(base.optim, times) for times in (1, 2, 3)}),)


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
    """Share of pseudo-labelled pictures in a batch, and augmentation; of a labelled and a pseudo-labelled --train."""
    if len(base.train) != 2:
        raise ValueError(
            f"the sweep distillation needs two training sets, got {len(base.train)}: labelled, then pseudo-labelled"
        )
    return (Options("ratio", ([8, 2], [6, 4], [5, 5], [3, 7])), *augmentation(base))


def score_floors(base: TrainConfig) -> tuple[Dimension, ...]:
    """Least scores of pseudo-labels: --predictions, --pool and --floors 0.3 0.5 0.7 beside the labelled --train."""
    labelled, *floors = base.train
    if not floors:
        raise ValueError("the sweep score_floors needs --floors, --predictions and --pool, and the labelled --train")
    return (Variants("floor", {storage.name_of(uri): {"train": [labelled, uri]} for uri in floors}),)


SEARCH = Sweep(lambda base: (), algorithm=Algorithm.RANDOM, scheduler=Scheduler.ASHA)
"""What holds for dimensions of the user's own."""

SWEEPS: dict[str, Sweep] = {
    "length": Sweep(length),
    "schedules": SEARCH._replace(make=schedules),
    "learning_rate": SEARCH._replace(make=learning_rate),
    "augmentation": Sweep(augmentation),
    "distillation": Sweep(distillation),
    "score_floors": Sweep(score_floors),
    "table_2a": Sweep(paper_sweeps.table_2a),
    "table_2b": Sweep(paper_sweeps.table_2b),
    "table_2c": Sweep(paper_sweeps.table_2c),
    "table_2d": Sweep(paper_sweeps.table_2d),
    "table_2e": Sweep(paper_sweeps.table_2e),
    "class_agnostic": Sweep(paper_sweeps.class_agnostic),
    # Their rows have these in common.
    "table_3": Sweep(paper_sweeps.table_3, "box/AP"),
    "table_5": Sweep(paper_sweeps.table_5, "box/AP"),
    "table_6": Sweep(paper_sweeps.table_6, "keypoints/AP"),
    "table_8": Sweep(paper_sweeps.table_8),
    "table_9": Sweep(paper_sweeps.table_9, "keypoints/AP"),
}


def named(name: str) -> Sweep:
    """A named sweep; empty is that of the user's own dimensions.

    Raises:
        ValueError: there is none of that name.
    """
    if name and name not in SWEEPS:
        raise ValueError(f"unknown sweep {name!r}: choose one of {', '.join(SWEEPS)} (`maskray list sweeps`)")
    return SWEEPS[name] if name else SEARCH
