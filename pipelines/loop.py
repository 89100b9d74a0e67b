"""The training loop: what every worker runs, from the first batch or from the last checkpoint."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from model.build import build_detector
from model.checkpoint import load_strict, take_proposal_network
from model.detector import Detector
from model.settings import from_dict
from pipelines import checkpoints, commit, storage
from pipelines.checkpoint_writer import CheckpointWriter
from pipelines.config import TrainConfig
from pipelines.holdout import TRAINED_ON
from pipelines.manifest import ClassInfo
from pipelines.optim import learning_rate_at, set_learning_rate
from pipelines.order import sample_seed
from pipelines.train_feed import Feed, Place, trained_on
from pipelines.train_state import Part, TrainState
from pipelines.train_window import Skipped, Window, not_finite


class TrainingError(ValueError):
    """A training that cannot go on; the message says at which step and what to do."""


@dataclasses.dataclass(frozen=True)
class Job:
    """All a worker is told.

    Attributes:
        config: the run.
        classes: of the training data, in the order of labels.
    """

    config: TrainConfig
    classes: tuple[ClassInfo, ...]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Job":
        """The inverse of `dataclasses.asdict` over plain values; what Ray carries to the workers."""
        classes = tuple(ClassInfo(c["id"], c["name"], tuple(c["keypoints"])) for c in raw["classes"])
        return cls(from_dict(TrainConfig, raw["config"]), classes)


METRICS = (
    "loss/total",
    "learning_rate",
    "gradient_norm",
    "skipped_steps",
    "pictures_per_s",
    "data_wait_share",
    "memory_gb",
)
"""What a worker reports, besides `step`, `epoch` and `loss/NAME` for each of `model.detector.loss_names`."""

Emit = Callable[[dict[str, float]], None]

_BACKEND = "inductor"
# Of a batch: three aspects of pictures, eight powers of two of objects, two sizes of a share.
_MOST_SHAPES = 3 * 8 * 2


class Supervisor:
    """What a worker tells whoever watches over it, and what it is told; this one is nobody."""

    def at(self, step: int, phase: str) -> None:
        """The worker does a step, counted from 1: it is in its `data`, `compute`, `report` or `checkpoint`."""

    def committed(self, step: int) -> None:
        """The checkpoint of a step is there; called in the thread that writes."""

    def stop_asked(self) -> bool:
        """Whether the run shall stop after the step it is at, with a checkpoint."""
        return False


def _start(job: Job, place: Place) -> tuple[TrainState, int]:
    """All that is trained and the number of steps done, from the last checkpoint if there is one."""
    config = job.config
    torch.manual_seed(config.seed)
    detector = build_detector(config.detector)
    done = torch.tensor(max(checkpoints.steps(config.out), default=0), device=place.device)
    if place.world > 1:
        dist.broadcast(done, 0)  # a store may show one worker what it does not yet show another
    if not int(done) and config.init:
        first = checkpoints.load_detector(checkpoints.load(config.init))
        load_strict(detector, first.state_dict(), config.init)
    if not int(done) and config.rpn_from:
        other = checkpoints.load_detector(checkpoints.load(config.rpn_from))
        take_proposal_network(detector, other.state_dict(), config.rpn_from)
    detector.to(place.device).train()
    state = TrainState(detector, config, place.world)
    if int(done):
        found = checkpoints.at_step(config.out, int(done))
        state.load_extra(checkpoints.restore(found, detector, state.optimiser))
    return state, int(done)


def _network(detector: Detector, config: TrainConfig, place: Place) -> nn.Module:
    if config.execution.compile:
        # One whole graph a shape: what cannot be traced is an error, never a silent return to plain execution.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_SHAPES)
        detector.compile(fullgraph=True, dynamic=False, backend=_BACKEND)
    if place.world == 1:
        return detector
    # A static graph holds because every loss exists on every step, also without objects; torch has it without
    # accumulation alone.
    return nn.parallel.DistributedDataParallel(
        detector,
        device_ids=[place.device] if place.device.type == "cuda" else None,
        static_graph=config.execution.accumulate == 1,
    )


@contextlib.contextmanager
def _arithmetic(config: TrainConfig, place: Place) -> Iterator[None]:
    """Deterministic operators alone where the run asks for them; else the fastest, found by trying, on a GPU."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic and place.device.type == "cuda"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


class _Loop:
    """A worker's run from one checkpoint to the end."""

    def __init__(self, job: Job, place: Place, emit: Emit, supervisor: Supervisor) -> None:
        self.job, self.config, self.place = job, job.config, place
        self.emit, self.supervisor = emit, supervisor
        self.state, self.first = _start(job, place)
        self.model = _network(self.state.detector, self.config, place)
        self.feed = Feed(self.config, place, self.first)
        self.trained_on = trained_on(self.config)
        self.window = Window(place.device, place.world)

    def run(self, writer: CheckpointWriter) -> int:
        """Train; the number of steps done."""
        execution, steps = self.config.execution, self.config.optim.steps
        for step in range(self.first, steps):
            done = step + 1
            stop = self._step(step)
            last = stop or done == steps
            due = last or done % execution.checkpoint_every == 0 or self._is_measured(done)
            if due or done % execution.report_every == 0:
                self.supervisor.at(done, "report")
                self._report(done, due)
            if due:
                self.supervisor.at(done, "checkpoint")
                self._save(done, writer)
            if stop:
                return done
        return steps

    def _is_measured(self, done: int) -> bool:
        every = self.config.evaluation.every
        return bool(every) and done % every == 0

    def _step(self, step: int) -> bool:
        """One step; whether to stop after it."""
        self.supervisor.at(step + 1, "data")
        # What the network itself draws is a function of seed, step and worker, as the data are: nothing to restore.
        torch.manual_seed(sample_seed(self.config.seed, step, self.place.rank))
        set_learning_rate(self.state.optimiser, learning_rate_at(step, self.config.optim))
        asked = int(self.place.rank == 0 and self.supervisor.stop_asked())
        outcome = self.state.step(self.model, self._watched_parts(step + 1), asked)
        self.window.add(step + 1, self.feed.image_ids, outcome, self.feed.waited_s)
        # On a GPU the answer would have to be waited for; there it is read when metrics are.
        free = self.place.device.type == "cpu" or (step + 1) % self.config.execution.report_every == 0
        return free and bool(outcome.asked)

    def _watched_parts(self, step: int) -> Iterator[Part]:
        for part in self.feed.parts():
            if self.config.execution.compile:
                # The bytes of all masks come in many sizes, which only an operator of ours looks at.
                torch._dynamo.maybe_mark_dynamic(part.targets.masks.data, 0)
            self.supervisor.at(step, "compute")
            yield part
            self.supervisor.at(step, "data")
        self.supervisor.at(step, "compute")

    def _report(self, done: int, due: bool) -> None:
        for skipped in self.window.skipped():
            self._set_aside(skipped)
        if due:
            self._check_weights(done)
        metrics = self.window.read(self.config.optim.batch)
        for name in not_finite(metrics):
            del metrics[name]  # every step was left out
        if self.place.rank == 0:
            rate = learning_rate_at(done - 1, self.config.optim)
            self.emit({**metrics, "learning_rate": rate, "step": done, "epoch": self.feed.epoch_of(done)})
        self.window.reset()

    def _set_aside(self, skipped: Skipped) -> None:
        """Write which pictures a step was left out for; stop where that is not the first time."""
        workers = skipped.workers or list(range(self.place.world))
        name = f"step-{skipped.step:08d}-worker-{self.place.rank}.json"
        if self.place.rank in workers:
            losses = {loss: str(value) for loss, value in skipped.losses.items()}  # JSON has no NaN
            body = {"step": skipped.step, "image_ids": skipped.image_ids, "data": self.config.train, "losses": losses}
            filesystem, folder = storage.open_uri(storage.child_uri(self.config.out, "skipped"))
            commit.write_file(filesystem, storage.join(folder, name), json.dumps(body, indent=1).encode())
        if skipped.in_a_row > self.config.optim.max_skipped:
            what = f"a loss of worker {', '.join(map(str, skipped.workers))}" if skipped.workers else "a gradient"
            place = storage.child_uri(self.config.out, "skipped")
            raise TrainingError(
                f"{what} is not finite at step {skipped.step} (its pictures: {place}): lower "
                f"optim.learning_rate ({self.config.optim.learning_rate}) or set optim.clip_norm, and train into "
                f"another --out; or the same command with --optim.max-skipped {2 * skipped.in_a_row} goes on and "
                "leaves out as many steps in a row"
            )

    def _check_weights(self, done: int) -> None:
        """Refuse to save weights that are no numbers, or that are not the same on every worker."""
        if not self.state.is_finite():
            raise TrainingError(
                f"a weight is not finite at step {done}: lower optim.learning_rate "
                f"({self.config.optim.learning_rate}) or set optim.clip_norm, and train into another --out"
            )
        if self.place.world == 1:
            return
        mine = self.state.fingerprint()
        of_all = [torch.empty_like(mine) for _ in range(self.place.world)]
        dist.all_gather(of_all, mine)
        values = [int(value) for value in of_all]
        usual = max(values, key=values.count)
        others = [str(worker) for worker, value in enumerate(values) if value != usual]
        if others:
            raise TrainingError(
                f"the weights of worker {', '.join(others)} are not those of the others at step {done}: its machine "
                "computes wrongly; nothing was saved since the last checkpoint. Take the machine out and give the "
                "same command again"
            )

    def _save(self, done: int, writer: CheckpointWriter) -> None:
        if self.place.rank == 0:
            state = self.state
            extra = {**state.extra(), TRAINED_ON: self.trained_on}
            made = checkpoints.snapshot(done, state.detector, state.optimiser, self.job.classes, extra)
            writer.submit(made)


def fit(job: Job, place: Place, emit: Emit, supervisor: Supervisor | None = None) -> int:
    """Train until the last step, or until asked to stop; resumes from the run's last checkpoint.

    Args:
        job: the run.
        place: this worker.
        emit: takes metrics (with `step` and `epoch`) on worker 0.
        supervisor: whoever watches over the worker.

    Returns:
        Steps done, all with a checkpoint.

    Raises:
        TrainingError: a loss or a weight is not finite, or the workers' weights are not the same.
        CheckpointWriteError: the store refused a checkpoint.
    """
    supervisor = supervisor or Supervisor()
    with _arithmetic(job.config, place), CheckpointWriter(job.config.out, supervisor.committed) as writer:
        loop = _Loop(job, place, emit, supervisor)
        done = loop.run(writer)
        supervisor.at(done, "checkpoint")
        return done
