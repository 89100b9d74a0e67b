"""Batched NMS: the same boxes as a naive loop and as torchvision, image by image and group by group."""

import math

import pytest
import torch
import torchvision

from model.ops.nms import nms
from tests.oracles import nms as naive


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def batch(seed, images=2, count=120, groups=4, whole=False):
    """Random boxes; `whole` rounds corners and scores, which makes ties of both."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, count, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + torch.rand(images, count, 2, generator=generator) * 60], -1)
    scores = torch.rand(images, count, generator=generator)
    if whole:
        boxes, scores = (boxes / 10).round() * 10, (scores * 8).round() / 8
    group = torch.randint(0, groups, (images, count), generator=generator)
    valid = torch.rand(images, count, generator=generator) < 0.8
    return boxes, scores, group, valid


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_keeps_the_boxes_of_the_naive_loop_and_of_torchvision(seed, whole, threshold):
    boxes, scores, groups, valid = batch(seed, whole=whole)
    keep = nms(boxes, scores, groups, valid, threshold)
    for i in range(len(keep)):
        arrays = (tensor[i].numpy() for tensor in (boxes, scores, groups, valid))
        assert keep[i].tolist() == naive.nms(*arrays, threshold).tolist()
        theirs = torch.zeros_like(keep[i])
        for group in groups[i].unique():
            (index,) = torch.nonzero(valid[i] & (groups[i] == group), as_tuple=True)
            theirs[index[torchvision.ops.nms(boxes[i, index], scores[i, index], threshold)]] = True
        assert keep[i].tolist() == theirs.tolist()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33])
def test_any_number_of_boxes(count):
    boxes, scores, groups, valid = batch(3, images=1, count=count, groups=1)
    keep = nms(boxes, scores, groups, valid, 0.5)
    assert keep[0].tolist() == naive.nms(*(t[0].numpy() for t in (boxes, scores, groups, valid)), 0.5).tolist()


def test_nothing_valid_keeps_nothing():
    boxes, scores, groups, valid = batch(0)
    assert not nms(boxes, scores, groups, torch.zeros_like(valid), 0.5).any()
    empty = (torch.zeros(0, 5, 4), torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.int64))
    assert nms(*empty, torch.zeros(0, 5, dtype=torch.bool), 0.5).shape == (0, 5)


def test_padding_never_suppresses():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10]]])
    scores, groups = torch.tensor([[0.9, 0.1]]), torch.zeros(1, 2, dtype=torch.int64)
    assert nms(boxes, scores, groups, torch.tensor([[False, True]]), 0.5).tolist() == [[False, True]]


def test_threshold_itself_does_not_suppress():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5]]])  # IoU exactly 0.5
    valid, groups = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.int64)
    scores = torch.tensor([[0.9, 0.8]])
    assert nms(boxes, scores, groups, valid, 0.5).tolist() == [[True, True]]
    assert nms(boxes, scores, groups, valid, 0.5 - 1e-12).tolist() == [[True, False]]


def test_boxes_and_scores_that_are_not_numbers():
    boxes, scores, groups, valid = batch(5, images=1, groups=1)
    boxes[0, :4, 1] = math.nan
    scores[0, 6:9] = torch.tensor([math.nan, math.inf, -math.inf])
    keep = nms(boxes, scores, groups, valid, 0.5)
    (index,) = torch.nonzero(valid[0], as_tuple=True)
    theirs = torch.zeros_like(keep[0])
    theirs[index[torchvision.ops.nms(boxes[0, index], scores[0, index], 0.5)]] = True
    assert keep[0].tolist() == theirs.tolist()


def test_bits_do_not_depend_on_threads_or_simd(num_threads, use_simd):
    inputs = batch(9, images=3, count=700, groups=3)
    results = []
    for threads in (1, 4):
        for variant in range(torch.ops.maskray.simd_variants()):
            num_threads(threads)
            use_simd(variant)
            results.append(nms(*inputs, 0.5))
    assert all(torch.equal(results[0], other) for other in results)


def test_compiles_as_one_graph_and_passes_opcheck():
    inputs = batch(1)
    compiled = torch.compile(lambda *tensors: nms(*tensors, 0.5), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), nms(*inputs, 0.5))
    torch.library.opcheck(torch.ops.maskray.nms.default, (*inputs, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 120, 5)}, r"boxes \[2, 120, 5\].*wanted \[B, N, 4\]"),
        ({1: torch.zeros(2, 119)}, r"scores \[2, 119\]"),
        ({2: torch.zeros(2, 120)}, "groups of torch.float32, wanted bool and int64"),
        ({3: torch.zeros(2, 120)}, "valid of torch.float32"),
    ],
)
def test_wrong_input_is_one_clear_line(change, message):
    inputs = [change.get(i, tensor) for i, tensor in enumerate(batch(0))]
    with pytest.raises(ValueError, match=message) as error:
        nms(*inputs, 0.5)
    assert "\n" not in str(error.value)
