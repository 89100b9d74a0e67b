"""The rules on which the frameworks' region proposal networks differ, against one loop that spells them all."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from model.boxes import encode, pairwise_iou
from model.config import AnchorConfig, LossDivisor, RpnConfig
from model.rpn import RegionProposals, RpnHead
from tests.model.test_rpn import ANCHORS, ONES, SIZES, STRIDES, features, random_output
from tests.model.tiny_batch import plain_targets

DIVISOR_PX = 32
# All anchors are sampled, so that the loop needs no random keys.
ALL = RpnConfig(samples=10_000, positive_share=1.0, smooth_l1_beta=1 / 9)


def build(**changes):
    return RegionProposals(RpnHead(4, 3), ANCHORS, STRIDES, dataclasses.replace(ALL, **changes), DIVISOR_PX)


def takes_part(anchor, centre, size_hw, config):
    """By the words of `RpnConfig`; `centre` is the anchor's cell in pixels."""
    height, width = size_hw
    if config.border_px >= 0:
        x1, y1, x2, y2 = anchor
        border = config.border_px
        if x1 < -border or y1 < -border or x2 >= width + border or y2 >= height + border:
            return False
    if config.own_padding_only:
        padded_h, padded_w = (-(-side // DIVISOR_PX) * DIVISOR_PX for side in size_hw)
        return centre[0] < padded_w and centre[1] < padded_h
    return True


def cells():
    """The corner (x, y) of each anchor's cell, in the anchors' order."""
    places = []
    for stride, map_ in zip(STRIDES, features(), strict=True):
        rows, columns = map_.shape[-2:]
        places += [(x * stride, y * stride) for y in range(rows) for x in range(columns) for _ in range(3)]
    return places


def is_in_region(box, regions):
    for region in regions.tolist():
        width = min(box[2], region[2]) - max(box[0], region[0])
        height = min(box[3], region[3]) - max(box[1], region[1])
        if width > 0 and height > 0 and width * height >= 0.5 * (box[2] - box[0]) * (box[3] - box[1]):
            return True
    return False


def losses_by_loop(output, targets, config):
    """(sum of the classes' loss, sum of the boxes' loss, sampled, pictures without a positive)."""
    anchors, logits = torch.cat(output.anchors), torch.cat(output.logits, dim=1)
    deltas, corners = torch.cat(output.deltas, dim=1), cells()
    classes = box = 0.0
    count = lonely = 0
    for b, size_hw in enumerate(SIZES.tolist()):
        real = targets.valid[b].nonzero().flatten()
        regions = targets.boxes[b][targets.ignore[b]] if targets.ignore is not None else targets.boxes[b][:0]
        part = [n for n, a in enumerate(anchors.tolist()) if takes_part(a, corners[n], size_hw, config)]
        iou = pairwise_iou(anchors[part], targets.boxes[b, real])
        positives = 0
        for n, row in zip(part, iou, strict=True):
            top = row.max().item() if len(row) else -1.0
            best = any(row[g] == iou[:, g].max() > 0 for g in range(len(real)))
            if top >= config.positive_iou or best:
                positives += 1
                g = int(row.argmax())
                weight = 1.0 if targets.weights is None else targets.weights[b, real[g]].item()
                classes += weight * F.softplus(-logits[b, n]).item()
                difference = (deltas[b, n] - encode(targets.boxes[b, real[g]], anchors[n], ONES)).abs()
                box += weight * torch.where(difference < 1 / 9, 4.5 * difference**2, difference - 1 / 18).sum().item()
            elif top < config.negative_iou and not is_in_region(anchors[n].tolist(), regions):
                classes += F.softplus(logits[b, n]).item()
            else:
                continue
            count += 1
        lonely += positives == 0
    return classes, box, count, lonely


OBJECTS = [[4.0, 4.0, 20.0, 21.0], [30.0, 10.0, 60.0, 50.0], [1.0, 1.0, 4.0, 4.0]]
TARGETS = plain_targets([OBJECTS] * 3, [[True] * 3, [True, False, False], [False] * 3])
REGIONS = torch.tensor([[False] * 3, [False, True, False], [True, False, False]])
WEIGHTS = torch.tensor([[0.5, 0.25, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
CASES = {
    "all": ({}, {}),
    "border-0": ({"border_px": 0}, {}),
    "border-7": ({"border_px": 7}, {}),
    "own-padding": ({"own_padding_only": True}, {}),
    "border-and-own-padding": ({"border_px": 3, "own_padding_only": True}, {}),
    "ignored-regions": ({}, {"ignore": REGIONS}),
    "weights": ({}, {"weights": WEIGHTS}),
    "everything": ({"border_px": 0, "own_padding_only": True}, {"ignore": REGIONS, "weights": WEIGHTS}),
}


@pytest.mark.parametrize(("settings", "given"), CASES.values(), ids=CASES)
def test_losses_equal_the_loop(settings, given):
    rpn = build(**settings)
    output, targets = random_output(rpn), TARGETS._replace(**given)
    classes, box, count, _ = losses_by_loop(output, targets, rpn.config)
    found = rpn.losses(output, targets, SIZES)
    assert found["rpn_cls"].item() == pytest.approx(classes / count, rel=1e-4)
    assert found["rpn_box"].item() == pytest.approx(box / count, rel=1e-4)
    everything = sum(len(level) for level in output.anchors) * len(SIZES)
    assert 0 < count < everything


def test_each_rule_leaves_out_other_anchors():
    counts = {}
    for name in ("all", "border-0", "border-7", "own-padding", "ignored-regions"):
        settings, given = CASES[name]
        rpn = build(**settings)
        counts[name] = losses_by_loop(random_output(rpn), TARGETS._replace(**given), rpn.config)[2]
    assert counts["border-0"] < counts["border-7"] < counts["all"]
    assert counts["own-padding"] < counts["all"] > counts["ignored-regions"]


@pytest.mark.parametrize("divisor", LossDivisor)
@pytest.mark.parametrize("samples", [40, 10_000])
def test_what_the_losses_are_divided_by(divisor, samples):
    rpn = build(samples=10_000, divisor=divisor)
    output = random_output(rpn)
    classes, box, count, lonely = losses_by_loop(output, TARGETS, rpn.config)
    rpn.config = dataclasses.replace(rpn.config, samples=samples)
    found = rpn.losses(output, TARGETS, SIZES)
    wanted = {
        LossDivisor.SAMPLED: count,
        LossDivisor.ONE_POSITIVE: count + lonely,
        LossDivisor.CONFIGURED: samples * len(SIZES),
    }
    assert lonely == 1
    if samples == 10_000:
        assert found["rpn_cls"].item() == pytest.approx(classes / wanted[divisor], rel=1e-4)
        assert found["rpn_box"].item() == pytest.approx(box / wanted[divisor], rel=1e-4)
        return
    # As many as asked for were found, so only the picture without positives tells the divisors apart.
    rpn.config = dataclasses.replace(rpn.config, divisor=LossDivisor.CONFIGURED)
    ratio = found["rpn_cls"] / rpn.losses(output, TARGETS, SIZES)["rpn_cls"]
    one_more = 120 / 121 if divisor is LossDivisor.ONE_POSITIVE else 1
    assert ratio.item() == pytest.approx(one_more, rel=1e-5)


def test_where_no_anchor_takes_part_the_losses_are_zero():
    tiny = torch.tensor([[3, 3]] * 3)
    rpn = build(border_px=0)
    losses = rpn.losses(rpn(features()), TARGETS, tiny)
    sum(losses.values()).backward()
    assert losses["rpn_cls"].item() == losses["rpn_box"].item() == 0


@pytest.mark.parametrize("num_convs", [1, 2, 3])
def test_a_head_of_several_convolutions(num_convs):
    torch.manual_seed(0)
    head = RpnHead(4, 3, num_convs)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden = features()[2]
    for conv in head.convs:
        hidden = F.conv2d(hidden, conv.weight, conv.bias, padding=1).relu()
    logits, deltas = head(features())
    assert len(head.convs) == num_convs
    assert torch.equal(logits[2], head.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(deltas[2], head.deltas(hidden).permute(0, 2, 3, 1).reshape(3, -1, 4))


def test_a_single_map_has_all_sizes_in_each_cell_ratios_first():
    config = AnchorConfig(sizes_px=(32.0, 64.0, 128.0), ratios=(0.5, 2.0))
    rpn = RegionProposals(RpnHead(4, 6), config, (16,), RpnConfig())
    output = rpn([torch.zeros(1, 4, 2, 3)])
    (anchors,) = output.anchors
    assert output.logits[0].shape == (1, 36)
    side = (anchors[:, 2:] - anchors[:, :2]).double()
    first = [(height / width, (height * width) ** 0.5) for width, height in side[:6].tolist()]
    wanted = [(ratio, size) for ratio in config.ratios for size in config.sizes_px]
    torch.testing.assert_close(torch.tensor(first), torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2).view(2, 3, 6, 2)[:, :, 0]
    torch.testing.assert_close(centres, torch.tensor([[[x, y] for x in (0.0, 16.0, 32.0)] for y in (0.0, 16.0)]))


@pytest.mark.parametrize("limit_shrink", [True, False])
def test_deltas_are_limited_below_where_asked(limit_shrink):
    rpn = build(limit_shrink=limit_shrink, min_size_px=0.05)
    output = random_output(rpn)
    for level in output.deltas:
        level[..., 2:] = -30.0
    found = rpn.proposals(output, SIZES)
    # exp(-30) leaves nothing; 16 / 1000 of a side does.
    assert bool(found.valid.any()) == limit_shrink
