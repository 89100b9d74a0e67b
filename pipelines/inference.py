"""From records to detections in original-picture pixels; an ordinary function, no Ray."""

from collections.abc import Sequence

import numpy as np
import torch

from model.config import PasteRule
from model.detector import Detector
from model.ops.masks import mask_rle
from model.picture import pad, resize, resized_hw, tight_hw
from model.structures import Detections
from pipelines.predictions import PicturePrediction
from pipelines.records import Record
from pipelines.transforms import picture_tensor


def network_sizes(sizes_hw: Sequence[tuple[int, int]], detector: Detector) -> list[tuple[int, int]]:
    """Height and width each picture is resized to."""
    picture = detector.config.picture
    return [resized_hw(height, width, picture.short_edge_px, picture) for height, width in sizes_hw]


def cut_batches(sizes_hw: Sequence[tuple[int, int]], detector: Detector, batch: int) -> list[list[int]]:
    """Indices of pictures grouped into batches of like resized shape, so that little is padded.

    A function of the sizes alone: the same pictures make the same batches whoever predicts them.
    """
    sizes = network_sizes(sizes_hw, detector)
    order = sorted(range(len(sizes)), key=lambda i: (*sizes[i], i))
    return [order[first : first + batch] for first in range(0, len(order), batch)]


def predict_batch(detector: Detector, records: Sequence[Record], device: torch.device) -> list[PicturePrediction]:
    """Detect on pictures together.

    Args:
        detector: in evaluation mode, on `device`.
        records: the pictures; all go through the network at once.
        device: where the network runs.

    Returns:
        One prediction a record, in order; boxes and masks in pixels of the original picture, best score first.

    Raises:
        DecodeError: a picture cannot be decoded.
    """
    picture = detector.config.picture
    sizes = network_sizes([(record.height, record.width) for record in records], detector)
    pixels = [resize(picture_tensor(record), size, picture.kernel) for record, size in zip(records, sizes, strict=True)]
    images = pad(pixels, tight_hw(sizes, picture))
    found = detector.predict(type(images)(*(value.to(device) for value in images)))
    found = Detections._make(None if value is None else value.cpu() for value in found)
    return [
        _to_picture(detector, record, size, found, i)
        for i, (record, size) in enumerate(zip(records, sizes, strict=True))
    ]


def _to_picture(
    detector: Detector, record: Record, size_hw: tuple[int, int], found: Detections, i: int
) -> PicturePrediction:
    # The number of detections differs from picture to picture from here on; nothing after it is compiled.
    count = int(found.valid[i].sum())
    height, width = size_hw
    scale = torch.tensor([record.width / width, record.height / height] * 2, dtype=torch.float32)
    boxes = found.boxes[i, :count] * scale
    mask = detector.config.mask
    if found.masks is None:
        raise ValueError("predictions hold masks and the detector has no mask head: set mask.enabled=true and train it")
    sizes = torch.tensor([record.height, record.width]).expand(count, 2)
    runs = mask_rle(
        found.masks[i, :count],
        boxes,
        sizes,
        threshold=mask.threshold,
        padded=mask.paste is PasteRule.PADDED_RESIZE,
    )
    return PicturePrediction(
        image_id=record.image_id,
        height=record.height,
        width=record.width,
        boxes_xyxy=boxes.numpy().astype(np.float32),
        scores=found.scores[i, :count].numpy(),
        labels=found.labels[i, :count].numpy(),
        rles=tuple(runs.counts),
        areas=runs.areas.numpy(),
    )
