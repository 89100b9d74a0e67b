"""A detector small enough to train in a test, and batches of noise with rectangles for it."""

import torch

from model.build import build_detector
from model.presets import small_mask_rcnn_r18_fpn
from model.settings import override
from model.structures import Images, PackedMasks, Targets

SIDE = 64
SLOTS = 4
CLASSES = 4

SMALLER = {
    "backbone.stem_channels": 8,
    "fpn_channels": 16,
    "rpn.samples": 32,
    "rpn.pre_nms_train": 60,
    "rpn.post_nms_train": 60,
    "rpn.pre_nms_test": 40,
    "rpn.post_nms_test": 30,
    "box.channels": 32,
    "box.samples": 16,
    "box.max_detections": 10,
    "mask.channels": 16,
    "mask.num_convs": 1,
}


def tiny_detector(seed=0, **settings):
    """small_mask_rcnn_r18_fpn, smaller still; settings by dotted name."""
    config = small_mask_rcnn_r18_fpn()
    for path, value in {**SMALLER, **settings}.items():
        config = override(config, path, value)
    torch.manual_seed(seed)
    return build_detector(config)


def tiny_batch(seed, counts=(SLOTS, 2)):
    """Pictures uint8 of different sizes, padded to one; `counts` objects in each, padded to SLOTS."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(counts)
    pixels = torch.randint(0, 60, (batch, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    sizes = torch.randint(SIDE - 12, SIDE + 1, (batch, 2), generator=generator)
    shape = (batch, SLOTS, 2)
    corner, side = torch.randint(0, 24, shape, generator=generator), torch.randint(10, 28, shape, generator=generator)
    labels = torch.randint(0, CLASSES, shape[:2], generator=generator)
    valid = torch.arange(SLOTS) < torch.tensor(counts)[:, None]
    for b, count in enumerate(counts):
        for (x, y), (w, h), label in zip(corner[b, :count], side[b, :count], labels[b, :count], strict=True):
            pixels[b, :, y : y + h, x : x + w] += (40 + 30 * label).to(torch.uint8)
    whole = torch.full(shape, SIDE)
    extents = torch.cat([corner.flip(2), side.flip(2), whole], dim=2)
    areas = (side[..., 0] * side[..., 1]).flatten()
    masks = PackedMasks(
        torch.ones(batch * SLOTS * 28 * 28, dtype=torch.uint8), (areas.cumsum(0) - areas).view(shape[:2]), extents
    )
    boxes = torch.cat([corner, corner + side], dim=2).float()
    images = Images(pixels.contiguous(memory_format=torch.channels_last), sizes)
    return images, Targets(boxes, labels, valid, masks, torch.arange(batch) + 100 * seed)


def plain_targets(boxes, valid, labels=None):
    """Targets without masks: boxes [B][G][4] of which `valid` [B][G] are real; every picture its own seed."""
    boxes, valid = torch.tensor(boxes), torch.tensor(valid)
    labels = torch.zeros(valid.shape, dtype=torch.int64) if labels is None else torch.tensor(labels)
    nothing = PackedMasks(torch.zeros(0, dtype=torch.uint8), torch.full(valid.shape, -1), torch.zeros(*valid.shape, 6))
    return Targets(boxes, labels, valid, nothing, torch.arange(len(valid)))


def on_device(batch, device):
    """The same batch elsewhere."""
    images, targets = batch
    masks = PackedMasks(*(part.to(device) for part in targets.masks))
    parts = [part.to(device) if isinstance(part, torch.Tensor) else part for part in targets]
    return Images(*(part.to(device) for part in images)), Targets(*parts)._replace(masks=masks)
