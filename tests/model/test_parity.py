"""The detectors against what the real peers recorded: features, proposals, detections, losses and gradients.

Every file in the folder named by MASKRAY_PARITY_DIR is a case. Tolerances are those the peers' own rounding allows;
where a gradient is beyond its own, it must lie within what a change of the weights in their last bits does to ours.
"""

import functools
import math

import pytest
import torch
from torch import nn

from model.boxes import pairwise_iou
from model.build import build_detector
from model.checkpoint import load_strict
from model.config import PasteRule
from model.convert import Framework, convert, fit_counters, observe, peer_names
from model.detector import loss_names, normalise
from model.heads.keypoint import decode_keypoints
from model.heads.mask import mask_probabilities
from model.ops.masks import mask_rle
from model.picture import pad, resize, resized_hw, tight_hw
from model.settings import override
from pipelines.masks import rasterise
from tests.oracles import parity

pytestmark = pytest.mark.skipif(not parity.FOLDER, reason="MASKRAY_PARITY_DIR is not set: no recorded peers")

FILES = {file.stem: file for file in parity.files()}
BACKGROUND_FIRST = ("torchvision",)


@pytest.fixture(params=FILES.values(), ids=FILES)
def case(request):
    return load(request.param)


@functools.lru_cache(maxsize=1)
def load(path):
    fixture = parity.Fixture(path)
    imported = convert(fixture.weights, Framework(fixture.peer))
    assert imported.leftover == ()
    # Names and shapes have the last word on the layers, as in an import; the file's own account has it on all rules.
    for found in observe(imported.state, Framework(fixture.peer)):
        if not found.path.endswith("norm"):
            fixture.config = override(fixture.config, found.path, found.value)
    detector = build_detector(fixture.config)
    load_strict(detector, fit_counters(imported.state, detector.state_dict().keys()), path.name)
    return fixture, detector.eval()


def close(found, wanted, atol):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def network_input(fixture, detector):
    """Our own pipeline from the picture to the network's input, and the resized size."""
    config = fixture.config.picture
    picture = fixture["input/image"].permute(2, 0, 1)
    size = resized_hw(*picture.shape[1:], config.short_edge_px, config)
    images = pad([resize(picture, size, config.kernel)], tight_hw([size], config))
    return images, normalise(images, detector.mean, detector.std, config.channel_order)


def test_the_picture_becomes_the_peer_s_input(case):
    fixture, detector = case
    images, values = network_input(fixture, detector)
    assert images.sizes_hw.tolist() == [fixture.meta["input"]["resized_hw"]]
    assert values.shape == fixture["input/net"].shape
    close(values * detector.std, fixture["input/net"] * detector.std, atol=1.0)  # a grey level


def recorded_features(fixture, detector):
    """Our maps under the peer's names."""
    maps = detector.pyramid.backbone(fixture["input/net"])
    levels = detector.pyramid(fixture["input/net"])
    backbone = {"mmdet": "backbone.{}", "torchvision": "body.{}", "detectron2": "res{}"}[fixture.peer]
    first = 2 if fixture.peer == "detectron2" else 0
    if fixture.peer == "mmdet" and len(levels) == 1:
        maps = maps[-1:]  # it puts out one map alone
    named = {backbone.format(i + first): map_ for i, map_ in enumerate(maps)}
    if len(levels) == 1:
        return named | {"out.0": levels[0]}
    neck = {"mmdet": "neck.{}", "torchvision": "fpn.{}", "detectron2": "p{}"}[fixture.peer]
    return named | {neck.format(i + first): level for i, level in enumerate(levels)} | {"fpn.pool": levels[-1]}


@torch.no_grad()
def test_features(case):
    fixture, detector = case
    ours = recorded_features(fixture, detector)
    compared = 0
    for name, wanted in fixture.tensors.items():
        kind, _, map_name = name.partition("/")
        if not kind.startswith("feat") or map_name not in ours:
            continue
        found = ours[map_name][0]
        if kind == "feat":
            close(found, wanted.view(found.shape), atol=2e-4)
        elif kind == "feat_stats":
            close(torch.stack([found.mean((1, 2)), found.std((1, 2), correction=0)]), wanted, atol=2e-4)
        else:
            part = wanted.view(-1, *found.shape[1:])
            close(found[: len(part)], part, atol=2e-4)
        compared += 1
    assert compared >= 2


@torch.no_grad()
def test_semantic_maps(case):
    fixture, detector = case
    if not fixture.config.semantic.enabled:
        pytest.skip("no semantic branch")
    logits, embedding = detector.roi.semantic(detector.pyramid(fixture["input/net"]))
    for name, found in (("semantic_logits", logits[0]), ("semantic_embedding", embedding[0])):
        wanted = fixture[f"feat_slice/{name}"].view(-1, *found.shape[1:])
        close(found[: len(wanted)], wanted, atol=2e-4)


@torch.no_grad()
def test_proposals(case):
    fixture, detector = case
    sizes = torch.tensor([fixture.meta["input"]["resized_hw"]])
    found = detector.rpn.proposals(detector.rpn(detector.pyramid(fixture["input/net"])), sizes)
    boxes = found.boxes[0][found.valid[0]]
    wanted = fixture["rpn/proposals"]
    assert len(boxes) == len(wanted)
    # Near the end of the list rounding decides; all others are there, with their scores.
    scores = fixture["rpn/scores"].sigmoid() if fixture.peer == "detectron2" else fixture["rpn/scores"]
    same_score = (scores[:, None] - found.scores[0][found.valid[0]]).abs() <= 1e-3
    shared = ((pairwise_iou(wanted, boxes) >= 0.999) & same_score).any(dim=1)
    assert shared.float().mean() >= 0.995


def box_crops(detector, features, rois):
    roi, size = detector.roi, detector.config.pooler.box_size
    if hasattr(roi, "box_heads"):
        return roi.crops(roi.prepare(features), rois)
    return roi.crops(features, rois, size)


@torch.no_grad()
def test_box_heads_on_the_peer_s_own_boxes(case):
    fixture, detector = case
    features = detector.pyramid(fixture["input/net"])
    heads = getattr(detector.roi, "box_heads", None) or [detector.roi.box_head]
    for stage, head in enumerate(heads):
        rois = fixture["rpn/proposals"] if stage == 0 else fixture[f"box/{stage}/rois"][:, -4:]
        logits, deltas = head(box_crops(detector, features, rois[None]))
        wanted, wanted_deltas = fixture[f"box/{stage}/logits"], fixture[f"box/{stage}/deltas"]
        if fixture.peer in BACKGROUND_FIRST:
            wanted, wanted_deltas = torch.cat([wanted[:, 1:], wanted[:, :1]], dim=1), wanted_deltas[:, 4:]
        close(logits, wanted, atol=1e-3)
        close(deltas.flatten(1), wanted_deltas, atol=1e-3)


def in_their_order(found, wanted_boxes, wanted_labels):
    """Which of our detections is each of the peer's; scores in the same last digit may change places."""
    boxes, labels = found.boxes[0][found.valid[0]], found.labels[0][found.valid[0]]
    assert len(boxes) == len(wanted_boxes)
    far = (boxes[None] - wanted_boxes[:, None]).abs().amax(dim=2)
    place = (far + 1e6 * (labels[None] != wanted_labels[:, None])).argmin(dim=1)
    assert sorted(place.tolist()) == list(range(len(boxes)))
    assert torch.equal(labels[place], wanted_labels)
    return place


@torch.no_grad()
def test_detections_from_the_peer_s_input(case):
    fixture, detector = case
    config, size = fixture.config, fixture.meta["input"]["resized_hw"]
    features = detector.pyramid(fixture["input/net"])
    proposals = detector.rpn.proposals(detector.rpn(features), torch.tensor([size]))
    features = detector.roi.prepare(features)
    found = detector.roi.complete(features, detector.roi.detect(features, proposals, torch.tensor([size])))
    place = in_their_order(
        found, fixture["det/boxes_net"], fixture["det/labels"] - fixture.meta["config"]["label_base"]
    )
    boxes = found.boxes[0][place]
    close(boxes, fixture["det/boxes_net"], atol=0.05)
    close(found.scores[0][place], fixture["det/scores"], atol=1e-3)
    if "det/mask_probs" in fixture:
        close(found.masks[0][place], fixture["det/mask_probs"], atol=5e-3)
    if "det/keypoints_net" in fixture:
        ours = decode_keypoints(found.heatmaps[0][place], boxes, config.keypoint.score)
        wanted = fixture["det/keypoints_net"]
        close(ours[..., :2], wanted[..., :2], atol=0.05)
        scores = fixture["det/keypoints_scores"] if "det/keypoints_scores" in fixture else wanted[..., 2]
        close(ours[..., 2], scores, atol=5e-3)


@torch.no_grad()
def test_detections_from_the_picture(case):
    fixture, detector = case
    images, _ = network_input(fixture, detector)
    found = detector.predict(images)
    height, width = fixture["input/image"].shape[:2]
    new_height, new_width = images.sizes_hw[0].tolist()
    scale = torch.tensor([width / new_width, height / new_height] * 2)
    found = found._replace(boxes=found.boxes * scale)
    place = in_their_order(found, fixture["det/boxes"], fixture["det/labels"] - fixture.meta["config"]["label_base"])
    close(found.boxes[0][place], fixture["det/boxes"], atol=0.1)
    close(found.scores[0][place], fixture["det/scores"], atol=2e-3)
    if "det/mask_rle_counts" in fixture:
        compare_masks(fixture, found.masks[0][place], found.boxes[0][place], (height, width))


def compare_masks(fixture, probabilities, boxes, size):
    mask = fixture.config.mask
    sizes = torch.tensor([size]).expand(len(boxes), 2)
    padded = mask.paste is PasteRule.PADDED_RESIZE
    runs = mask_rle(probabilities, boxes, sizes, threshold=mask.threshold, padded=padded)
    counts, offsets = fixture["det/mask_rle_counts"], fixture["det/mask_rle_offsets"]
    different = 0
    for k, rle in enumerate(runs.counts):
        lengths = counts[offsets[k] : offsets[k + 1]]
        wanted = torch.repeat_interleave(torch.arange(len(lengths)) % 2, lengths).view(size[1], size[0]).T
        different += int((torch.from_numpy(rasterise(rle, *size)) != wanted).sum())
    assert different <= 0.001 * len(boxes) * size[0] * size[1]


@torch.no_grad()
def test_masks_of_each_stage(case):
    fixture, detector = case
    names = [name for name in fixture.tensors if name.startswith("det/mask_logits_stage")]
    if not names:
        pytest.skip("one mask head")
    features = detector.roi.prepare(detector.pyramid(fixture["input/net"]))
    boxes = fixture["det/boxes_net"][:30]
    labels = fixture["det/labels"][:30] - fixture.meta["config"]["label_base"]
    for stage, logits in enumerate(detector.roi.mask_logits(features, boxes[None])):
        wanted = fixture[f"det/mask_logits_stage{stage}_first30"]
        own = logits.gather(1, labels[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0]
        wanted_own = wanted if wanted.ndim == 3 else wanted.gather(
            1, labels[:, None, None, None].expand(-1, 1, *wanted.shape[2:])
        )[:, 0]  # fmt: skip
        close(own, wanted_own, atol=1e-3)
        assert mask_probabilities(logits, labels, fixture.config.mask).shape == own.shape


VARIANTS = ("bitmask", "polygon", "none", "norm_frozen", "norm_batch_stats", "image1_without_objects",
            "norm_frozen_image1_without_objects")  # fmt: skip


def trained(fixture, detector, variant):
    """Losses and gradient norms, by the peer's names, of one step on the peer's pictures."""
    detector.train()
    if not variant.startswith("norm_batch_stats"):
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    images, targets = parity.train_batch(fixture, "image1_without_objects" in variant)
    values = normalise(images, detector.mean, detector.std, fixture.config.picture.channel_order)
    ours = variant == "norm_batch_stats"
    if ours:
        # In channels-last memory torch's batch statistics on a CPU are 60 times less exact (1e-3 at the pyramid), which
        # changes which proposals there are.
        values = values.contiguous()
        for parameter in detector.parameters():
            parameter.data = parameter.data.contiguous()
    features = detector.pyramid(values)
    output = detector.rpn(features)
    losses = detector.rpn.losses(output, targets, images.sizes_hw)
    # The recorded proposals are of the fixed statistics.
    proposals = detector.rpn.proposals(output, images.sizes_hw) if ours else parity.train_proposals(fixture)
    losses.update(detector.roi.losses(features, proposals, targets, images.sizes_hw))
    assert tuple(losses) == loss_names(fixture.config)
    detector.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    names = peer_names(detector.state_dict(), Framework(fixture.peer))
    norms = {names[name]: p.grad.norm().item() for name, p in detector.named_parameters() if p.grad is not None}
    return {parity.peer_loss(fixture.peer, name): value.item() for name, value in losses.items()}, norms


def relative(found, wanted):
    return abs(found - wanted) / max(abs(wanted), 1e-6)


def spread(fixture, detector, variant):
    """By name, how far losses and gradients move when the weights change in their last bits (three draws)."""
    weights = {name: value.clone() for name, value in detector.state_dict().items()}
    losses, norms = trained(fixture, detector, variant)
    moved = dict.fromkeys(losses | norms, 0.0)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in detector.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.mul_(1 + 2e-7 * noise)
        other_losses, other_norms = trained(fixture, detector, variant)
        for before, after in ((losses, other_losses), (norms, other_norms)):
            for name, value in before.items():
                moved[name] = max(moved[name], relative(after[name], value))
        detector.load_state_dict(weights)
    detector.load_state_dict(weights)
    return moved


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients(case, variant):
    fixture, detector = case
    if variant not in fixture.meta["losses"]:
        pytest.skip(f"not recorded: {variant}")
    weights = {name: value.clone() for name, value in detector.state_dict().items()}
    try:
        compare_training(fixture, detector, variant)
    finally:
        detector.load_state_dict(weights)
        detector.eval()


def compare_training(fixture, detector, variant):
    losses, norms = trained(fixture, detector, variant)
    wanted, wanted_norms = fixture.meta["losses"][variant], fixture.meta["grad_norms"].get(variant, {})
    # Polygons are rasterised once, when a sample is loaded, and the peers at each RoI.
    is_polygon = variant == "polygon"
    beyond = [
        (name, found, theirs, limit)
        for ours, them, limit in ((losses, wanted, 1e-2 if is_polygon else 1e-4), (norms, wanted_norms, 1e-3))
        for name, theirs in them.items()
        if name in ours or ours is norms
        for found in [ours.get(name, math.inf)]
        if relative(found, theirs) > limit and abs(found - theirs) > 1e-6
    ]
    assert set(losses) <= set(wanted)
    assert {name for name, value in norms.items() if value > 0} <= set(wanted_norms) or not wanted_norms
    if is_polygon:
        assert [row for row in beyond if row[3] > 1e-3] == []
    elif beyond:
        noise = spread(fixture, detector, variant)
        assert [row for row in beyond if relative(row[1], row[2]) > row[3] + 4 * noise[row[0]]] == []
