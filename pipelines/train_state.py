"""All that moves while a detector is trained, and one step of it: what a checkpoint holds, and nothing else does.

A step never waits for the device: whether an update is left out because something is not finite is decided on it.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.detector import Detector
from model.structures import Images, Targets
from pipelines.config import Precision, TrainConfig
from pipelines.optim import build_optimiser

_FIRST_SCALE, _MAX_SCALE, _GROW_AFTER = 2.0**16, 2.0**24, 2000


class Part(NamedTuple):
    """What goes through the network at once.

    Attributes:
        images: the pictures.
        targets: their objects.
        weight: share of the part in the mean over the whole batch, times the number of workers.
    """

    images: Images
    targets: Targets
    weight: float


class Outcome(NamedTuple):
    """What a step did; all on the device.

    Attributes:
        losses: of this worker's pictures, by name, detached.
        norm: global L2 norm of the gradient before clipping.
        lost: a loss of this worker is not finite.
        skipped: the update was left out, on every worker.
        asked: largest `ask` of all workers.
    """

    losses: dict[str, Tensor]
    norm: Tensor
    lost: Tensor
    skipped: Tensor
    asked: Tensor


class _LossScale:
    """Loss scale of float16: halves where a gradient overflows, doubles after 2000 good steps."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(_FIRST_SCALE, device=device)
        self.good = torch.zeros((), device=device)

    def update(self, overflow: Tensor) -> None:
        good = torch.where(overflow, torch.zeros_like(self.good), self.good + 1)
        grown = torch.where(good >= _GROW_AFTER, self.value * 2, self.value)
        self.value = torch.where(overflow, self.value / 2, grown).clamp(1.0, _MAX_SCALE)
        self.good = torch.where(good >= _GROW_AFTER, torch.zeros_like(good), good)


class _Average:
    """Exponential moving average of the weights; other state is that of the last step."""

    def __init__(self, detector: Detector, decay: float) -> None:
        self._decay, self._detector = decay, detector
        self._live = [p.detach() for p in detector.parameters() if p.requires_grad]
        self._names = [name for name, p in detector.named_parameters() if p.requires_grad]
        self.values = [p.clone() for p in self._live]
        self.steps = 0

    def update(self) -> None:
        # Few steps are averaged at first, so that the random start does not stay for long (Polyak with warm-up).
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, self._live, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        return {**self._detector.state_dict(), **dict(zip(self._names, self.values, strict=True))}

    def load(self, state: dict[str, Tensor], steps: int) -> None:
        self.steps = steps
        for name, value in zip(self._names, self.values, strict=True):
            value.copy_(state[name])


class _NormStatistics:
    """Running statistics of batch norms, which a forward pass changes before anybody knows whether it is good."""

    def __init__(self, detector: Detector) -> None:
        kinds = nn.modules.batchnorm._NormBase
        modules = [module for module in detector.modules() if isinstance(module, kinds)]
        self._live = [buffer for module in modules for buffer in module.buffers(recurse=False)]
        self._kept = [buffer.clone() for buffer in self._live]

    def keep(self) -> None:
        for kept, live in zip(self._kept, self._live, strict=True):
            kept.copy_(live)

    def undo_where(self, skipped: Tensor) -> None:
        for kept, live in zip(self._kept, self._live, strict=True):
            live.copy_(torch.where(skipped, kept, live))


class TrainState:
    """Detector, optimiser, and what the recipe adds to them."""

    def __init__(self, detector: Detector, config: TrainConfig, world: int = 1) -> None:
        """Take a detector on its device, in training mode.

        Args:
            detector: the network.
            config: of the run.
            world: number of workers; more than one need a process group.
        """
        self.detector, self.config, self._world = detector, config, world
        self.optimiser = build_optimiser(detector, config.optim)
        device = detector.mean.device
        self._device = device
        self._scale = _LossScale(device) if config.precision is Precision.FP16 else None
        self._average = _Average(detector, config.optim.ema_decay) if config.optim.ema_decay else None
        self._statistics = _NormStatistics(detector)
        self._parameters = [p for p in detector.parameters() if p.requires_grad]
        self._checked = False
        self._autocast = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(config.precision)

    def extra(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint needs besides weights and optimiser, by name of its file."""
        found = {}
        if self._average is not None:
            found["average"] = self._average.state()
            found["state"] = {"average.steps": torch.tensor(self._average.steps)}
        if self._scale is not None:
            scale = {"scale.value": self._scale.value, "scale.good": self._scale.good}
            found["state"] = {**found.get("state", {}), **scale}
        return found

    def load_extra(self, files: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of `extra`."""
        if self._average is not None:
            self._average.load(files["average"], int(files["state"]["average.steps"]))
        if self._scale is not None:
            self._scale.value = files["state"]["scale.value"].to(self._device)
            self._scale.good = files["state"]["scale.good"].to(self._device)

    def step(self, model: nn.Module, parts: Iterable[Part], ask: int = 0) -> Outcome:
        """Forward and backward over the parts of this worker's share of a batch, then one update.

        Args:
            model: the detector, or what wraps it.
            parts: of the batch, at least one; taken one after the other.
            ask: a number to learn the largest of over all workers, for decisions that all take alike.
        """
        self._statistics.keep()
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for part, last in _with_last(parts):
            losses = self._backward(model, part, last)
            sums = {name: sums.get(name, 0) + value * part.weight for name, value in losses.items()}
        lost = ~torch.stack(list(sums.values())).sum().isfinite()
        flags = torch.stack([lost.float(), torch.full_like(lost, ask, dtype=torch.float32)])
        if self._world > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        norm, skipped = self._update(flags[0] > 0)
        return Outcome(sums, norm, lost, skipped, flags[1])

    def _backward(self, model: nn.Module, part: Part, last: bool) -> dict[str, Tensor]:
        with contextlib.ExitStack() as alone:
            if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
                alone.enter_context(model.no_sync())  # the workers' gradients meet in the last part
            with self._autocasting():
                losses: dict[str, Tensor] = model(part.images, part.targets)
            total = torch.stack(list(losses.values())).sum()
            if part.weight != 1:
                total = total * part.weight
            if self._scale is not None:
                total = total * self._scale.value
            total.backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in losses.items()}

    def _autocasting(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, self._autocast) if self._autocast else contextlib.nullcontext()

    def _update(self, lost: Tensor) -> tuple[Tensor, Tensor]:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not self._checked:
            self._check_layout()
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        overflow = lost | ~norm.isfinite()
        divisor = None
        if self._scale is not None:
            divisor = self._scale.value
            norm = norm / divisor
        if self.config.optim.clip_norm:
            over = (norm / self.config.optim.clip_norm).clamp(min=1.0)
            divisor = over if divisor is None else divisor * over
        # Fused optimisers divide by the one and leave the step out by the other, on the device.
        self.optimiser.grad_scale = divisor  # type: ignore[attr-defined]
        self.optimiser.found_inf = overflow.float()  # type: ignore[attr-defined]
        self.optimiser.step()
        self._statistics.undo_where(overflow)
        if self._average is not None:
            self._average.update()
        skipped = overflow
        if self._scale is not None:
            # An overflow is the scale's business; with the smallest scale, or in a loss, it is the network's.
            skipped = lost | (overflow & (self._scale.value <= 1.0))
            self._scale.update(overflow)
        return norm, skipped

    def _check_layout(self) -> None:
        """Fused optimisers walk through memory: a gradient that lies otherwise than its weight would be misread."""
        self._checked = True
        for name, p in self.detector.named_parameters():
            if p.grad is not None:
                strides = [(a, b) for a, b, size in zip(p.stride(), p.grad.stride(), p.shape, strict=True) if size > 1]
                assert all(a == b for a, b in strides), f"{name} and its gradient lie differently in memory: {strides}"

    def fingerprint(self) -> Tensor:
        """A number, int64, that changes with nearly any bit of the weights."""
        sums = [p.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for p in self._parameters]
        return (torch.stack(sums) * torch.arange(1, 2 * len(sums), 2, device=self._device)).sum()

    def is_finite(self) -> bool:
        """Whether all weights and statistics are numbers; waits for the device."""
        values = [v for v in self.detector.state_dict().values() if v.is_floating_point()]
        if self._average is not None:
            values += self._average.values
        return bool(torch.stack([value.isfinite().all() for value in values]).all())


def _with_last(parts: Iterable[Part]) -> Iterator[tuple[Part, bool]]:
    """Each part with whether it is the last one; takes one ahead."""
    iterator = iter(parts)
    held = next(iterator)
    for part in iterator:
        yield held, False
        held = part
    yield held, True
