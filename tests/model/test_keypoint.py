"""The keypoint head: layers, loss and decoding against torchvision's, live."""

import pytest
import torch
from torchvision.models.detection import keypoint_rcnn
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss

from model.config import KeypointHeadConfig, KeypointScore
from model.heads import keypoint
from model.heads.keypoint import KeypointHead, decode_keypoints, keypoint_loss, peaks_of_resized
from model.structures import SampledRoIs

JOINTS = 3
SIDE = 16
SMALL = KeypointHeadConfig(num_keypoints=JOINTS, flip_pairs=(), num_convs=2, channels=8)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_head_equals_torchvision_s_with_the_same_weights():
    torch.manual_seed(0)
    head = KeypointHead(6, SMALL)
    layers, predictor = keypoint_rcnn.KeypointRCNNHeads(6, (8, 8)), keypoint_rcnn.KeypointRCNNPredictor(8, JOINTS)
    for ours, theirs in zip(head.convs, [m for m in layers if isinstance(m, torch.nn.Conv2d)], strict=True):
        theirs.load_state_dict(ours.state_dict())
    predictor.kps_score_lowres.load_state_dict(head.deconv.state_dict())
    crops = noise(4, 6, 14, 14)
    torch.testing.assert_close(head(crops), predictor(layers(crops)))
    assert head(crops).shape == (4, JOINTS, 56, 56)
    assert head.to(torch.bfloat16)(crops.to(torch.bfloat16)).dtype == torch.float32


ROI = [10.0, 20.0, 42.0, 84.0]
PLACES = {  # (x, y, visibility) of the one keypoint of an object
    "inside": (17.3, 55.1, 2),
    "hidden-but-labelled": (17.3, 55.1, 1),
    "not-labelled": (17.3, 55.1, 0),
    "near-corner": (10.0, 20.0, 2),
    "far-corner": (42.0, 84.0, 2),
    "far-edge-x": (42.0, 50.0, 2),
    "beyond-far-edge": (42.01, 50.0, 2),
    "before-near-edge": (9.99, 50.0, 2),
    "above": (17.3, 3.0, 2),
    "cell-border": (12.0, 24.0, 2),
}


def case(places, rois, objects, positive):
    """Logits, and one picture's sampled RoIs of the objects whose keypoints are `places` [G, J, 3]."""
    rois, positive = torch.tensor([rois]), torch.tensor([positive])
    objects = torch.tensor([objects])
    zero = torch.zeros_like(objects)
    sampled = SampledRoIs(rois, zero, rois, positive, positive, objects, zero.bool(), torch.ones(()))
    keypoints = torch.tensor([places], dtype=torch.float32)
    return noise(rois.shape[1], keypoints.shape[2], SIDE, SIDE).requires_grad_(), sampled, keypoints


def peers_loss(logits, sampled, keypoints):
    """torchvision's loss of the positive RoIs of one picture."""
    positive = sampled.positive[0]
    return keypointrcnn_loss(
        logits[positive], [sampled.rois[0, positive]], [keypoints[0]], [sampled.objects[0, positive]]
    )


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_each_place_s_loss_equals_torchvision_s(place):
    given = case([[place]], [ROI], [0], [True])
    loss = keypoint_loss(*given)
    torch.testing.assert_close(loss, torch.as_tensor(peers_loss(*given)).float())
    loss.backward()
    assert given[0].grad.any() == (place[2] > 0 and 10 <= place[0] <= 42 and 20 <= place[1] <= 84)


def many(seed):
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(4, JOINTS, 3, generator=generator) * 60
    places[..., 2] = torch.randint(0, 3, (4, JOINTS), generator=generator)
    corner = torch.rand(9, 2, generator=generator) * 20
    rois = torch.cat([corner, corner + 15 + 30 * torch.rand(9, 2, generator=generator)], dim=1)
    objects = torch.randint(0, 4, (9,), generator=generator)
    return case(places.tolist(), rois.tolist(), objects.tolist(), [n < 6 for n in range(9)])


@pytest.mark.parametrize("seed", range(3))
def test_many_rois_loss_equals_torchvision_s(seed):
    given = many(seed)
    torch.testing.assert_close(keypoint_loss(*given), peers_loss(*given))


def test_weights_scale_each_roi_s_share():
    logits, sampled, keypoints = many(0)
    weights = torch.rand(1, 9, generator=torch.Generator().manual_seed(9))
    count, total = 0, 0.0
    for r in range(6):
        one = SampledRoIs(*(part[:, r : r + 1] if part.ndim > 1 else part for part in sampled))
        mean = keypoint_loss(logits[r : r + 1], one, keypoints).item()
        x, y, seen = keypoints[0, int(sampled.objects[0, r])].T
        x1, y1, x2, y2 = sampled.rois[0, r]
        used = int(((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2) & (seen > 0)).sum())
        total, count = total + mean * used * weights[0, r].item(), count + used
    assert count > 3
    found = keypoint_loss(logits, sampled._replace(weights=weights), keypoints)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("positive", [[True, True], [False, False]], ids=["unseen", "background"])
def test_without_a_keypoint_the_loss_is_zero_and_keeps_its_gradient(positive):
    places = [[(20.0, 30.0, 0 if positive[0] else 2)]]
    logits, sampled, keypoints = case(places, [ROI, ROI], [0, 0], positive)
    loss = keypoint_loss(logits, sampled, keypoints)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def boxes_and_maps(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 50
    size = torch.rand(count, 2, generator=generator) * 90 + 0.2
    maps = torch.nn.functional.interpolate(noise(count, JOINTS, 5, 5, seed=seed) * 4, size=56, mode="bicubic")
    return maps, torch.cat([corner, corner + size], dim=1)


def test_keypoints_equal_torchvision_s():
    maps, boxes = boxes_and_maps(12)
    boxes[0, 2:] = boxes[0, :2] + 0.3  # smaller than a pixel
    boxes[1] = torch.tensor([4.0, 5.0, 20.0, 69.0])  # whole sides
    theirs, scores = heatmaps_to_keypoints(maps, boxes)
    found = decode_keypoints(maps, boxes, KeypointScore.LOGIT)
    torch.testing.assert_close(found[..., :2], theirs[..., :2])
    torch.testing.assert_close(found[..., 2], scores)


def test_probability_is_the_peak_s_share_of_the_map():
    maps, _ = boxes_and_maps(2)
    same_size = torch.tensor([[0.0, 0.0, 56.0, 56.0]] * 2)
    found = decode_keypoints(maps, same_size, KeypointScore.PROBABILITY)
    torch.testing.assert_close(found[..., 2], maps.flatten(2).softmax(dim=2).amax(dim=2))
    # A larger box shows more pixels, not a surer keypoint.
    larger = decode_keypoints(maps, 4 * same_size, KeypointScore.PROBABILITY)
    torch.testing.assert_close(larger[..., 2], found[..., 2], rtol=0.1, atol=0.01)


def smooth(count, seed, side=56):
    """Maps of a few bumps, as a trained head makes them."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(side)
    made = torch.full((count, side, side), -6.0)
    for joint in range(count):
        for _ in range(3):
            y, x, width, height = (torch.rand(4, generator=generator) * torch.tensor([side, side, 3, 9])).tolist()
            made[joint] += (height + 3) * torch.exp(
                -((axis[:, None] - y) ** 2 + (axis - x) ** 2) / (2 * (width + 0.7) ** 2)
            )
    return made + 0.1 * torch.randn(made.shape, generator=generator)


@pytest.mark.parametrize("size_hw", [(400, 800), (131, 97), (57, 90), (700, 60), (40, 300), (1, 5000), (64, 64)])
@pytest.mark.parametrize("kind", ["smooth", "noise", "flat", "steps"])
def test_peaks_are_those_of_the_whole_resize(size_hw, kind):
    """The same pixel, also of equal ones; its value but for rounding."""
    maps = {
        "smooth": lambda: smooth(9, 1),
        "noise": lambda: noise(9, 56, 56, seed=2),
        "flat": lambda: torch.ones(2, 56, 56) * torch.tensor([0.0, 3.0])[:, None, None],
        "steps": lambda: (smooth(9, 3) > 0).float() * 7,
    }[kind]()
    resized = torch.nn.functional.interpolate(maps[None], size=size_hw, mode="bicubic", align_corners=False)[0]
    peak, place = resized.flatten(1).max(dim=1)
    found, at = peaks_of_resized(maps, size_hw)
    assert at.tolist() == place.tolist()
    torch.testing.assert_close(found, peak)


def test_only_what_is_around_the_peak_is_resized(monkeypatch):
    whole = []
    monkeypatch.setattr(keypoint, "_whole_peaks", lambda maps, size: whole.append(len(maps)) or (maps[:, 0, 0], 0))
    peaks_of_resized(smooth(40, 5), (400, 800))
    assert sum(whole) <= 4


@pytest.mark.parametrize("score", KeypointScore)
def test_no_detections_have_no_keypoints(score):
    found = decode_keypoints(torch.zeros(0, JOINTS, 56, 56), torch.zeros(0, 4), score)
    assert found.shape == (0, JOINTS, 3)
