"""What a worker remembers between two reports: losses, speed, and the steps that were left out."""

import math
import resource
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.train_state import Outcome


class Skipped(NamedTuple):
    """A step that was left out on every worker because something was not finite.

    Attributes:
        step: its number, counted from 1.
        image_ids: of this worker's pictures.
        losses: of this worker.
        workers: numbers of the workers with a loss that is not finite; none where only the gradient is not.
        in_a_row: how many steps up to this one were left out without a good one in between.
    """

    step: int
    image_ids: list[int]
    losses: dict[str, float]
    workers: list[int]
    in_a_row: int


class Window:
    """Steps since the last report; nothing of it waits for the device before `read`."""

    def __init__(self, device: torch.device, world: int) -> None:
        """Take the device of the losses and the number of workers."""
        self._device, self._world, self._in_a_row = device, world, 0
        self.reset()

    def reset(self) -> None:
        """Forget the steps, not the row of those left out."""
        self._steps: list[tuple[int, list[int], Outcome]] = []
        self._started = time.monotonic()
        self._waited = 0.0

    def add(self, step: int, image_ids: list[int], outcome: Outcome, waited_s: float) -> None:
        """Remember a step, counted from 1."""
        self._steps.append((step, image_ids, outcome))
        self._waited += waited_s

    def skipped(self) -> list[Skipped]:
        """The steps that were left out; the same on every worker, which all must ask."""
        flags = torch.stack([outcome.skipped for _, _, outcome in self._steps]).tolist()
        found = []
        for (step, image_ids, outcome), left_out in zip(self._steps, flags, strict=True):
            self._in_a_row = self._in_a_row + 1 if left_out else 0
            if left_out:
                losses = {name: float(value) for name, value in outcome.losses.items()}
                found.append(Skipped(step, image_ids, losses, self._who(outcome.lost), self._in_a_row))
        return found

    def _who(self, lost: Tensor) -> list[int]:
        flags = [lost]
        if self._world > 1:
            flags = [torch.empty_like(lost, dtype=torch.uint8) for _ in range(self._world)]
            dist.all_gather(flags, lost.to(torch.uint8))
        return [worker for worker, flag in enumerate(flags) if bool(flag)]

    def read(self, batch: int) -> dict[str, float]:
        """Means over the good steps and over workers, speed and memory; waits for the device.

        Args:
            batch: pictures of a step over all workers.
        """
        names = list(self._steps[0][2].losses)
        skipped = torch.stack([outcome.skipped for _, _, outcome in self._steps])
        losses = torch.stack([torch.stack(list(outcome.losses.values())) for _, _, outcome in self._steps])
        norms = torch.stack([outcome.norm for _, _, outcome in self._steps])
        good = ~skipped
        sums = torch.where(good[:, None], torch.cat([losses, norms[:, None]], 1), 0.0).sum(0)
        if self._world > 1:
            dist.all_reduce(sums)
        count = int(good.sum())
        means = (sums / max(1, count * self._world)).tolist() if count else [math.nan] * len(sums)
        values = {f"loss/{name}": mean for name, mean in zip(names, means, strict=False)}
        values["loss/total"] = sum(values.values())
        elapsed = time.monotonic() - self._started
        return {
            **values,
            "gradient_norm": means[-1],
            "skipped_steps": float(len(self._steps) - count),
            "pictures_per_s": len(self._steps) * batch / elapsed,
            "data_wait_share": self._waited / elapsed,
            "memory_gb": peak_memory_gb(self._device),
        }


def peak_memory_gb(device: torch.device) -> float:
    """Highest memory so far in 10^9 bytes: of the GPU's tensors, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def not_finite(values: Mapping[str, float]) -> list[str]:
    """Names of the values that are no numbers."""
    return [name for name, value in values.items() if not math.isfinite(value)]
