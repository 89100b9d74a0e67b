"""Which pictures are trained on, and how often: filters by class, and repeat factors for rare classes."""

import numpy as np
import numpy.typing as npt

from pipelines.dataset import Dataset
from pipelines.order import SamplingConfig


def repeats(dataset: Dataset, config: SamplingConfig) -> npt.NDArray[np.float64] | None:
    """How often each picture comes an epoch on average, float64 [N]; None where each comes once.

    Raises:
        ValueError: a class that the data set does not have, or no picture is left.
    """
    if config == SamplingConfig():
        return None
    names = dataset.manifest.names
    unknown = [name for name in config.classes if name not in names]
    if unknown:
        raise ValueError(f"sampling.classes has {unknown}, {dataset.uri} has the classes {list(names)}: correct a name")
    picture_of = np.repeat(np.arange(len(dataset)), np.diff(dataset.label_offsets))
    shown = np.zeros((len(dataset), max(1, len(names))), bool)
    shown[picture_of, dataset.labels] = True
    kept = np.ones(len(dataset), bool)
    if config.drop_empty:
        kept &= shown.any(axis=1) | ~dataset.labelled
    if config.classes:
        kept &= shown[:, [names.index(name) for name in config.classes]].any(axis=1)
    kept &= dataset.sizes_hw.min(axis=1, initial=np.iinfo(np.int32).max) >= config.min_side_px
    if config.min_keypoints:
        kept &= dataset.labelled_keypoints() >= config.min_keypoints
    if not kept.any():
        raise ValueError(
            f"sampling leaves no picture of {dataset.uri}: choose other classes, lower limits, or keep empty pictures"
        )
    factors = np.ones(len(dataset))
    if config.repeat_threshold:
        share = shown[kept].mean(axis=0)
        of_class = np.maximum(1.0, np.sqrt(config.repeat_threshold / np.maximum(share, 1e-12)))
        factors = np.where(shown, of_class, 1.0).max(axis=1)
    return np.where(kept, factors, 0.0)
