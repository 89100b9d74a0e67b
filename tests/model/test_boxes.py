"""Box arithmetic against scalar loops and torchvision's."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image

from model.boxes import MAX_LOG_SCALE, area, clip, decode, encode, pairwise_iou

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(*shape, seed=0, least=1.0, most=200.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 400 - 50
    size = least + torch.rand(*shape, 2, generator=generator) * (most - least)
    return torch.cat([corner, corner + size], dim=-1)


def iou_of_two(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def test_area_of_boxes_and_of_no_boxes():
    boxes = torch.tensor([[1.0, 2.0, 4.0, 4.5], [3.0, 3.0, 3.0, 9.0], [-2.0, -2.0, 2.0, 2.0]])
    torch.testing.assert_close(area(boxes), torch.tensor([7.5, 0.0, 16.0]))
    assert area(torch.zeros(2, 0, 4)).shape == (2, 0)


def test_iou_equals_the_scalar_loop():
    boxes, others = random_boxes(30), random_boxes(20, seed=1)
    others[:3] = boxes[:3]  # the same, touching, inside
    others[1, :2], others[1, 2:] = boxes[1, 2:], boxes[1, 2:] + 5
    others[2] += torch.tensor([0.1, 0.1, -0.1, -0.1])
    wanted = torch.tensor([[iou_of_two(a, b) for b in others.tolist()] for a in boxes.tolist()])
    assert (wanted > 0).sum() > 100
    torch.testing.assert_close(pairwise_iou(boxes, others), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(pairwise_iou(boxes, others), box_iou(boxes, others))
    assert pairwise_iou(boxes, others)[0, 0] == 1
    assert pairwise_iou(boxes, others)[1, 1] == 0


def test_iou_of_a_batch_is_that_of_its_pictures():
    boxes, others = random_boxes(3, 7), random_boxes(3, 5, seed=1)
    together = pairwise_iou(boxes, others)
    assert together.shape == (3, 7, 5)
    for b in range(3):
        assert torch.equal(together[b], pairwise_iou(boxes[b], others[b]))
    assert torch.equal(pairwise_iou(boxes[0], others)[1], pairwise_iou(boxes[0], others[1]))


def test_two_empty_boxes_do_not_overlap():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(point, point).item() == 0
    assert pairwise_iou(point, torch.tensor([[0.0, 0.0, 9.0, 9.0]])).item() == 0
    assert pairwise_iou(torch.zeros(1, 4), torch.zeros(0, 4)).shape == (1, 0)


@pytest.mark.parametrize("shape", [(2, 9), (2, 3, 3)], ids=str)
def test_boxes_are_clipped_to_their_own_picture(shape):
    boxes = random_boxes(*shape)
    sizes = torch.tensor([[60, 90], [90, 60]])
    clipped = clip(boxes, sizes)
    for b in range(2):
        assert torch.equal(clipped[b], clip_boxes_to_image(boxes[b], tuple(sizes[b].tolist())))
    assert torch.equal(clip(clipped, sizes), clipped)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_encode_and_decode_equal_torchvision_s(weights):
    boxes, anchors = random_boxes(50), random_boxes(50, seed=1)
    coder = BoxCoder(weights, bbox_xform_clip=math.log(1000.0 / 16))
    deltas = encode(boxes, anchors, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    noisy = deltas + torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(decode(noisy, anchors, weights), coder.decode_single(noisy, anchors))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_undoes_encode(weights):
    # float64, so that the tolerance can be tight; 8 px upward, so that no size ratio meets the limit.
    boxes, anchors = random_boxes(4, 50, least=8).double(), random_boxes(4, 50, seed=1, least=8).double()
    torch.testing.assert_close(decode(encode(boxes, anchors, weights), anchors, weights), boxes)
    assert not encode(boxes, boxes, weights).any()


def test_deltas_mean_shift_and_log_size():
    anchor = torch.tensor([10.0, 20.0, 30.0, 60.0])  # 20 x 40, centre 20, 40
    wanted = torch.tensor([20.0 + 5 - 20, 40 - 10 - 20.0, 20 + 5 + 20.0, 40 - 10 + 20.0])  # twice as wide
    deltas = torch.tensor([0.25, -0.25, math.log(2), 0.0])
    torch.testing.assert_close(decode(deltas, anchor, WEIGHTS[0]), wanted)
    torch.testing.assert_close(encode(wanted, anchor, WEIGHTS[1]), deltas * torch.tensor(WEIGHTS[1]))


def test_the_size_of_a_decoded_box_is_limited():
    anchor = torch.tensor([0.0, 0.0, 16.0, 16.0])
    box = decode(torch.tensor([0.0, 0.0, 50.0, 1e30]), anchor, WEIGHTS[0])
    torch.testing.assert_close(box[2:] - box[:2], torch.full((2,), 16 * math.exp(MAX_LOG_SCALE)))
    torch.testing.assert_close(box[2:] - box[:2], torch.full((2,), 1000.0))


def test_boxes_without_extent_give_finite_deltas():
    flat = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 5.0, 0.0]])
    assert encode(flat, random_boxes(2), WEIGHTS[1]).isfinite().all()
    assert encode(random_boxes(2), flat, WEIGHTS[1]).isfinite().all()
