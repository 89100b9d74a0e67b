"""Weights of torchvision, Detectron2 and MMDetection, both ways, by explicit tables of names; nothing is guessed."""

from model.convert.architecture import Found, observe
from model.convert.conversion import Conversion, Framework, Use, convert, fit_counters, identify, peer_names, to_theirs
from model.convert.description import describe
from model.convert.strict import (
    from_detectron2,
    from_mmdetection,
    from_torchvision,
    to_detectron2,
    to_mmdetection,
    to_torchvision,
)

__all__ = [
    "Conversion",
    "Found",
    "Framework",
    "Use",
    "convert",
    "describe",
    "fit_counters",
    "from_detectron2",
    "from_mmdetection",
    "from_torchvision",
    "identify",
    "observe",
    "peer_names",
    "to_detectron2",
    "to_mmdetection",
    "to_theirs",
    "to_torchvision",
]
