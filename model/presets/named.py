"""Every named detector."""

from collections.abc import Callable

from model.config import DetectorConfig
from model.presets.detectron2 import DETECTRON2
from model.presets.driving import DRIVING
from model.presets.mmdetection import MMDETECTION
from model.presets.own import OWN
from model.presets.paper import PAPER
from model.presets.torchvision import TORCHVISION

DETECTORS: dict[str, Callable[[], DetectorConfig]] = {
    **OWN,
    **TORCHVISION,
    **DETECTRON2,
    **MMDETECTION,
    **DRIVING,
    **PAPER,
}
