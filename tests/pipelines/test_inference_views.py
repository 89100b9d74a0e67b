"""Boxes, masks and keypoints of several views together: the laws they obey, with a stand-in that sees exactly."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from model.build import build_detector
from model.config import KeypointHeadConfig
from model.heads.keypoint import decode_keypoints
from model.ops.masks import mask_rle
from model.picture import pad, resize, tight_hw
from model.settings import override
from model.structures import Images
from model.views import View
from pipelines import looking, masks
from pipelines.config import Precision
from pipelines.inference import Method, network_sizes, predict_sources
from pipelines.looking import Source
from tests.pipelines import tiny_run
from tests.pipelines.seeing import Sees

CPU = torch.device("cpu")
OWN, FLIPPED, LARGE, LARGE_FLIPPED = View(64), View(64, flip=True), View(80), View(80, flip=True)
FAST = (OWN, FLIPPED, LARGE, LARGE_FLIPPED)
VALUES = ("boxes_xyxy", "scores", "labels", "areas", "view_agreement", "box_spread", "mask_agreement", "keypoints")
NUM_KEYPOINTS = 3


def l_shape(x, y, size_hw=(64, 96), label=0, number=1):
    """An L of 20 x 24 px whose left keypoint is on its foot and whose right one is up its stem."""
    pixels = torch.zeros(3, *size_hw, dtype=torch.uint8)
    pixels[label, y : y + 24, x : x + 8] = 240
    pixels[label, y + 16 : y + 24, x : x + 20] = 240
    pixels[2, y + 18 : y + 22, x + 14 : x + 18] = 200
    pixels[2, y + 2 : y + 6, x + 2 : x + 6] = 100
    return Source(number, pixels)


def mirrored(source):
    """The same scene in a mirror, where the left keypoint is still called left: only a detector's eyes would change."""
    pixels = source.pixels.flip(-1)
    return source._replace(pixels=pixels)


def look(detector, source, *views, **settings):
    return predict_sources(detector, [source], CPU, Method(tuple(views), **settings))[0]


def same(one, other, atol=0.0):
    assert (one.image_id, one.height, one.width) == (other.image_id, other.height, other.width)
    if not atol:
        assert one.rles == other.rles
    for name in VALUES:
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def network():
    """Random weights with masks and keypoints; every box a detection."""
    config = override(tiny_run.detector_config(), "box.score_threshold", 0.0)
    config = dataclasses.replace(config, keypoint=KeypointHeadConfig(True, NUM_KEYPOINTS, ((1, 2),), 1, 16))
    torch.manual_seed(5)
    return build_detector(config).eval()


def noise(number, size_hw):
    generator = torch.Generator().manual_seed(number)
    return Source(number, torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8, generator=generator))


def plain(detector, sources):
    """What the detector alone says, turned to the picture by hand."""
    picture, mask = detector.config.picture, detector.config.mask
    sizes = network_sizes([source.size_hw for source in sources], detector)
    pixels = [resize(source.pixels, size, picture.kernel) for source, size in zip(sources, sizes, strict=True)]
    found = detector.predict(Images(*pad(pixels, tight_hw(sizes, picture))))
    for i, (source, (height, width)) in enumerate(zip(sources, sizes, strict=True)):
        count = int(found.valid[i].sum())
        scale = torch.tensor([source.size_hw[1] / width, source.size_hw[0] / height] * 2)
        boxes = found.boxes[i, :count] * scale
        runs = mask_rle(found.masks[i, :count], boxes, torch.tensor([source.size_hw] * count), mask.threshold,
                        padded=False)  # fmt: skip
        points = decode_keypoints(found.heatmaps[i, :count], found.boxes[i, :count], detector.config.keypoint.score)
        yield boxes, found.scores[i, :count], found.labels[i, :count], runs, points * torch.tensor([*scale[:2], 1.0])


def test_one_view_is_plain_inference_bit_for_bit(network):
    sources = [noise(k, size) for k, size in enumerate([(48, 64), (50, 61), (100, 60)])]
    for method in (None, Method(), Method((OWN,))):
        found = predict_sources(network, sources, CPU, method)
        for one, (boxes, scores, labels, runs, points) in zip(found, plain(network, sources), strict=True):
            assert len(one.scores) > 2
            assert one.rles == tuple(runs.counts)
            for ours, theirs in ((one.boxes_xyxy, boxes), (one.scores, scores), (one.labels, labels),
                                 (one.areas, runs.areas), (one.keypoints[..., :2], points[..., :2])):  # fmt: skip
                np.testing.assert_array_equal(ours, theirs.numpy())
            # The sum of a map, whose last bit depends on where in memory the map begins.
            np.testing.assert_allclose(one.keypoints[..., 2], points[..., 2], rtol=1e-6)
            assert set(one.view_agreement.tolist()) | set(one.mask_agreement.tolist()) == {1.0}
            assert set(one.box_spread.tolist()) == {0.0}


def test_two_equal_views_are_one_view():
    source = l_shape(30, 20)
    for view in FAST:
        same(look(Sees(), source, view, view), look(Sees(), source, view), atol=1e-4)


def test_a_flipped_view_of_what_sees_without_a_side_is_the_view_itself():
    """The stand-in does to the mirror of a picture what it does to the picture; only the names of keypoints change."""
    source = l_shape(30, 20)
    straight, turned = look(Sees(), source, OWN), look(Sees(), source, FLIPPED)
    points = turned.keypoints[:, ::-1].copy()  # it calls keypoints by their looks, which the mirror does not change
    same(dataclasses.replace(turned, keypoints=points), straight, atol=1e-3)
    assert turned.rles == straight.rles
    np.testing.assert_array_equal(masks.rasterise(turned.rles[0], 64, 96), (source.pixels[0] > 0).numpy())


@pytest.mark.parametrize("detector", ["sees", "network"])
def test_the_order_of_views_does_not_matter(detector, network):
    source = l_shape(30, 20) if detector == "sees" else noise(3, (48, 64))
    used = Sees() if detector == "sees" else network
    wanted = look(used, source, *FAST)
    assert len(wanted.scores)
    for views in itertools.islice(itertools.permutations(FAST), 1, 24, 7):
        found = look(used, source, *views)
        same(dataclasses.replace(found, rles=wanted.rles, areas=wanted.areas), wanted, atol=1e-4)
        np.testing.assert_allclose(found.areas, wanted.areas, atol=1)


def test_views_that_find_nothing():
    """Size 80 is blind: what the others found stays, and the share of views says so."""
    seeing = look(Sees(), l_shape(30, 20), OWN, FLIPPED)
    partly = look(Sees(blind={80}), l_shape(30, 20), *FAST)
    np.testing.assert_allclose(partly.boxes_xyxy, seeing.boxes_xyxy, atol=1e-4)
    assert (seeing.view_agreement.tolist(), partly.view_agreement.tolist()) == ([1.0], [0.5])
    for keypoints, with_masks in itertools.product((True, False), repeat=2):
        blind = Sees(keypoints=keypoints, masks=with_masks, blind={64, 80})
        for views in ((OWN,), FAST):
            empty = look(blind, l_shape(30, 20), *views)
            assert empty.boxes_xyxy.shape == (0, 4)
            assert empty.rles == (() if with_masks else None)
            assert (None if empty.keypoints is None else empty.keypoints.shape) == ((0, 2, 3) if keypoints else None)
        assert blind.passes == 0


def test_left_and_right_keypoints_change_places_in_the_mirror():
    """A detector that knows sides: left is the keypoint nearer the left edge of what it looks at."""

    class KnowsSides(Sees):
        def complete(self, features, found):
            whole = super().complete(features, found)
            peaks = whole.heatmaps.flatten(3).argmax(dim=3) % whole.heatmaps.shape[-1]
            swapped = torch.where((peaks[..., 0] > peaks[..., 1])[..., None, None, None], whole.heatmaps.flip(2),
                                  whole.heatmaps)  # fmt: skip
            return whole._replace(heatmaps=swapped)

    source = l_shape(30, 20)
    wanted = look(KnowsSides(), source, OWN).keypoints[0]
    assert wanted[0, 0] < wanted[1, 0] - 8
    for views in ((FLIPPED,), (OWN, FLIPPED), FAST):
        found = look(KnowsSides(), source, *views).keypoints[0]
        # The marks are flat, 4 px wide: their first cell is the peak, from whichever side one looks.
        np.testing.assert_allclose(found[:, :2], wanted[:, :2], atol=3.5)


@pytest.mark.parametrize("views", [(FLIPPED,), (OWN, FLIPPED)])
@pytest.mark.parametrize("place", [(0, 0), (76, 0), (0, 40), (76, 40), (38, 20)])
def test_an_object_at_each_edge_comes_back_to_the_pixel(place, views):
    source = l_shape(*place)
    found = look(Sees(), source, *views)
    x, y = place
    np.testing.assert_allclose(found.boxes_xyxy, [[x, y, x + 20, y + 24]], atol=1e-4)
    np.testing.assert_array_equal(masks.rasterise(found.rles[0], 64, 96), (source.pixels[0] > 0).numpy())
    assert found.mask_agreement[0] == pytest.approx(1.0)


def test_several_pictures_together_are_each_as_alone():
    sources = [l_shape(30, 20), l_shape(2, 3, (80, 64), 1, 2), Source(3, torch.zeros(3, 64, 64, dtype=torch.uint8))]
    together = predict_sources(Sees(), sources, CPU, Method(FAST))
    for source, one in zip(sources, together, strict=True):
        same(one, look(Sees(), source, *FAST), atol=1e-3)
    assert [len(one.scores) for one in together] == [1, 1, 0]


def test_each_size_runs_the_network_and_the_heads_once():
    detector = Sees()
    look(detector, l_shape(30, 20), *FAST)
    assert detector.decoded == [(2, 3, 64, 96), (2, 3, 80, 120)]
    assert detector.passes == 2


def test_a_picture_is_resized_once_a_size(monkeypatch):
    sizes = []
    monkeypatch.setattr(looking, "resize", lambda pixels, size, kind: sizes.append(size) or resize(pixels, size, kind))
    look(Sees(), l_shape(30, 20), FLIPPED, LARGE, OWN, LARGE_FLIPPED)
    assert sizes == [(64, 96), (80, 120)]


def test_detectors_of_boxes_alone():
    found = look(Sees(keypoints=False, masks=False), l_shape(30, 20), OWN, FLIPPED)
    assert (found.rles, found.mask_agreement, found.keypoints) == (None, None, None)
    assert found.areas.tolist() == [20 * 24]


def test_bfloat16_finds_what_float32_finds(network):
    source = noise(3, (48, 64))
    exact, coarse = (look(network, source, *FAST, precision=p) for p in (Precision.FP32, Precision.BF16))
    assert coarse.boxes_xyxy.dtype == coarse.scores.dtype == np.float32
    assert not np.array_equal(exact.scores, coarse.scores)
    np.testing.assert_allclose(coarse.scores[:3], exact.scores[:3], atol=0.03)
