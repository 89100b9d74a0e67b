"""What flows through the detector: batches of fixed shape, with masks that say which entries are real.

Shape letters: B pictures, G objects a picture (padded), P proposals, D detections, M mask side, K classes,
J keypoints, R RoIs, S samples.
Boxes are x1, y1, x2, y2 in pixels of the (resized, padded) network input, continuous, x2 > x1.
"""

from typing import NamedTuple

from torch import Tensor


class Images(NamedTuple):
    """A batch of pictures, padded at the bottom and right to one size.

    Attributes:
        pixels: [B, 3, H, W], RGB, values 0..255, uint8 or float32, channels last in memory.
        sizes_hw: int64 [B, 2], height and width of each picture without the padding.
    """

    pixels: Tensor
    sizes_hw: Tensor


class PackedMasks(NamedTuple):
    """Instance masks as tight bitmap crops, one after the other in a flat buffer.

    A crop stands for its whole picture: it is zero outside the crop.

    Attributes:
        data: uint8 [S], values 0 and 1, row-major crops; the tail may be padding.
        offsets: int64 [B, G], where each crop begins in `data`; -1 for an object whose mask is not known.
        extents: int64 [B, G, 6], (y0, x0, h, w, H, W): the crop covers rows y0..y0+h and columns x0..x0+w of an
            H x W mask.
    """

    data: Tensor
    offsets: Tensor
    extents: Tensor


class Targets(NamedTuple):
    """Ground truth of a batch, padded to G objects a picture.

    Attributes:
        boxes: float32 [B, G, 4].
        labels: int64 [B, G] in 0..K-1.
        valid: bool [B, G], false for padding.
        masks: the instance masks.
        seeds: int64 [B], one number a picture that fixes which anchors and proposals are sampled for it.
        keypoints: float32 [B, G, J, 3], (x, y, visibility 0, 1 or 2) in network-input pixels; None without keypoints.
        semantic: uint8 [B, H, W], class of each pixel of the padded network input, 255 where it is not known; None
            where no semantic map is used.
        ignore: bool [B, G], a subset of padding (`valid` is false): regions that are neither object nor background,
            such as crowds or uncertain pseudo-labels; None where there is none.
        weights: float32 [B, G], factor of an object's share in the losses; None for 1 everywhere.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    masks: PackedMasks
    seeds: Tensor
    keypoints: Tensor | None = None
    semantic: Tensor | None = None
    ignore: Tensor | None = None
    weights: Tensor | None = None


class Proposals(NamedTuple):
    """Class-agnostic boxes, best first.

    Attributes:
        boxes: float32 [B, P, 4].
        scores: float32 [B, P], objectness probability.
        valid: bool [B, P], false for padding.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


class SampledRoIs(NamedTuple):
    """The RoIs in the loss, S a picture, positives first, and what they are trained towards.

    Attributes:
        rois: float32 [B, S, 4].
        labels: int64 [B, S], K for background.
        boxes: float32 [B, S, 4], the matched object.
        positive: bool [B, S].
        valid: bool [B, S], false for padding.
        objects: int64 [B, S], index of the matched object in its picture.
        is_object: bool [B, S], the RoI is an object's own box, added to the proposals.
        weights: float32 [B, S] or a scalar, factor of each RoI's losses.
    """

    rois: Tensor
    labels: Tensor
    boxes: Tensor
    positive: Tensor
    valid: Tensor
    objects: Tensor
    is_object: Tensor
    weights: Tensor


class Detections(NamedTuple):
    """Final detections of a batch, best first.

    Attributes:
        boxes: float32 [B, D, 4].
        scores: float32 [B, D].
        labels: int64 [B, D] in 0..K-1.
        valid: bool [B, D], false for padding.
        masks: float32 [B, D, M, M], probability that a cell of the box belongs to the object; None of a detector
            without a mask head.
        heatmaps: float32 [B, D, J, S, S], logits of each keypoint's place in the box; None without keypoints.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None
    heatmaps: Tensor | None = None
