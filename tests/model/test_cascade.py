"""The cascades: what each stage learns from, how stages are merged, and what neighbours and padding may not change."""

import pytest
import torch

from model.boxes import clip, decode
from model.config import BoxHeadConfig, CascadeConfig, CascadeMerge
from model.detector import loss_names
from model.heads.box import own_deltas
from model.heads.mask import mask_probabilities
from model.roi.sampling import sample_rois
from model.roi.stages import BoxStages, scale_gradient
from model.structures import Images, Targets
from tests.model.tiny_batch import CLASSES, tiny_batch, tiny_detector

SIZES = torch.tensor([[64, 64], [50, 60]])
CASCADE = {"roi": "cascade", "box.class_agnostic": True}
DETECTRON2 = {
    **CASCADE,
    "cascade.resample": False,
    "cascade.mask_each_stage": False,
    "cascade.feature_gradient": 1 / 3,
    "cascade.merge": "probabilities",
}
HTC = {"roi": "htc", "box.class_agnostic": True}
SEMANTIC = {
    **HTC,
    "semantic.enabled": True,
    "semantic.num_classes": 5,
    "semantic.channels": 16,
    "semantic.num_convs": 1,
}
KINDS = {"mmdetection": CASCADE, "detectron2": DETECTRON2, "htc": HTC, "htc-semantic": SEMANTIC}


def batch_of(seed, **given):
    """A batch with a semantic map, which only HTC looks at."""
    images, targets = tiny_batch(seed, **given)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(images.pixels), *images.pixels.shape[-2:])
    semantic = torch.randint(0, 5, shape, generator=generator).to(torch.uint8)
    return images, targets._replace(semantic=semantic)


def test_the_gradient_is_scaled_and_the_value_is_not():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = scale_gradient(x, 0.25)
    assert torch.equal(out, x)
    (out * torch.tensor([4.0, 8.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0]
    assert scale_gradient(x, 1) is x


def stage_case(resample, num_deltas):
    """A stage's answers for RoIs sampled around the objects, and the arithmetic of its cascade."""
    generator = torch.Generator().manual_seed(0)
    _, targets = tiny_batch(0)
    boxes = targets.boxes.repeat(1, 4, 1) + 3 * torch.randn(2, 16, 4, generator=generator)
    valid = torch.ones(2, 16, dtype=torch.bool)
    config = BoxHeadConfig(samples=18, positive_share=0.5)
    sampled = sample_rois(boxes, valid, targets, CLASSES, config, 0.5, 2)
    logits = torch.randn(36, CLASSES + 1, generator=generator)
    deltas = torch.randn(36, num_deltas, 4, generator=generator)
    return BoxStages(CLASSES, config, CascadeConfig(resample=resample)), sampled, logits, deltas


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("num_deltas", [1, CLASSES], ids=["agnostic", "by-class"])
def test_refined_boxes_are_those_of_the_true_or_else_best_class(stage, num_deltas):
    stages, sampled, logits, deltas = stage_case(True, num_deltas)
    found = stages.refine(stage, deltas, logits, sampled, SIZES)
    for b in range(2):
        for s in range(18):
            row = b * 18 + s
            label = int(sampled.labels[b, s]) if sampled.positive[b, s] else int(logits[row, :-1].argmax())
            chosen = own_deltas(deltas[row : row + 1], torch.tensor([label]))
            weights = stages.cascade.delta_weights[stage]
            wanted = clip(decode(chosen, sampled.rois[b, s][None], weights)[None], SIZES[b : b + 1])
            torch.testing.assert_close(found.boxes[b, s], wanted[0, 0])


def test_objects_copies_leave_where_the_next_draw_adds_them_again():
    for resample in (True, False):
        stages, sampled, logits, deltas = stage_case(resample, 1)
        assert (sampled.is_object & sampled.valid).any()
        found = stages.refine(0, deltas, logits, sampled, SIZES)
        assert bool((found.valid & sampled.is_object).any()) != resample
        assert not (found.valid & ~sampled.valid).any()
        if not resample:  # all but those that lost their extent
            side = found.boxes[..., 2:] - found.boxes[..., :2]
            assert torch.equal(found.valid, sampled.valid & (side > 0).all(dim=-1))


def test_merges_are_means_before_or_after_the_softmax():
    logits = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    of_logits = BoxStages(3, BoxHeadConfig(), CascadeConfig(merge=CascadeMerge.LOGITS)).merged(logits)
    of_shares = BoxStages(3, BoxHeadConfig(), CascadeConfig(merge=CascadeMerge.PROBABILITIES)).merged(logits)
    torch.testing.assert_close(of_logits, torch.stack(logits).mean(dim=0).softmax(dim=1))
    torch.testing.assert_close(of_shares, torch.stack([stage.softmax(dim=1) for stage in logits]).mean(dim=0))
    assert not torch.allclose(of_logits, of_shares, atol=1e-3)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_losses_are_named_finite_and_reach_every_parameter(settings):
    detector = tiny_detector(**settings)
    losses = detector(*batch_of(0))
    assert tuple(losses) == loss_names(detector.config)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    for name, parameter in detector.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_without_objects_nothing_but_the_classes_learns(settings):
    detector = tiny_detector(**settings)
    losses = detector(*batch_of(0, counts=(0, 0)))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    for name, value in losses.items():
        assert (value.item() == 0) == name.endswith(("box", "mask")), name
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_a_stage_s_losses_have_its_weight():
    plain = {**CASCADE, "cascade.loss_weights": (1.0, 1.0, 1.0)}
    whole = tiny_detector(**plain)(*batch_of(0))
    weighted = tiny_detector(**{**CASCADE, "cascade.loss_weights": (1.0, 0.5, 0.0)})(*batch_of(0))
    for name, value in weighted.items():
        share = {"stage1": 0.5, "stage2": 0.0}.get(name.split("_")[0], 1.0)
        torch.testing.assert_close(value, share * whole[name], msg=name)


def test_one_stage_of_a_cascade_is_the_standard_second_stage():
    cascade = tiny_detector(**CASCADE)
    standard = tiny_detector(**{"box.class_agnostic": True})
    theirs = cascade.state_dict()
    renamed = {name.replace("box_head.", "box_heads.0.").replace("mask_head.", "mask_heads.0."): name
               for name in standard.state_dict()}  # fmt: skip
    standard.load_state_dict({ours: theirs[name] for name, ours in renamed.items()})
    batch = batch_of(0)
    found, wanted = cascade(*batch), standard(*batch)
    for name in ("cls", "box", "mask"):
        torch.testing.assert_close(found[f"stage0_{name}"], wanted[name])


def picture(batch, b):
    """One picture of a batch."""
    images, targets = batch
    masks = targets.masks._replace(offsets=targets.masks.offsets[b : b + 1], extents=targets.masks.extents[b : b + 1])
    known = {name: part[b : b + 1] for name, part in targets._asdict().items() if isinstance(part, torch.Tensor)}
    return Images(images.pixels[b : b + 1], images.sizes_hw[b : b + 1]), Targets(**known, masks=masks)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_picture_s_losses_and_detections_do_not_depend_on_its_neighbours(settings):
    frozen = {**settings, "backbone.norm": "frozen", "box.samples": 8, "box.score_threshold": 0.0}
    detector = tiny_detector(**frozen)
    batch = batch_of(3, counts=(2, 2))
    whole, parts = detector(*batch), [detector(*picture(batch, b)) for b in range(2)]
    assert_named = ("rpn_cls", "rpn_box", "stage0_cls", "stage0_box")  # later stages may sample fewer than asked for
    for name in assert_named:
        torch.testing.assert_close(whole[name], (parts[0][name] + parts[1][name]) / 2, rtol=1e-4, atol=1e-6, msg=name)
    together = detector.eval().predict(batch[0])
    for b in range(2):
        alone = detector.predict(picture(batch, b)[0])
        for one, other in zip(alone[:-1], together[:-1], strict=True):
            torch.testing.assert_close(one[0], other[b], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_what_lies_in_the_padding_does_not_matter(settings):
    detector = tiny_detector(**settings)
    images, targets = batch_of(0)
    dirty = images.pixels.clone()
    for pixels, (height, width) in zip(dirty, images.sizes_hw.tolist(), strict=True):
        pixels[:, height:] = 200
        pixels[:, :, width:] = 200
    detector.eval()
    wanted = detector(images, targets)
    for name, value in detector(images._replace(pixels=dirty), targets).items():
        assert torch.equal(value, wanted[name]), name


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_masks_are_the_mean_over_the_heads(settings):
    detector = tiny_detector(**{**settings, "box.score_threshold": 0.0}).eval()
    images, _ = batch_of(0)
    roi = detector.roi
    with torch.no_grad():
        features = roi.prepare(detector.features(images))
        found = detector.predict(images)
        crops = roi.pooler(features, found.boxes, roi.pooler.config.mask_size)
        if settings is SEMANTIC:
            crops = crops + roi.semantic_pooler([features[-1]], found.boxes, roi.pooler.config.mask_size)
        masks, flow = [], None
        for head in roi.mask_heads:
            hidden = head.features(crops, flow=flow)
            flow = hidden if settings in (HTC, SEMANTIC) else None
            masks.append(mask_probabilities(head.upsample(hidden), found.labels.flatten(), roi.mask_config))
    assert len(masks) == (1 if settings is DETECTRON2 else 3)
    torch.testing.assert_close(found.masks.flatten(0, 1), torch.stack(masks).mean(dim=0))


def test_a_semantic_branch_without_a_semantic_map_says_so():
    images, targets = tiny_batch(0)
    with pytest.raises(ValueError, match="has a semantic branch, the targets have no semantic map: train it on"):
        tiny_detector(**SEMANTIC)(images, targets)
