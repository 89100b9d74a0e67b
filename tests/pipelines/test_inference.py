"""From the network's pixels back to the picture's: batches, boxes and masks."""

import itertools

import numpy as np
import pytest
import torch

from model.build import build_detector
from model.config import MaskHeadConfig, PasteRule
from model.heads.box import BoxDetections
from model.settings import override
from model.structures import Detections
from pipelines import masks
from pipelines.inference import cut_batches, network_sizes, predict_batch
from tests.oracles.paste import paste
from tests.pipelines import tiny_run
from tests.pipelines.tiny_pictures import png
from tests.pipelines.tiny_shards import record

CPU = torch.device("cpu")


class Finds:
    """Stands for a detector that finds given boxes (in network pixels), to see what is made of them."""

    def __init__(self, boxes, probs, valid, rule=PasteRule.GRID_SAMPLE):
        self.config = tiny_run.detector_config(mask=MaskHeadConfig(paste=rule))
        batch, count = valid.shape
        scores = torch.linspace(0.9, 0.5, count).expand(batch, -1)
        self._found = Detections(boxes, scores, torch.arange(count).expand(batch, -1) % 2, valid, probs)
        self.seen = None

    def detect(self, images):
        self.seen = images
        return [images.pixels], BoxDetections(*self._found[:4])

    def complete(self, features, found):
        count = found.valid.shape[1]
        return self._found._replace(masks=self._found.masks[:, :count])


@pytest.fixture(scope="module")
def detector():
    """Random weights, and every box a detection."""
    config = override(tiny_run.detector_config(), "box.score_threshold", 0.0)
    torch.manual_seed(4)
    return build_detector(config).eval()


def noise(number, size_hw):
    pixels = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    return record(number, (), size_hw, image=png(pixels))


SIZES = [(48, 64), (64, 48), (100, 60), (64, 64), (30, 90), (48, 64), (120, 121)]


@pytest.mark.parametrize("rule", list(PasteRule))
def test_boxes_and_masks_return_to_the_picture(rule):
    """A picture of 30 x 50 px goes through the network at 58 x 96: nothing divides evenly."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1, 6, 2, generator=generator) * torch.tensor([60.0, 30.0])
    boxes = torch.cat([corners, corners + 4 + torch.rand(1, 6, 2, generator=generator) * 24], dim=2)
    probs = torch.rand(1, 6, 14, 14, generator=generator)
    stand_in = Finds(boxes, probs, torch.tensor([[True] * 5 + [False]]), rule)
    source = noise(1, (30, 50))
    assert network_sizes([(30, 50)], stand_in) == [(58, 96)]
    (found,) = predict_batch(stand_in, [source], CPU)
    assert stand_in.seen.sizes_hw.tolist() == [[58, 96]]
    assert stand_in.seen.pixels.shape == (1, 3, 64, 96)
    assert (found.image_id, found.height, found.width) == (1, 30, 50)
    wanted = boxes[0, :5].numpy() * np.array([50 / 96, 30 / 58, 50 / 96, 30 / 58], np.float32)
    np.testing.assert_allclose(found.boxes_xyxy, wanted, rtol=1e-6)
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.82, 0.74, 0.66, 0.58], rtol=1e-6)
    padded = rule is PasteRule.PADDED_RESIZE
    for i in range(5):
        pasted = paste(probs[0, i].numpy(), found.boxes_xyxy[i], (30, 50), padded)
        mask = masks.rasterise(found.rles[i], 30, 50)
        clear = abs(pasted - 0.5) > 1e-4
        np.testing.assert_array_equal(mask[clear], (pasted >= 0.5)[clear])
        assert mask.sum() == found.areas[i] == masks.area(found.rles[i])


def test_nothing_found_is_an_empty_prediction():
    stand_in = Finds(torch.zeros(1, 4, 4), torch.zeros(1, 4, 28, 28), torch.zeros(1, 4, dtype=torch.bool))
    (found,) = predict_batch(stand_in, [noise(1, (30, 50))], CPU)
    assert (found.boxes_xyxy.shape, found.scores.shape, found.labels.shape) == ((0, 4), (0,), (0,))
    assert (found.rles, found.areas.shape) == ((), (0,))


def test_what_a_network_finds_is_well_formed(detector):
    records = [noise(k, size) for k, size in enumerate(SIZES)]
    found = predict_batch(detector, records, CPU)
    assert [picture.image_id for picture in found] == list(range(len(SIZES)))
    assert sum(len(picture.scores) for picture in found) > len(SIZES)
    for picture, (height, width) in zip(found, SIZES, strict=True):
        assert (picture.height, picture.width) == (height, width)
        assert (np.diff(picture.scores) <= 0).all()
        assert ((picture.scores >= 0) & (picture.scores <= 1)).all()
        assert set(picture.labels.tolist()) <= {0, 1}
        assert (picture.boxes_xyxy >= 0).all()
        assert (picture.boxes_xyxy[:, 2:] <= np.array([width, height]) * (1 + 1e-6)).all()
        assert (picture.boxes_xyxy[:, 2:] > picture.boxes_xyxy[:, :2]).all()
        dtypes = (picture.boxes_xyxy.dtype, picture.scores.dtype, picture.labels.dtype, picture.areas.dtype)
        assert dtypes == (np.float32, np.float32, np.int64, np.int64)
        for rle, area in zip(picture.rles, picture.areas, strict=True):
            assert masks.rasterise(rle, height, width).sum() == area


def test_a_picture_is_found_the_same_alone_and_among_its_like(detector):
    """Of one size, so that nothing is padded: padding shows at the rim of deep layers."""
    records = [noise(k, (48, 64)) for k in range(3)]
    together = predict_batch(detector, records, CPU)
    for one, in_company in zip(records, together, strict=True):
        (alone,) = predict_batch(detector, [one], CPU)
        np.testing.assert_allclose(alone.boxes_xyxy, in_company.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(alone.scores, in_company.scores, rtol=1e-4)
        assert (alone.labels == in_company.labels).all()
        np.testing.assert_allclose(alone.areas, in_company.areas, atol=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_seen_upright(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    stand_in = Finds(torch.zeros(1, 1, 4), torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, dtype=torch.bool))
    seen = []
    for data in (png(pixels), png(pixels, orientation)):
        predict_batch(stand_in, [record(1, (), (30, 50), image=data)], CPU)
        seen.append(stand_in.seen.pixels)
    assert torch.equal(*seen)


@pytest.mark.parametrize("batch", [1, 2, 3, 10])
def test_batches_hold_each_picture_once_and_like_sizes_together(detector, batch):
    rng = np.random.default_rng(batch)
    sizes = [tuple(int(side) for side in rng.integers(20, 200, 2)) for _ in range(23)]
    cut = cut_batches(sizes, detector, batch)
    assert sorted(itertools.chain(*cut)) == list(range(23))
    assert [len(part) for part in cut[:-1]] == [batch] * (len(cut) - 1)
    assert 1 <= len(cut[-1]) <= batch
    heights = [network_sizes([sizes[i]], detector)[0] for i in itertools.chain(*cut)]
    assert heights == sorted(heights)
    assert cut_batches(sizes, detector, batch) == cut
    assert cut_batches([], detector, batch) == []
