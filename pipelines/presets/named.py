"""Every named run."""

import difflib

from pipelines.config import TrainConfig
from pipelines.presets.detectron2 import DETECTRON2
from pipelines.presets.driving import DRIVING
from pipelines.presets.mmdetection import MMDETECTION
from pipelines.presets.own import OWN
from pipelines.presets.paper import PAPER
from pipelines.presets.preset import Preset
from pipelines.presets.torchvision import TORCHVISION

RUNS = OWN + TORCHVISION + DETECTRON2 + MMDETECTION + DRIVING + PAPER
PRESETS: dict[str, Preset] = {run.name: run for run in RUNS}


def preset(name: str) -> TrainConfig:
    """The run of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(f"unknown preset {name!r}: {hint}`maskray list presets` shows all {len(PRESETS)}")
    return PRESETS[name]()
