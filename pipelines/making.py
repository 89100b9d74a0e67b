"""What predictions were made with, and what became of the pictures: the part of their manifest that is theirs alone."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Making:
    """What the numbers of predictions depend on beside the pictures and the weights.

    Attributes:
        views: sizes and mirrors in pixels of the shorter side, as `model.views.View` writes them.
        voting_iou: overlap from which views' boxes are averaged; 0 for none.
        precision: of the network.
        batch: most views of pictures held at a time.
        threads: CPU threads of a worker.
        device: cpu or cuda.
    """

    views: tuple[str, ...]
    voting_iou: float
    precision: str
    batch: int
    threads: int
    device: str


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
