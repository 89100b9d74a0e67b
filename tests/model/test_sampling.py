"""Which RoIs the second stage learns from: against a loop in MMDetection's order, and its laws."""

import dataclasses

import pytest
import torch

from model.boxes import pairwise_iou
from model.config import BoxHeadConfig
from model.roi.sampling import first_positives, label_rois, sample_rois
from tests.model.tiny_batch import plain_targets

BACKGROUND = 4
# Enough samples for every candidate and object, so that nothing is left to chance.
ALL = BoxHeadConfig(samples=400, positive_share=1.0)
# A crowd: two large objects that share most of their area, one small one inside, one apart.
CROWD = [[10.0, 10.0, 50.0, 50.0], [10.0, 10.0, 50.0, 46.0], [12.0, 12.0, 50.0, 50.0], [70.0, 70.0, 80.0, 80.0]]
LABELS = [[2, 0, 1, 3]] * 2
TARGETS = plain_targets([CROWD, CROWD], [[True] * 4, [True, False, True, False]], LABELS)


def candidates(seed=0, count=60):
    """Boxes around the objects; the last ten are padding."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.tensor(CROWD)[torch.randint(0, 4, (2, count), generator=generator)]
    boxes = base + 8 * torch.randn(2, count, 4, generator=generator)
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    # One box that is best for a second object but fits a first better, as crowds have them.
    boxes[0, 0] = torch.tensor([10.0, 10.0, 50.0, 48.5])
    valid = torch.arange(count).expand(2, -1) < count - 10
    return torch.where(valid[..., None], boxes, torch.zeros(4)), valid


def assigned(boxes, objects, iou_from, reassign):
    """Object of each box or None: MMDetection's MaxIoUAssigner with pos = neg = min_pos_iou, as loops."""
    iou = pairwise_iou(boxes, objects)
    answer = []
    for row in iou:
        top = int(row.argmax())
        answer.append(top if row[top] >= iou_from else None)
    if reassign:
        for g in range(len(objects)):
            highest = iou[:, g].max()
            if highest >= iou_from:
                for n in range(len(boxes)):
                    if iou[n, g] == highest:
                        answer[n] = g
    return answer


def by_loop(boxes, valid, targets, iou_from, reassign):
    """{box: (label, object's box, is an object's own)} of each picture."""
    pictures = []
    for b in range(len(boxes)):
        real = targets.valid[b].nonzero().flatten()
        found = {}
        own = boxes[b][valid[b]]
        for box, g in zip(own, assigned(own, targets.boxes[b, real], iou_from, reassign), strict=True):
            label = BACKGROUND if g is None else int(targets.labels[b, real[g]])
            found[tuple(box.tolist())] = (label, None if g is None else targets.boxes[b, real[g]].tolist(), False)
        for g in real.tolist():
            found[tuple(targets.boxes[b, g].tolist())] = (int(targets.labels[b, g]), targets.boxes[b, g].tolist(), True)
        pictures.append(found)
    return pictures


def as_dict(sampled, b):
    found = {}
    for s in range(sampled.valid.shape[1]):
        if sampled.valid[b, s]:
            positive = bool(sampled.positive[b, s])
            wanted = sampled.boxes[b, s].tolist() if positive else None
            own = bool(sampled.is_object[b, s])
            found[tuple(sampled.rois[b, s].tolist())] = (int(sampled.labels[b, s]), wanted, own)
    return found


@pytest.mark.parametrize("iou_from", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("reassign", [False, True])
def test_what_each_roi_learns_equals_the_loop(iou_from, reassign):
    boxes, valid = candidates()
    config = dataclasses.replace(ALL, reassign_best=reassign)
    sampled = sample_rois(boxes, valid, TARGETS, BACKGROUND, config, iou_from, 2)
    for b, wanted in enumerate(by_loop(boxes, valid, TARGETS, iou_from, reassign)):
        assert as_dict(sampled, b) == wanted
        assert sampled.valid[b].sum() == valid[b].sum() + TARGETS.valid[b].sum()


def test_reassigning_changes_the_answer_in_a_crowd():
    boxes, valid = candidates()
    one, other = (by_loop(boxes, valid, TARGETS, 0.5, reassign) for reassign in (False, True))
    assert sum(a[key] != b[key] for a, b in zip(one, other, strict=True) for key in a) > 0


def test_positives_come_first_and_know_their_object():
    boxes, valid = candidates()
    sampled = sample_rois(boxes, valid, TARGETS, BACKGROUND, ALL, 0.5, 2)
    assert (sampled.positive.int().diff(dim=1) <= 0).all()
    assert (sampled.valid.int().diff(dim=1) <= 0).all()
    assert ((sampled.labels == BACKGROUND) == ~sampled.positive).all()
    for b, s in sampled.positive.nonzero().tolist():
        assert torch.equal(sampled.boxes[b, s], TARGETS.boxes[b, sampled.objects[b, s]])
        assert sampled.labels[b, s] == TARGETS.labels[b, sampled.objects[b, s]]
    assert sampled.is_object.sum() == TARGETS.valid.sum()


def test_few_samples_keep_their_share_and_fill_up_with_background():
    boxes, valid = candidates()
    config = BoxHeadConfig(samples=16, positive_share=0.25)
    sampled = sample_rois(boxes, valid, TARGETS, BACKGROUND, config, 0.5, 2)
    assert sampled.valid.shape == (2, 16)
    assert sampled.valid.all()
    assert (sampled.positive.sum(dim=1) == 4).all()
    positives = first_positives(sampled, config, 64)
    assert positives.rois.shape == (2, 4, 4)
    assert positives.positive.all()
    assert torch.equal(positives.labels, sampled.labels[:, :4])


def test_ignored_regions_are_no_background_but_objects_in_them_stay():
    boxes, valid = candidates()
    region = plain_targets([[*CROWD[:3], [0.0, 0.0, 100.0, 100.0]]] * 2, [[True, True, True, False]] * 2, LABELS)
    region = region._replace(ignore=torch.tensor([[False, False, False, True]] * 2))
    sampled = sample_rois(boxes, valid, region, BACKGROUND, ALL, 0.5, 2)
    inside = ((sampled.rois >= 0) & (sampled.rois <= 100)).all(dim=-1)
    assert not (inside & sampled.valid & ~sampled.positive).any()
    assert sampled.positive.any(dim=1).all()
    kept = label_rois(boxes, valid, region, BACKGROUND, 0.5)
    assert kept.positive.any()
    assert (kept.valid == kept.positive).all()


def test_objects_weights_reach_their_rois():
    boxes, valid = candidates()
    weights = torch.tensor([[0.5, 0.25, 0.125, 0.0]] * 2)
    weighted = TARGETS._replace(weights=weights)
    for sampled in (
        sample_rois(boxes, valid, weighted, BACKGROUND, ALL, 0.5, 2),
        label_rois(boxes, valid, weighted, BACKGROUND, 0.5),
    ):
        wanted = torch.where(sampled.positive, weights.gather(1, sampled.objects), 1.0)
        assert torch.equal(sampled.weights, wanted)


@pytest.mark.parametrize("iou_from", [0.5, 0.7])
def test_without_drawing_every_box_keeps_its_place(iou_from):
    boxes, valid = candidates()
    labelled = label_rois(boxes, valid, TARGETS, BACKGROUND, iou_from)
    assert torch.equal(labelled.rois, boxes)
    assert torch.equal(labelled.valid, valid)
    assert not labelled.is_object.any()
    for b in range(2):
        real = TARGETS.valid[b].nonzero().flatten()
        wanted = assigned(boxes[b][valid[b]], TARGETS.boxes[b, real], iou_from, reassign=False)
        labels = [BACKGROUND if g is None else int(TARGETS.labels[b, real[g]]) for g in wanted]
        assert labelled.labels[b][valid[b]].tolist() == labels


def test_without_objects_everything_is_background():
    boxes, valid = candidates()
    nothing = plain_targets([CROWD] * 2, [[False] * 4] * 2, LABELS)
    for sampled in (
        sample_rois(boxes, valid, nothing, BACKGROUND, ALL, 0.5, 2),
        label_rois(boxes, valid, nothing, BACKGROUND, 0.5),
    ):
        assert not sampled.positive.any()
        assert sampled.valid.sum() == valid.sum()
        assert (sampled.labels == BACKGROUND).all()
