"""The box and mask heads: losses against loops, the choice of detections against torchvision's, live."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import roi_align

from model.boxes import encode
from model.config import BoxHeadConfig, MaskHeadConfig, MaskTarget
from model.heads.box import BoxHead, box_losses, select_detections
from model.heads.mask import MaskHead, mask_loss, mask_probabilities
from model.presets import torchvision_mask_rcnn_r50_fpn
from model.structures import PackedMasks, SampledRoIs

CLASSES = 5
SIDE = 40


def boxes_in(generator, *shape, side=SIDE):
    corner = torch.rand(*shape, 2, generator=generator) * side * 0.6
    return torch.cat([corner, corner + 4 + torch.rand(*shape, 2, generator=generator) * side * 0.3], dim=-1)


def sampled(rois, labels, boxes, positive, valid, objects=None):
    """RoIs of weight 1, none of them an object's own box."""
    objects = torch.zeros_like(labels) if objects is None else objects
    return SampledRoIs(rois, labels, boxes, positive, valid, objects, torch.zeros_like(positive), torch.ones(()))


def box_case(positive, valid, seed=0):
    """Logits, deltas and targets of RoIs that are positive and valid as given [B, S]."""
    generator = torch.Generator().manual_seed(seed)
    positive, valid = torch.tensor(positive, dtype=torch.bool), torch.tensor(valid, dtype=torch.bool)
    shape = positive.shape
    labels = torch.where(positive, torch.randint(0, CLASSES, shape, generator=generator), CLASSES)
    rois, objects = boxes_in(generator, *shape), boxes_in(generator, *shape)
    targets = sampled(rois, labels, objects, positive, valid)
    logits = torch.randn(positive.numel(), CLASSES + 1, generator=generator).requires_grad_()
    deltas = torch.randn(positive.numel(), CLASSES, 4, generator=generator).requires_grad_()
    return logits, deltas, targets


def test_box_head_gives_a_score_more_than_classes_in_float32():
    head = BoxHead(3, 7, CLASSES, BoxHeadConfig(channels=8)).to(torch.bfloat16)
    logits, deltas = head(torch.zeros(6, 3, 7, 7, dtype=torch.bfloat16))
    assert (logits.shape, deltas.shape) == ((6, CLASSES + 1), (6, CLASSES, 4))
    assert logits.dtype == deltas.dtype == torch.float32


def test_box_head_reads_channel_row_column_in_any_memory_order():
    head = BoxHead(3, 7, CLASSES, BoxHeadConfig(channels=8))
    crops = torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    hidden = F.linear(torch.stack([crop.flatten() for crop in crops]), head.fcs[0].weight, head.fcs[0].bias).relu()
    wanted = head.scores(F.linear(hidden, head.fcs[1].weight, head.fcs[1].bias).relu())
    torch.testing.assert_close(head(crops.contiguous(memory_format=torch.channels_last))[0], wanted)


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_box_losses_equal_the_loop(beta):
    config = BoxHeadConfig(smooth_l1_beta=beta)
    logits, deltas, targets = box_case([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    found = box_losses(logits, deltas, targets, config)
    classes, box, valid = 0.0, 0.0, 0
    for b in range(2):
        for s in range(5):
            row, label = b * 5 + s, int(targets.labels[b, s])
            if not targets.valid[b, s]:
                continue
            valid += 1
            classes += (logits[row].logsumexp(0) - logits[row, label]).item()
            if targets.positive[b, s]:
                wanted = encode(targets.boxes[b, s], targets.rois[b, s], config.delta_weights)
                difference = (deltas[row, label] - wanted).abs()
                quadratic = 0.5 * difference**2 / beta if beta else difference
                box += torch.where(difference < beta, quadratic, difference - 0.5 * beta).sum().item()
    assert found["cls"].item() == pytest.approx(classes / valid, rel=1e-5)
    assert found["box"].item() == pytest.approx(box / valid, rel=1e-5)


def test_without_positives_the_box_loss_is_zero_and_keeps_its_gradient():
    logits, deltas, targets = box_case([[0, 0, 0]], [[1, 1, 0]])
    losses = box_losses(logits, deltas, targets, BoxHeadConfig())
    sum(losses.values()).backward()
    assert losses["box"].item() == 0
    assert deltas.grad is not None
    assert not deltas.grad.any()
    assert logits.grad[:2].all()
    assert not logits.grad[2].any()


def test_without_samples_both_losses_are_zero():
    logits, deltas, targets = box_case([[0, 0]], [[0, 0]])
    losses = box_losses(logits, deltas, targets, BoxHeadConfig())
    sum(losses.values()).backward()
    assert losses["cls"].item() == losses["box"].item() == 0
    assert not logits.grad.any()


def test_only_the_own_class_of_a_positive_learns_a_box():
    logits, deltas, targets = box_case([[1, 0]], [[1, 1]])
    box_losses(logits, deltas, targets, BoxHeadConfig())["box"].backward()
    learns = deltas.grad.abs().sum(dim=2) > 0
    assert learns.nonzero().tolist() == [[0, int(targets.labels[0, 0])]]


def peers_detections(logits, deltas, rois, roi_valid, sizes, config):
    """torchvision's postprocess_detections, which has the background first."""
    heads = RoIHeads(
        *[None] * 3, 0.5, 0.5, 512, 0.25, config.delta_weights, config.score_threshold, config.nms_iou,
        config.max_detections,
    )  # fmt: skip
    real = roi_valid.flatten()
    theirs_logits = torch.cat([logits[:, -1:], logits[:, :-1]], dim=1)[real]
    theirs_deltas = torch.cat([torch.zeros(len(deltas), 1, 4), deltas], dim=1).flatten(1)[real]
    proposals = [boxes[keep] for boxes, keep in zip(rois, roi_valid, strict=True)]
    shapes = [tuple(size) for size in sizes.tolist()]
    return zip(*heads.postprocess_detections(theirs_logits, theirs_deltas, proposals, shapes), strict=True)


@pytest.mark.parametrize("max_detections", [20, 1000])
def test_detections_equal_torchvision_s(max_detections):
    config = torchvision_mask_rcnn_r50_fpn().box
    config = BoxHeadConfig(**{**vars(config), "max_detections": max_detections})
    generator = torch.Generator().manual_seed(0)
    pictures, count, side = 3, 60, 200
    rois = boxes_in(generator, pictures, count, side=side)
    roi_valid = torch.rand(pictures, count, generator=generator) < 0.8
    roi_valid[2] = False
    sizes = torch.tensor([[150, 200], [90, 60], [200, 200]])
    logits = torch.randn(pictures * count, CLASSES + 1, generator=generator) * 3
    deltas = torch.randn(pictures * count, CLASSES, 4, generator=generator)
    found = select_detections(logits.softmax(dim=1), deltas, rois, roi_valid, sizes, config)
    slots = min(max_detections, count * CLASSES)
    assert found.boxes.shape == (pictures, slots, 4)
    theirs = peers_detections(logits, deltas, rois, roi_valid, sizes, config)
    for b, (boxes, scores, labels) in enumerate(theirs):
        assert found.valid[b].tolist() == [slot < len(boxes) for slot in range(slots)]
        torch.testing.assert_close(found.scores[b, : len(boxes)], scores)
        torch.testing.assert_close(found.boxes[b, : len(boxes)], boxes)
        assert torch.equal(found.labels[b, : len(boxes)], labels - 1)
        assert not found.boxes[b, len(boxes) :].any()
        assert not found.scores[b, len(boxes) :].any()
    assert found.valid.sum(dim=1).min() == 0
    assert found.valid[:2].sum() >= min(40, 2 * slots)


def test_proposals_that_are_padding_or_low_are_not_detected():
    logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    rois = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [20.0, 20.0, 28.0, 28.0], [0.0, 20.0, 8.0, 28.0]]])
    config = BoxHeadConfig(max_detections=4)
    found = select_detections(
        logits.softmax(dim=1),
        torch.zeros(3, 2, 4),
        rois,
        torch.tensor([[False, True, True]]),
        torch.tensor([[32, 32]]),
        config,
    )
    assert found.valid.tolist() == [[True, False, False, False]]
    assert found.labels[0, 0].item() == 1
    assert found.boxes[0, 0].tolist() == [20.0, 20.0, 28.0, 28.0]


# The mask head.


def rectangles(batch, objects, seed=0):
    """Full masks uint8 [B, G, SIDE, SIDE] of random rectangles, and the same packed."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.zeros(batch, objects, SIDE, SIDE, dtype=torch.uint8)
    data, offsets, extents = [], torch.zeros(batch, objects, dtype=torch.int64), []
    start = 0
    for b in range(batch):
        for g in range(objects):
            y, x, h, w = (int(n) for n in torch.randint(5, 20, (4,), generator=generator))
            bits = (torch.rand(h, w, generator=generator) < 0.8).to(torch.uint8)
            whole[b, g, y : y + h, x : x + w] = bits
            offsets[b, g] = start
            extents.append([y, x, h, w, SIDE, SIDE])
            data.append(bits.flatten())
            start += h * w
    packed = PackedMasks(torch.cat(data), offsets, torch.tensor(extents).view(batch, objects, 6))
    return whole, packed


def mask_case(seed=0):
    """Two pictures, three objects and four RoIs each; logits with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    whole, packed = rectangles(2, 3)
    rois = boxes_in(generator, 2, 4)
    objects = torch.randint(0, 3, (2, 4), generator=generator)
    labels = torch.randint(0, CLASSES, (2, 4), generator=generator)
    logits = torch.randn(8, CLASSES, 14, 14, generator=generator).requires_grad_()
    return whole, packed, rois, objects, labels, logits


def loss_of(logits, rois, objects, labels, positive, packed, config=MaskHeadConfig()):  # noqa: B008 - frozen
    """The mask loss of RoIs that are background where not positive."""
    labels = torch.where(positive, labels, CLASSES)
    targets = sampled(rois, labels, torch.zeros_like(rois), positive, torch.ones_like(positive), objects)
    return mask_loss(logits, targets, packed, config)


@pytest.mark.parametrize("target", MaskTarget)
def test_mask_loss_equals_cross_entropy_with_pooled_full_masks(target):
    whole, packed, rois, objects, labels, logits = mask_case()
    positive = torch.tensor([[True, True, True, False], [True, False, False, False]])
    terms = []
    for b, r in positive.nonzero().tolist():
        mask = whole[b, objects[b, r]].float()[None, None]
        roi = torch.cat([torch.zeros(1), rois[b, r]])[None]
        wanted = roi_align(mask, roi, 14, 1.0, -1, aligned=target is MaskTarget.BINARY)[0, 0]
        if target is MaskTarget.BINARY:
            wanted = (wanted >= 0.5).float()
        terms.append(F.binary_cross_entropy_with_logits(logits[4 * b + r, labels[b, r]], wanted))
    found = loss_of(logits, rois, objects, labels, positive, packed, MaskHeadConfig(target=target))
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_only_the_own_class_s_mask_learns():
    _, packed, rois, objects, labels, logits = mask_case()
    positive = torch.tensor([[True, False, False, False], [False, True, False, False]])
    loss_of(logits, rois, objects, labels, positive, packed).backward()
    learns = logits.grad.abs().sum(dim=(2, 3)) > 0
    assert learns.nonzero().tolist() == [[0, int(labels[0, 0])], [5, int(labels[1, 1])]]


def test_without_positives_the_mask_loss_is_zero_and_keeps_its_gradient():
    _, packed, rois, objects, labels, logits = mask_case()
    loss = loss_of(logits, rois, objects, labels, torch.zeros(2, 4, dtype=torch.bool), packed)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_an_object_of_unknown_mask_is_left_out():
    _, packed, rois, objects, labels, logits = mask_case()
    positive = torch.ones(2, 4, dtype=torch.bool)
    unknown = packed._replace(offsets=packed.offsets.clone())
    unknown.offsets[0, objects[0, 0]] = -1
    without = positive & ~((objects == objects[0, 0]) & torch.tensor([[True], [False]]))
    assert 0 < without.sum() < positive.sum()
    found = loss_of(logits, rois, objects, labels, positive, unknown)
    torch.testing.assert_close(found, loss_of(logits, rois, objects, labels, without, packed))
    assert found != loss_of(logits, rois, objects, labels, positive, packed)
    all_unknown = packed._replace(offsets=torch.full_like(packed.offsets, -1))
    nothing = loss_of(logits, rois, objects, labels, positive, all_unknown)
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("num_convs", [0, 2])
def test_mask_head_doubles_the_side(num_convs):
    head = MaskHead(6, CLASSES, MaskHeadConfig(channels=4, num_convs=num_convs))
    assert len(head.convs) == num_convs
    assert head(torch.zeros(3, 6, 14, 14)).shape == (3, CLASSES, 28, 28)


def test_probabilities_are_those_of_each_roi_s_own_class():
    logits = (torch.arange(4 * CLASSES * 4).view(4, CLASSES, 2, 2) / 10 - 4).to(torch.bfloat16)
    labels = torch.tensor([3, 0, 4, 3])
    chosen = mask_probabilities(logits, labels, MaskHeadConfig())
    assert chosen.dtype == torch.float32
    for r, label in enumerate(labels.tolist()):
        assert torch.equal(chosen[r], logits[r, label].float().sigmoid())
