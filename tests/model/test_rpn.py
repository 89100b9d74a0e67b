"""The region proposal network: proposals against torchvision's, live, and their laws; losses against a loop."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.rpn import RegionProposalNetwork

from model.boxes import decode, encode, pairwise_iou
from model.config import AnchorConfig, RpnConfig
from model.rpn import RegionProposals, RpnHead, RpnOutput
from tests.model.tiny_batch import plain_targets

STRIDES = (4, 8, 16, 32, 64)
ANCHORS = AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 128.0))
CONFIG = RpnConfig(pre_nms_train=50, pre_nms_test=30, post_nms_train=60, post_nms_test=25, min_size_px=1e-3)
SIZES = torch.tensor([[64, 96], [50, 70], [64, 64]])
ONES = (1.0, 1.0, 1.0, 1.0)


def build(**changes):
    return RegionProposals(RpnHead(4, 3), ANCHORS, STRIDES, dataclasses.replace(CONFIG, **changes))


def features(seed=0, channels=4):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    return [torch.randn(3, channels, *size, generator=generator) for size in sizes]


def random_output(rpn, seed=0):
    """Predictions of full spread, on the network's own anchors."""
    generator = torch.Generator().manual_seed(seed)
    raw = rpn(features())
    logits = [3 * torch.randn(level.shape, generator=generator) for level in raw.logits]
    deltas = [0.5 * torch.randn(level.shape, generator=generator) for level in raw.deltas]
    return RpnOutput(logits, deltas, raw.anchors)


def test_predictions_are_flattened_in_the_order_of_the_anchors():
    rpn = build()
    maps = features()
    output = rpn(maps)
    for level, map_ in enumerate(maps):
        hidden = rpn.head.convs[0](map_).relu()
        scores, deltas = rpn.head.objectness(hidden), rpn.head.deltas(hidden)
        rows, columns = map_.shape[-2:]
        index = 0
        for y in range(rows):
            for x in range(columns):
                for a in range(3):
                    assert output.logits[level][1, index] == scores[1, a, y, x]
                    assert torch.equal(output.deltas[level][1, index], deltas[1, 4 * a : 4 * a + 4, y, x])
                    index += 1
        assert index == output.logits[level].shape[1] == len(output.anchors[level])


def peers_proposals(output, rpn):
    """torchvision's filter_proposals of the same predictions."""
    counts = {"training": CONFIG.pre_nms_train, "testing": CONFIG.pre_nms_test}
    kept = {"training": CONFIG.post_nms_train, "testing": CONFIG.post_nms_test}
    peer = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, counts, kept, CONFIG.nms_iou)
    peer.train(rpn.training)
    boxes = decode(torch.cat(output.deltas, dim=1), torch.cat(output.anchors), ONES)
    logits = torch.cat(output.logits, dim=1).flatten()[:, None]
    return peer.filter_proposals(boxes, logits, [tuple(s) for s in SIZES.tolist()], [len(a) for a in output.anchors])


@pytest.mark.parametrize("training", [True, False])
def test_proposals_equal_torchvision_s(training):
    rpn = build().train(training)
    output = random_output(rpn)
    found = rpn.proposals(output, SIZES)
    for b, (boxes, scores) in enumerate(zip(*peers_proposals(output, rpn), strict=True)):
        assert len(boxes) > 20
        assert found.valid[b].sum().item() == len(boxes)
        torch.testing.assert_close(found.boxes[b, : len(boxes)], boxes)
        torch.testing.assert_close(found.scores[b, : len(boxes)], scores)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_proposals_are_sorted_inside_the_picture_and_of_fixed_shape(training, seed):
    rpn = build().train(training)
    found = rpn.proposals(random_output(rpn, seed), SIZES)
    count = CONFIG.post_nms_train if training else CONFIG.post_nms_test
    assert found.boxes.shape == (3, count, 4)
    assert found.scores.shape == found.valid.shape == (3, count)
    assert (found.scores.diff(dim=1) <= 0).all()
    assert (found.valid.int().diff(dim=1) <= 0).all()  # the valid ones come first
    limits = SIZES.flip(1).repeat(1, 2)[:, None]
    assert ((found.boxes >= 0) & (found.boxes <= limits)).all()
    sides = (found.boxes[..., 2:] - found.boxes[..., :2])[found.valid]
    assert (sides >= CONFIG.min_size_px).all()
    assert not found.boxes[~found.valid].any()
    assert not found.scores[~found.valid].any()
    assert not found.boxes.requires_grad


def test_proposals_are_as_many_as_there_are_anchors_at_most():
    rpn = build(pre_nms_train=10_000, post_nms_train=10_000)
    output = random_output(rpn)
    found = rpn.proposals(output, SIZES)
    assert found.valid.shape == (3, sum(len(a) for a in output.anchors))
    # What was suppressed or is too small is padding.
    assert not found.valid.all(dim=1).any()
    assert not found.boxes[~found.valid].any()
    assert not found.scores[~found.valid].any()


def test_no_two_proposals_of_a_level_overlap_more_than_allowed():
    rpn = build(nms_iou=0.4)
    output = random_output(rpn)
    one_level = RpnOutput(output.logits[:1], output.deltas[:1], output.anchors[:1])
    found = rpn.proposals(one_level, SIZES)
    for b in range(3):
        boxes = found.boxes[b][found.valid[b]]
        assert pairwise_iou(boxes, boxes).triu(diagonal=1).max() <= 0.4


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda output: output.logits[0].fill_(torch.nan), id="scores"),
        pytest.param(lambda output: output.deltas[0].fill_(torch.nan), id="deltas"),
        pytest.param(lambda output: output.deltas[0][..., 2:].fill_(-1e9), id="no-extent"),
        pytest.param(lambda output: output.deltas[0][..., :2].fill_(1e6), id="outside"),
    ],
)
def test_what_is_no_box_is_no_proposal(spoil):
    rpn = build()
    output = random_output(rpn)
    spoil(output)
    output.logits[0][0, 0] = 50.0  # would come first
    found = rpn.proposals(output, SIZES)
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()
    without = rpn.proposals(RpnOutput(output.logits[1:], output.deltas[1:], output.anchors[1:]), SIZES)
    for b in range(1, 3):
        assert torch.equal(found.boxes[b][found.valid[b]], without.boxes[b][without.valid[b]])


# A matches L (0.8), and is the best that S has (0.5); B matches L better (1).
ANCHOR_A, ANCHOR_B, ANCHOR_C = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [50.0, 50.0, 60.0, 60.0]
LARGE, SMALL = [0.0, 0.0, 10.0, 8.0], [0.0, 5.0, 10.0, 10.0]


@pytest.mark.parametrize("reassign", [True, False])
def test_reassign_best_decides_what_an_object_s_best_anchor_learns(reassign):
    rpn = build(reassign_best=reassign)
    anchors = torch.tensor([ANCHOR_A, ANCHOR_B, ANCHOR_C])
    wanted_of_a = SMALL if reassign else LARGE
    deltas = encode(torch.tensor([wanted_of_a, LARGE, LARGE]), anchors, ONES)[None]
    objects = plain_targets([[LARGE, SMALL]], [[True, True]])
    right = rpn.losses(RpnOutput([torch.zeros(1, 3)], [deltas], [anchors]), objects, SIZES[:1])
    assert right["rpn_box"].item() == pytest.approx(0, abs=1e-6)
    wrong_deltas = encode(torch.tensor([LARGE if reassign else SMALL, LARGE, LARGE]), anchors, ONES)[None]
    wrong = rpn.losses(RpnOutput([torch.zeros(1, 3)], [wrong_deltas], [anchors]), objects, SIZES[:1])
    assert wrong["rpn_box"].item() > 0.1


@pytest.mark.parametrize("min_best_iou", [0.0, 0.45])
def test_losses_equal_the_loop_where_all_anchors_are_sampled(min_best_iou):
    config = {"samples": 10_000, "positive_share": 1.0, "smooth_l1_beta": 1 / 9, "min_best_iou": min_best_iou}
    rpn = build(**config)
    output = random_output(rpn)
    boxes = [[[4.0, 4.0, 20.0, 21.0], [30.0, 10.0, 60.0, 50.0], [1.0, 1.0, 4.0, 4.0]]] * 2 + [[[0.0] * 4] * 3]
    objects = plain_targets(boxes, [[True] * 3, [True, False, False], [False] * 3])
    anchors, deltas, logits = (
        torch.cat(output.anchors),
        torch.cat(output.deltas, dim=1),
        torch.cat(output.logits, dim=1),
    )
    classes, box, count = 0.0, 0.0, 0
    for b in range(3):
        real = objects.boxes[b][objects.valid[b]]
        iou = pairwise_iou(anchors, real)
        for n in range(len(anchors)):
            row = iou[n]
            top = row.max().item() if len(row) else -1.0
            best = any(row[g] == iou[:, g].max() > 0 and row[g] >= min_best_iou for g in range(len(real)))
            positive = top >= 0.7 or best
            if not positive and top >= 0.3:
                continue
            count += 1
            classes += F.softplus(-logits[b, n] if positive else logits[b, n]).item()
            if positive:
                difference = (deltas[b, n] - encode(real[row.argmax()], anchors[n], ONES)).abs()
                box += torch.where(difference < 1 / 9, 4.5 * difference**2, difference - 1 / 18).sum().item()
    found = rpn.losses(output, objects, SIZES)
    assert found["rpn_cls"].item() == pytest.approx(classes / count, rel=1e-4)
    assert found["rpn_box"].item() == pytest.approx(box / count, rel=1e-4)
    assert box > 0


def test_without_objects_the_box_loss_is_zero_and_keeps_its_gradient():
    rpn = build()
    losses = rpn.losses(rpn(features()), plain_targets([[[0.0] * 4]] * 3, [[False]] * 3), SIZES)
    sum(losses.values()).backward()
    assert losses["rpn_box"].item() == 0
    assert losses["rpn_cls"].item() == pytest.approx(0.693, abs=0.05)
    assert not rpn.head.deltas.weight.grad.any()
    assert rpn.head.objectness.weight.grad.any()


def test_a_picture_counts_as_many_anchors_as_asked_for():
    rpn = build(samples=16)
    output = random_output(rpn)
    zero = RpnOutput([torch.zeros_like(level).requires_grad_() for level in output.logits], *output[1:])
    objects = plain_targets([[[4.0, 4.0, 20.0, 21.0]]] * 3, [[True], [True], [False]])
    rpn.losses(zero, objects, SIZES)["rpn_cls"].backward()
    used = torch.cat([level.grad for level in zero.logits], dim=1)
    assert (used != 0).sum(dim=1).tolist() == [16, 16, 16]
    assert ((used < 0).sum(dim=1) <= 8).all()
    assert (used[:2] < 0).any(dim=1).all()
    assert not (used[2] < 0).any()
