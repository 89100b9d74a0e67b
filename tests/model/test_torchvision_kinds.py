"""torchvision's v1, v2 and keypoint detectors, live: the same answers with its weights here, and with ours there."""

import pytest
import torch

from model.build import build_detector
from model.checkpoint import load_strict
from model.convert import Framework, convert, describe, fit_counters, from_torchvision, to_torchvision
from model.heads.keypoint import decode_keypoints
from model.picture import pad, resize, resized_hw, tight_hw
from model.presets import rules
from model.settings import override
from tests.oracles.torchvision_kinds import DETECTIONS, KINDS, PROPOSALS, SIZES, build
from tests.oracles.torchvision_peer import textured_picture

MIN_DETECTIONS = 30


def rules_of(peer):
    """torchvision's rules at the peer's sizes."""
    eps = next((m.eps for m in peer.backbone.modules() if hasattr(m, "eps")), 0.0)
    config = rules.torchvision()
    for path, value in {
        "picture.short_edge_px": SIZES["min_size"],
        "picture.long_edge_px": SIZES["max_size"],
        "rpn.pre_nms_test": SIZES["rpn_pre_nms_top_n_test"],
        "rpn.post_nms_test": PROPOSALS,
        "box.max_detections": DETECTIONS,
        "backbone.norm_eps": eps,
    }.items():
        config = override(config, path, value)
    return config


def imported(peer):
    state = convert(peer.state_dict(), Framework.TORCHVISION).state
    config, _ = describe(state, Framework.TORCHVISION, rules_of(peer))
    detector = build_detector(config).eval()
    load_strict(detector, fit_counters(state, detector.state_dict()), "torchvision's weights")
    return detector


@torch.no_grad()
def predict(detector, picture):
    """Boxes in the picture's pixels, scores, labels, and masks as [D, M, M] or keypoints as [D, J, 3]."""
    config = detector.config.picture
    size = resized_hw(*picture.shape[-2:], config.short_edge_px, config)
    found = detector.predict(pad([resize(picture * 255, size, config.kernel)], tight_hw([size], config)))
    count = int(found.valid[0].sum())
    scale = torch.tensor([picture.shape[-1] / size[1], picture.shape[-2] / size[0]] * 2)
    boxes = found.boxes[0, :count] * scale
    points = None
    if found.heatmaps is not None:
        # Maps are resized to boxes in the network's pixels.
        points = decode_keypoints(found.heatmaps[0, :count], found.boxes[0, :count], detector.config.keypoint.score)
        points[..., :2] *= scale[:2]
    return boxes, found.scores[0, :count], found.labels[0, :count], points


def assert_same_answer(detector, peer, picture):
    with torch.no_grad():
        theirs = peer([picture])[0]
    boxes, scores, labels, points = predict(detector, picture)
    assert len(theirs["boxes"]) >= MIN_DETECTIONS
    assert len(boxes) == len(theirs["boxes"])
    distance = torch.cdist(theirs["boxes"], boxes, p=1) + 1e6 * (theirs["labels"][:, None] != labels + 1)
    twin = distance.argmin(dim=1)
    torch.testing.assert_close(boxes[twin], theirs["boxes"], atol=0.02, rtol=0)
    torch.testing.assert_close(scores[twin], theirs["scores"], atol=2e-4, rtol=0)
    if points is not None:
        apart = (points[twin][..., :2] - theirs["keypoints"][..., :2]).abs().amax(dim=-1)
        assert (apart < 0.02).float().mean() > 0.98  # two peaks of a map may be equal up to rounding


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_give_the_same_answers(kind):
    picture = textured_picture(3, 130, 170)
    peer = build(kind, picture)
    detector = imported(peer)
    assert_same_answer(detector, peer, picture)
    # Other weights, as after some training here, and back.
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: value * (1 + 0.02 * torch.randn(value.shape, generator=generator)) if value.ndim > 1 else value
        for name, value in detector.state_dict().items()
    }
    load_strict(detector, changed, "changed weights")
    theirs = to_torchvision(changed)
    peer.load_state_dict(theirs, strict=True)
    assert_same_answer(detector, peer, picture)
    again = from_torchvision(peer.state_dict())
    assert all(torch.equal(again[name], value) for name, value in changed.items())
