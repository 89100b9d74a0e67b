"""The same weights, the same picture, the same answer as torchvision's maskrcnn_resnet50_fpn."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from model.config import DetectorConfig
from model.convert import from_torchvision
from model.detector import loss_names
from model.ops.masks import mask_rle
from model.picture import pad, resize, resized_hw, tight_hw
from model.structures import PackedMasks, Targets
from tests.oracles.torchvision_peer import NUM_CLASSES, build_ours, build_peer, textured_picture

MIN_DETECTIONS = 40


@pytest.fixture(scope="module")
def peer():
    return build_peer()


def predict_ours(detector, picture):
    """Boxes, scores, labels and binary masks [D, H, W] in original pixels."""
    height, width = picture.shape[-2:]
    size = resized_hw(height, width, detector.config.picture.short_edge_px, detector.config.picture)
    images = pad(
        [resize(picture * 255, size, detector.config.picture.kernel)], tight_hw([size], detector.config.picture)
    )
    found = detector.eval().predict(images)
    count = int(found.valid[0].sum())
    scale = torch.tensor([width / size[1], height / size[0]] * 2)
    boxes = found.boxes[0, :count] * scale
    runs = mask_rle(found.masks[0, :count], boxes, torch.tensor([[height, width]] * count), 0.5, padded=True)
    masks = [coco_mask.decode({"size": [height, width], "counts": counts}) for counts in runs.counts]
    return boxes, found.scores[0, :count], found.labels[0, :count], np.stack(masks)


@pytest.mark.parametrize("shape", [(333, 500), (480, 360), (250, 250)])
def test_inference_equals_torchvision(peer, shape):
    picture = textured_picture(7, *shape)
    with torch.no_grad():
        theirs = peer.eval()([picture])[0]
    boxes, scores, labels, masks = predict_ours(build_ours(peer), picture)
    assert len(theirs["boxes"]) >= MIN_DETECTIONS
    assert len(boxes) == len(theirs["boxes"])
    # Neighbours whose scores are equal up to rounding may change places, so pair each of theirs with its own twin.
    distance = torch.cdist(theirs["boxes"], boxes, p=1) + 1e6 * (theirs["labels"][:, None] != labels + 1)
    twin = distance.argmin(dim=1)
    assert twin.unique().numel() == len(boxes)
    torch.testing.assert_close(boxes[twin], theirs["boxes"], atol=0.01, rtol=0)
    torch.testing.assert_close(scores[twin], theirs["scores"], atol=1e-4, rtol=0)
    assert (scores.diff() <= 0).all()
    different = (masks[twin] != (theirs["masks"][:, 0] > 0.5).numpy()).mean(axis=(1, 2))
    assert different.max() <= 1e-3


def ground_truth(height, width):
    """Two pictures' objects: boxes, labels and full masks (ellipses, so that edges are not all straight)."""
    layouts = [
        [(5, 7, 40, 47), (25, 15, 75, 60), (2, 45, 30, 62), (52, 5, 92, 30)],
        [(10, 10, 32, 35), (37, 2, 95, 60)],
    ]
    y, x = np.mgrid[:height, :width] + 0.5
    pictures = []
    for layout in layouts:
        masks = [
            (((x - (a + c) / 2) / ((c - a) / 2)) ** 2 + ((y - (b + d) / 2) / ((d - b) / 2)) ** 2 < 1)
            for a, b, c, d in layout
        ]
        labels = [(3 * i) % (NUM_CLASSES - 1) for i in range(len(layout))]
        pictures.append((np.array(layout, np.float32), np.array(labels), np.stack(masks).astype(np.uint8)))
    return pictures


def pack(pictures, height, width):
    """The same objects as our padded targets."""
    batch, objects = len(pictures), 8
    boxes, labels = torch.zeros(batch, objects, 4), torch.zeros(batch, objects, dtype=torch.int64)
    valid = torch.zeros(batch, objects, dtype=torch.bool)
    offsets = torch.zeros(batch, objects, dtype=torch.int64)
    extents = torch.zeros(batch, objects, 6, dtype=torch.int64)
    data, start = [], 0
    for b, (picture_boxes, picture_labels, masks) in enumerate(pictures):
        count = len(picture_labels)
        boxes[b, :count] = torch.from_numpy(picture_boxes)
        labels[b, :count] = torch.from_numpy(picture_labels)
        valid[b, :count] = True
        for g, mask in enumerate(masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            offsets[b, g] = start
            extents[b, g] = torch.tensor([y0, x0, y1 - y0, x1 - x0, height, width])
            data.append(mask[y0:y1, x0:x1].ravel())
            start += data[-1].size
    packed = PackedMasks(torch.from_numpy(np.concatenate(data)), offsets, extents)
    return Targets(boxes, labels, valid, packed, torch.arange(batch))


# Larger than the number of candidates, so that nothing is drawn: at most 60 of the 600 boxes are positive.
NO_SAMPLING = {"rpn_batch_size_per_image": 20_000, "rpn_positive_fraction": 1.0,
               "box_batch_size_per_image": 600, "box_positive_fraction": 0.1}  # fmt: skip
NO_SAMPLING_OURS = {
    "rpn.samples": 20_000,
    "rpn.positive_share": 1.0,
    "box.samples": 600,
    "box.positive_share": 0.1,
}


@pytest.mark.parametrize("with_objects", [True, False], ids=["objects", "second-picture-empty"])
def test_losses_and_gradients_equal_torchvision(with_objects):
    height, width = 64, 96
    peer = build_peer(**NO_SAMPLING, min_size=64).train()
    ours = build_ours(peer, **NO_SAMPLING_OURS, **{"picture.short_edge_px": 64}).train()
    pictures = [textured_picture(seed, height, width) for seed in (1, 2)]
    objects = ground_truth(height, width)
    if not with_objects:
        objects[1] = tuple(part[:0] for part in objects[1])
    theirs = peer(
        pictures,
        [
            {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(k) + 1, "masks": torch.from_numpy(m)}
            for b, k, m in objects
        ],
    )
    images = pad([picture * 255 for picture in pictures], tight_hw([(height, width)] * 2, ours.config.picture))
    losses = ours.losses(images, pack(objects, height, width))
    peers_names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
    names = dict(zip(loss_names(DetectorConfig()), peers_names, strict=True))
    for name in loss_names(DetectorConfig()):
        torch.testing.assert_close(losses[name], theirs[names[name]], rtol=1e-4, atol=1e-6, msg=name)
    sum(theirs.values()).backward()
    sum(losses.values()).backward()
    # Converting the peer's gradients by its weights' own table pairs each with ours.
    gradients = {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in peer.state_dict(keep_vars=True).items()
    }
    paired = from_torchvision(gradients)
    checked = 0
    for name, parameter in ours.named_parameters():
        norm = paired[name].norm()
        torch.testing.assert_close(parameter.grad.norm(), norm, rtol=1e-3, atol=1e-6, msg=name)
        assert (parameter.grad - paired[name]).norm() <= 2e-2 * norm + 1e-6, name
        checked += 1
    assert checked > 70
