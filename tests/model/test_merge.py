"""Merging the boxes of several views, against a slow oracle, and how agreement is counted."""

import itertools
import sys

import pytest
import torch

from model.boxes import pairwise_iou
from model.merge import Found, Merge, Merged, MergeRule, mask_agreement, merge_boxes

RULE = MergeRule(nms_iou=0.5, voting_iou=0.8, max_detections=100)


def found_of(seed, views=4, objects=5):
    """A few objects, seen by most views with some noise, and things that only one view saw; some scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(objects, 2, generator=generator) * 80
    true = torch.cat([corner, corner + 10 + 20 * torch.rand(objects, 2, generator=generator)], dim=1)
    rows = []
    for view in range(views):
        for index in range(objects):
            if torch.rand((), generator=generator) < 0.8:
                noise = torch.randn(4, generator=generator) * 0.8
                score = float(torch.randint(1, 10, (), generator=generator)) / 10
                rows.append((true[index] + noise, score, index % 2, view))
    boxes = torch.stack([row[0] for row in rows])
    return Found(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]),
                 torch.tensor([row[3] for row in rows]))  # fmt: skip


def slow(found, num_views, rule):
    """The same, box by box."""
    iou = pairwise_iou(found.boxes, found.boxes)
    value = [(-float(found.scores[i]), int(found.labels[i]), *found.boxes[i].tolist()[::-1]) for i in range(len(iou))]
    kept = []
    for i in sorted(range(len(iou)), key=value.__getitem__):
        if all(found.labels[i] != found.labels[k] or iou[i, k] <= rule.nms_iou for k in kept):
            kept.append(i)
    rows = []
    for k in kept[: rule.max_detections]:
        same = [i for i in range(len(iou)) if found.labels[i] == found.labels[k]]
        voters = [i for i in same if iou[i, k] >= rule.voting_iou]
        total = sum(float(found.scores[i]) for i in voters)
        box = sum(float(found.scores[i]) * found.boxes[i].double() for i in voters) / total
        overlap = pairwise_iou(box.float()[None], found.boxes)[0]
        seen = []
        for view in range(num_views):
            own = [i for i in same if found.views[i] == view and overlap[i] >= 0.5]
            if own:
                seen.append(found.boxes[max(own, key=lambda i: float(overlap[i]))].double())
        side = (box[2:] - box[:2]).repeat(2)
        spread = (torch.stack(seen).std(dim=0, correction=0) / side).mean()
        rows.append((box, found.scores[k], found.labels[k], len(seen) / num_views, spread))
    return rows


@pytest.mark.parametrize("seed", range(30))
def test_the_merge_is_the_rule(seed):
    found = found_of(seed)
    merged = merge_boxes(found, 4, RULE)
    wanted = slow(found, 4, RULE)
    assert len(merged.scores) == len(wanted) > 0
    order = sorted(range(len(wanted)), key=lambda i: (-float(wanted[i][1]), int(wanted[i][2])))
    for i, at in enumerate(order):
        box, score, label, agreement, spread = wanted[at]
        assert (merged.scores[i], merged.labels[i]) == (score, label)
        torch.testing.assert_close(merged.boxes[i].double(), box, atol=1e-4, rtol=0)
        assert float(merged.view_agreement[i]) == pytest.approx(agreement)
        assert float(merged.box_spread[i]) == pytest.approx(float(spread), abs=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_views_and_of_boxes_does_not_matter(seed):
    found = found_of(seed)
    wanted = merge_boxes(found, 4, RULE)
    for number, places in enumerate(itertools.islice(itertools.permutations(range(4)), 1, 24, 5)):
        shuffled = torch.randperm(len(found.scores), generator=torch.Generator().manual_seed(number))
        other = Found(*(value[shuffled] for value in found))
        other = other._replace(views=torch.tensor(places)[other.views])
        for one, two in zip(merge_boxes(other, 4, RULE), wanted, strict=True):
            torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_views_that_say_the_same_are_one_view_bit_for_bit():
    one = found_of(3, views=1)
    alone = merge_boxes(one, 1, RULE)
    best = alone.scores.argsort(descending=True, stable=True)
    twice = Found(*(torch.cat([value, value]) for value in one[:3]), torch.cat([one.views, one.views + 1]))
    merged = merge_boxes(twice, 2, RULE)
    wanted = {(float(s), int(k), *b.tolist()) for b, s, k in zip(*(v[best] for v in alone[:3]), strict=True)}
    assert {(float(s), int(k), *b.tolist()) for b, s, k in zip(*merged[:3], strict=True)} == wanted
    assert merged.view_agreement.tolist() == [1.0] * len(wanted)
    assert merged.box_spread.tolist() == [0.0] * len(wanted)


def test_without_voting_the_best_box_stays():
    found = found_of(5)
    merged = merge_boxes(found, 4, MergeRule(0.5, 0.8, 100, Merge.NONE))
    assert all(any(torch.equal(box, other) for other in found.boxes) for box in merged.boxes)
    assert len(merge_boxes(found, 4, MergeRule(0.5, 0.8, 2)).scores) == 2


def test_nothing_found_in_any_view():
    empty = Found(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    for views in (1, 3):
        merged = merge_boxes(empty, views, RULE)
        assert isinstance(merged, Merged)
        assert [tuple(value.shape) for value in merged] == [(0, 4), (0,), (0,), (0,), (0,)]


def test_boxes_without_a_score_are_left_as_they_are():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    merged = merge_boxes(Found(boxes, torch.zeros(2), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1])), 2, RULE)
    assert len(merged.boxes) == 1
    assert any(torch.equal(merged.boxes[0], box) for box in boxes)


def test_masks_agree_by_their_iou():
    merged = torch.zeros(3, 4, 4)
    merged[0, :2], merged[1, :, :2] = 0.9, 0.5
    views = torch.stack([merged, merged])
    views[1, 0] = 0
    views[1, 0, :1] = 0.7
    assert mask_agreement(views, merged, 0.5).tolist() == pytest.approx([(1 + 0.5) / 2, 1.0, 1.0])


FUSED = MergeRule(nms_iou=0.5, voting_iou=0.8, max_detections=100, merge=Merge.WBF)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensemble_boxes", None)
    with pytest.raises(ValueError, match=r"needs the library ensemble-boxes: pip install 'maskray\[wbf\]'"):
        merge_boxes(found_of(0), 4, FUSED)


def test_fusion_by_hand():
    """Two of four views see a dog, one of them another; the mean by score, and the share of views in the score."""
    pytest.importorskip("ensemble_boxes")
    dog, other, cat, nothing = [0, 0, 10, 10], [0, 0, 10, 12], [50, 50, 60, 60], [9, 9, 9, 9]
    boxes = torch.tensor([dog, other, cat, nothing], dtype=torch.float32)
    found = Found(boxes, torch.tensor([0.9, 0.3, 0.8, 0.7]), torch.tensor([1, 1, 0, 1]), torch.tensor([0, 1, 1, 2]))
    made = merge_boxes(found, 4, FUSED)
    torch.testing.assert_close(made.boxes, torch.tensor([[0.0, 0.0, 10.0, 10.5], [50.0, 50.0, 60.0, 60.0]]))
    torch.testing.assert_close(made.scores, torch.tensor([0.6 * 2 / 4, 0.8 / 4]))
    assert made.labels.tolist() == [1, 0]
    assert made.view_agreement.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("seed", range(6))
def test_fusion_does_not_depend_on_the_order_of_views(seed):
    """Its library ranks equal scores by where they stand."""
    pytest.importorskip("ensemble_boxes")
    found = found_of(seed, views=9, objects=7)
    wanted = merge_boxes(found, 9, FUSED)
    for shuffle in range(5):
        order = torch.randperm(len(found.scores), generator=torch.Generator().manual_seed(shuffle))
        for one, other in zip(merge_boxes(Found(*(v[order] for v in found)), 9, FUSED), wanted, strict=True):
            assert torch.equal(one, other)
    assert merge_boxes(Found(*(v[:0] for v in found)), 9, FUSED).boxes.shape == (0, 4)
