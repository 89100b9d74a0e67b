"""What predictions were made with, and what became of the pictures: the part of their manifest that is theirs alone."""

import dataclasses
import platform
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class Making:
    """What the numbers of predictions depend on beside the pictures and the weights.

    Attributes:
        views: sizes and mirrors in pixels of the shorter side, as `model.views.View` writes them.
        voting_iou: overlap from which views' boxes are averaged.
        precision: of the network.
        batch: most views of pictures held at a time.
        threads: CPU threads of a worker.
        device: cpu or cuda.
        merge: how views' boxes became one set, as `model.merge.Merge` writes it.
    """

    views: tuple[str, ...]
    voting_iou: float
    precision: str
    batch: int
    threads: int
    device: str
    merge: str = "vote"


@dataclasses.dataclass(frozen=True)
class Account:
    """What became of the pictures.

    Attributes:
        labelled: pictures with detections.
        empty: pictures on which nothing was found.
        rejected: pictures that could not be looked at.
    """

    labelled: int
    empty: int
    rejected: int


def machine_kind(device: str) -> str:
    """The kind of this machine, on which the last bits of what a network computes depend.

    Args:
        device: cpu, or cuda for the first GPU this process sees.
    """
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name, facts = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if facts.is_file():
        lines = [line.partition(":")[2].strip() for line in facts.read_text().splitlines() if "model name" in line]
        name = lines[0] if lines else name
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
