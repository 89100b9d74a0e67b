"""Heads of other classes than the weights were trained on: rows copied, and new ones drawn like them.

After the tool that the paper's Cityscapes numbers were made with: a class that the source lacks gets rows from a normal
distribution with the mean and standard deviation of the source's whole layer.
"""

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.config import DetectorConfig
from model.convert.steps import Layer, layer_of


def take_classes(
    state: Mapping[str, Tensor], config: DetectorConfig, sources: Sequence[int | None], seed: int = 0
) -> dict[str, Tensor]:
    """Our weights with the heads of other classes; a layer that serves all classes alike stays.

    Args:
        state: our weights, float.
        config: of the detector they are the weights of.
        sources: for each new label the label it comes from, or None for new rows.
        seed: of the new rows; the same whatever else is drawn.

    Raises:
        ValueError: a label out of range, or none wanted.
    """
    wrong = [label for label in sources if label is not None and not 0 <= label < config.num_classes]
    if wrong or not sources:
        raise ValueError(f"labels to take must be at least one, in 0..{config.num_classes - 1}, got {wrong or 'none'}")
    rows = {Layer.SCORES: 1}
    if not config.box.class_agnostic:
        rows[Layer.DELTAS] = 4
    if not config.mask.class_agnostic:
        rows[Layer.MASK_LOGITS] = 1
    taken = dict(state)
    for name, value in state.items():
        layer = layer_of(name)
        if layer in rows:
            background = int(layer is Layer.SCORES)
            taken[name] = _rows(value, rows[layer], sources, _generator(seed, name), background)
    return taken


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def _rows(
    value: Tensor, rows: int, sources: Sequence[int | None], generator: torch.Generator, background: int
) -> Tensor:
    mean, std = value.mean().item(), value.std(correction=0).item()
    shape = (rows, *value.shape[1:])
    parts = [
        torch.randn(shape, generator=generator) * std + mean
        if source is None
        else value[rows * source : rows * (source + 1)]
        for source in sources
    ]
    return torch.cat([*parts, *([value[-1:]] if background else [])])
