"""A batch of pictures in one size, straight and mirrored: boxes found, then masks and heat maps of any boxes in it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ResizeKernel
from model.detector import Detector
from model.heads.box import BoxDetections
from model.merge import Merged
from model.picture import pad, resize, tight_hw
from model.structures import Images
from model.views import View, flip_boxes, flip_heatmaps, rescale, view_hw


class Source(NamedTuple):
    """A decoded picture: uint8 pixels [3, H, W], RGB, upright."""

    image_id: int
    pixels: Tensor

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])


class Seen(NamedTuple):
    """A batch of B pictures in views of one size, V of them: entry `v * B + i` of its tensors is picture i in view v.

    Attributes:
        views: straight, mirrored, or both.
        sizes_hw: of each picture in these views.
        features: of all entries, on the device.
        found: boxes of all entries, on the CPU.
    """

    views: tuple[View, ...]
    sizes_hw: list[tuple[int, int]]
    features: list[Tensor]
    found: BoxDetections

    def boxes_of(self, view: int, i: int) -> Tensor:
        """The boxes found on a picture [N, 4], in the pixels of the view turned back."""
        entry = view * len(self.sizes_hw) + i
        boxes = self.found.boxes[entry, self.found.valid[entry]]
        return flip_boxes(boxes, self.sizes_hw[i][1]) if self.views[view].flip else boxes

    def of(self, values: Tensor, view: int, i: int) -> Tensor:
        """The share of the boxes' values [V * B, D, ...] that are a picture's in a view."""
        entry = view * len(self.sizes_hw) + i
        return values[entry, self.found.valid[entry]]


class Completed(NamedTuple):
    """Masks [V, B, D, M, M] and heat maps [V, B, D, J, S, S] of a size's views, turned back, on the CPU."""

    masks: Tensor | None
    heatmaps: Tensor | None


def by_size(views: Sequence[View]) -> list[tuple[View, ...]]:
    """The views, those of one size together, in the order in which sizes come first."""
    sizes = dict.fromkeys(view.short_edge_px for view in views)
    return [tuple(view for view in views if view.short_edge_px == size) for size in sizes]


def moved(sources: Sequence[Source], detector: Detector, device: torch.device) -> list[Source]:
    """The pictures' bytes on the GPU, which resizes them for all views.

    Where Pillow or OpenCV resize, whose rounding is part of the result, they stay where they are.
    """
    if device.type == "cpu" or detector.config.picture.kernel is not ResizeKernel.FLOAT_BILINEAR:
        return list(sources)
    return [source._replace(pixels=source.pixels.to(device)) for source in sources]


def look(detector: Detector, sources: Sequence[Source], views: tuple[View, ...], device: torch.device) -> Seen:
    """Detect on pictures in views of one size in one pass; each is resized once.

    Raises:
        ValueError: a picture is too narrow for the size.
    """
    picture = detector.config.picture
    sizes = [view_hw(*source.size_hw, views[0], picture) for source in sources]
    pixels = [resize(source.pixels, size, picture.kernel) for source, size in zip(sources, sizes, strict=True)]
    turned = [part.flip(-1) if view.flip else part for view in views for part in pixels]
    images = pad(turned, tight_hw(sizes, picture))
    features, found = detector.detect(Images(*(value.to(device) for value in images)))
    return Seen(views, sizes, features, BoxDetections(*(value.cpu() for value in found)))


def complete(
    detector: Detector, seen: Seen, sources: Sequence[Source], merged: Sequence[Merged], most: int, *, alone: bool
) -> Completed:
    """Masks and heat maps of the merged boxes, as many a picture as the fullest one has (`most`), in a size's views.

    Args:
        detector: that has looked.
        seen: what it saw; its features are let go.
        sources: the pictures.
        merged: the boxes on each, in its own pixels.
        most: of them on one picture.
        alone: there is no other view: its own boxes are taken, not what rounding on the way makes of them.
    """
    if not most:
        return Completed(None, None)
    if alone:
        padded = BoxDetections(*(value[:, :most] for value in seen.found))
    else:
        padded = _padded(seen, sources, merged, most)
    device = seen.features[0].device
    whole = detector.complete(seen.features, BoxDetections(*(value.to(device) for value in padded)))
    seen.features.clear()  # they are by far the largest thing held
    shape = len(seen.views), len(sources)
    masks = None if whole.masks is None else whole.masks.float().cpu().view(*shape, *whole.masks.shape[1:])
    heatmaps = None if whole.heatmaps is None else whole.heatmaps.float().cpu().view(*shape, *whole.heatmaps.shape[1:])
    pairs = detector.config.keypoint.flip_pairs
    for number, view in enumerate(seen.views):
        if not view.flip:
            continue
        if masks is not None:
            masks[number] = masks[number].flip(-1)
        if heatmaps is not None:
            own = heatmaps[number]
            heatmaps[number] = flip_heatmaps(own.flatten(0, 1), pairs).view(own.shape)
    return Completed(masks, heatmaps)


def _padded(seen: Seen, sources: Sequence[Source], merged: Sequence[Merged], most: int) -> BoxDetections:
    shape = (len(seen.views) * len(sources), most)
    padded = BoxDetections(torch.zeros(*shape, 4), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64),
                           torch.zeros(shape, dtype=torch.bool))  # fmt: skip
    for number, view in enumerate(seen.views):
        for i, (source, boxes) in enumerate(zip(sources, merged, strict=True)):
            entry, count = number * len(sources) + i, len(boxes.scores)
            own = rescale(boxes.boxes, source.size_hw, seen.sizes_hw[i])
            padded.boxes[entry, :count] = flip_boxes(own, seen.sizes_hw[i][1]) if view.flip else own
            padded.scores[entry, :count], padded.labels[entry, :count] = boxes.scores, boxes.labels
            padded.valid[entry, :count] = True
    return padded
