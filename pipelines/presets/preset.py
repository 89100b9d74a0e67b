"""What a named run consists of: a detector, a recipe, and what its source published of the result."""

import dataclasses

from model.presets import DETECTORS
from pipelines.config import Precision, TrainConfig
from pipelines.geometry import AugmentConfig
from pipelines.optim import OptimConfig
from pipelines.order import SamplingConfig

OURS = "maskray"
"""Source of the runs that nobody published."""

# One short edge is drawn for each picture: multi-scale training of Detectron2 and of MMDetection's caffe style.
SIX_EDGES = AugmentConfig(short_edges_px=(640, 672, 704, 736, 768, 800))
# Any whole number between; MMDetection's pytorch style, and the paper's appendices.
EDGE_RANGE = AugmentConfig(short_edges_px=(640, 800), ranges=True)
# Large-scale jitter (Ghiasi et al. 2021).
LARGE_SCALE_JITTER = AugmentConfig(jitter=(0.1, 2.0), crop_px=1024)


@dataclasses.dataclass(frozen=True)
class Published:
    """What a source reports of its own training; nothing here was measured with maskray. None: not published.

    Attributes:
        source: who reports it.
        measured_on: the pictures it was measured on.
        box_ap: COCO AP of boxes, percent.
        mask_ap: AP of masks, percent; on Cityscapes by its own script.
        keypoint_ap: COCO AP of keypoints, percent.
        memory_gb: training memory of a GPU.
        fps: pictures a second at inference on the source's hardware.
        note: what is known to be odd about the figures or the recipe.
    """

    source: str
    measured_on: str = "COCO val2017"
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    memory_gb: float | None = None
    fps: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a detector is trained.

    Attributes:
        schedule: as the source calls it; a run is named after its detector and this.
        optim: optimiser and schedule.
        augment: what happens to training pictures.
        precision: arithmetic.
    """

    schedule: str
    optim: OptimConfig
    augment: AugmentConfig = AugmentConfig()
    precision: Precision = Precision.FP32


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named run.

    Attributes:
        name: what `maskray train` takes.
        detector: name of the detector in `DETECTORS`.
        recipe: how it is trained.
        published: what its source reports.
        init: the weights it starts from; give them with --init. ImageNet's fit the detector's picture settings: RGB are
            torchvision's (ResNeXt: MMDetection's), BGR with a deviation of 1 the original MSRA ones of Caffe.
    """

    name: str
    detector: str
    recipe: Recipe
    published: Published
    init: str = "ImageNet"

    def __call__(self) -> TrainConfig:
        """The run's configuration, without data."""
        detector = DETECTORS[self.detector]()
        return TrainConfig(
            detector=detector,
            optim=self.recipe.optim,
            augment=self.recipe.augment,
            precision=self.recipe.precision,
            sampling=_sampling(self.published.source, detector.keypoint.enabled),
        )


def _sampling(source: str, has_keypoints: bool) -> SamplingConfig:
    """The pictures a source's runs take: all of them leave out those on which there is nothing to find."""
    if source == OURS:
        return SamplingConfig()
    keypoints = 10 if "torchvision" in source else 1
    return SamplingConfig(
        drop_empty=True,
        min_side_px=32 if "MMDetection" in source else 0,
        min_keypoints=keypoints if has_keypoints else 0,
    )
