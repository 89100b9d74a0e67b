"""A stand-in for a detector that sees: it finds bright areas exactly, and its masks and heat maps are the picture's.

An object is what is bright in one of the first two channels (its class), the third channel marks keypoints: 200 the
left one, 100 the right one, whichever side of the object they are on. What it finds is moved as the picture is.
"""

import torch

from model.config import KeypointHeadConfig, KeypointScore, MaskHeadConfig, PasteRule, PictureConfig
from model.heads.box import BoxDetections
from model.structures import Detections
from tests.pipelines import tiny_run

SIDE = 28
SLOTS = 6


def cells(pixels, boxes, side=SIDE):
    """The picture [C, H, W] at the centres of a grid in each box: [D, C, side, side]."""
    height, width = pixels.shape[-2:]
    steps = (torch.arange(side) + 0.5) / side
    found = []
    for x1, y1, x2, y2 in boxes.tolist():
        x, y = x1 + steps * (x2 - x1), y1 + steps * (y2 - y1)
        grid = torch.stack(torch.meshgrid(2 * x / width - 1, 2 * y / height - 1, indexing="xy"), dim=-1)
        found.append(torch.nn.functional.grid_sample(pixels[None], grid[None], align_corners=False)[0])
    return torch.stack(found) if found else torch.zeros(0, pixels.shape[0], side, side)


class Sees:
    """Finds at most one object a class and picture; in `blind` views (by height of the input) it finds nothing."""

    def __init__(self, *, keypoints=True, masks=True, blind=()):
        self.config = tiny_run.detector_config(
            picture=PictureConfig(short_edge_px=64, long_edge_px=96, size_divisor=1),
            mask=MaskHeadConfig(paste=PasteRule.GRID_SAMPLE, enabled=masks),
            keypoint=KeypointHeadConfig(keypoints, 2, ((0, 1),), score=KeypointScore.LOGIT),
        )
        self.blind, self.decoded, self.passes = blind, [], 0

    def detect(self, images):
        self.decoded.append(tuple(images.pixels.shape))
        batch = len(images.pixels)
        shape = (batch, SLOTS)
        labels, valid = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        found = BoxDetections(torch.zeros(*shape, 4), torch.zeros(shape), labels, valid)
        for b, picture in enumerate(images.pixels.float()):
            at = 0
            for label in range(2):
                bright = picture[label] >= 120
                if not bright.any() or picture.shape[1] in self.blind:
                    continue
                rows, columns = bright.any(dim=1).nonzero(), bright.any(dim=0).nonzero()
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                found.boxes[b, at], found.labels[b, at] = torch.tensor(box).float(), label
                found.scores[b, at], found.valid[b, at] = 0.9 - 0.1 * label, True
                at += 1
        return [images.pixels.float()], found

    def complete(self, features, found):
        self.passes += 1
        masks, maps = [], []
        for picture, boxes, labels in zip(features[0], found.boxes, found.labels, strict=True):
            looked = cells(picture, boxes)
            masks.append(looked[torch.arange(len(boxes)), labels] / 240)
            marks = looked[:, 2]
            maps.append(torch.stack([-(marks - 200).abs(), -(marks - 100).abs()], dim=1))
        keypoints = torch.stack(maps) if self.config.keypoint.enabled else None
        return Detections(*found, torch.stack(masks) if self.config.mask.enabled else None, keypoints)

    def predict(self, images):
        return self.complete(*self.detect(images))
