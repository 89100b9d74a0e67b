"""Labelled pictures that a training does not see, so that its detector can be audited on them.

Which ones is a function of the seed and the pictures' ids alone: the share with the smallest keys.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from pipelines import checkpoints
from pipelines.checkpoints import Checkpoint

TRAINED_ON = "trained_on"
"""Extra file of a checkpoint: ids of the pictures held out, by hash of each data set it was trained on."""

IntArray = npt.NDArray[np.int64]


def held_out_ids(image_ids: IntArray, share: float, seed: int) -> IntArray:
    """Ids of the pictures to hold out, ascending: the nearest whole number to `share` of them.

    Args:
        image_ids: of all pictures.
        share: 0 to below 1.
        seed: another one holds out others.
    """
    count = round(share * len(image_ids))
    # A hash of each id (Weyl step, then two rounds of multiply and xor-shift): adding pictures changes little.
    keys = image_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15 * (seed + 1) % (1 << 64))
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(factor)
    chosen = np.lexsort((image_ids, keys ^ (keys >> np.uint64(31))))[:count]
    return np.sort(image_ids[chosen])


def held_out_by(checkpoint: Checkpoint) -> dict[str, frozenset[int]]:
    """Ids of the pictures that a training held out, by hash of each data set it was trained on.

    What the checkpoint it began with was trained on is in it too. Empty for weights that were imported, and for a
    training that began with a checkpoint that does not know.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    tensors = checkpoints.load_extra(checkpoint, TRAINED_ON)
    return {key: frozenset(ids.tolist()) for key, ids in tensors.items()}


def knows_what_it_saw(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint can say what it was trained on: here on something, or imported, hence on nothing here."""
    return not checkpoint.step or bool(held_out_by(checkpoint))


def merged(records: Iterable[Mapping[str, frozenset[int]]]) -> dict[str, frozenset[int]]:
    """Held out by all trainings that saw a data set: what one of them learned from, the detector has seen."""
    made: dict[str, frozenset[int]] = {}
    for record in records:
        for key, ids in record.items():
            made[key] = made[key] & ids if key in made else ids
    return made
