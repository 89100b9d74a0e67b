"""Named detectors build on the meta device, with as many parameters as the networks their weights come from."""

import functools

import pytest
import torch
from torchvision.models import detection

from model.build import build_detector
from model.presets import DETECTORS
from model.presets.backbones import deformable, resnet, resnext
from model.presets.heads import COCO_STUFF, NUIMAGES_SURFACES, htc, htc_without_semantic, mmdetection_cascade
from model.presets.rules import mmdetection

AFFINE = ("weight", "bias")


def on_meta(config):
    with torch.device("meta"):
        return build_detector(config)


def weights_and_affines(module):
    """Parameters, with the affine part of frozen norms, which are buffers, counted as such."""
    frozen = sum(buffer.numel() for name, buffer in module.named_buffers() if name.endswith(AFFINE))
    return frozen + sum(parameter.numel() for parameter in module.parameters())


@functools.cache
def size(config):
    return weights_and_affines(on_meta(config))


@pytest.mark.parametrize("name", DETECTORS)
def test_each_detector_builds_without_memory(name):
    detector = on_meta(DETECTORS[name]())
    assert detector.training
    assert {value.device.type for value in detector.state_dict().values()} == {"meta"}
    assert any(parameter.requires_grad for parameter in detector.pyramid.backbone.parameters())


def of_backbone(name, classes=80):
    changes = {
        "r50": lambda config: config,
        "r101": lambda config: resnet(config, 101),
        "x101_32x4d": lambda config: resnext(config, 32, 4),
        "x101_64x4d": lambda config: resnext(config, 64, 4),
        "x101_32x8d": lambda config: resnext(config, 32, 8),
    }
    base = mmdetection()
    return changes[name](type(base)(**{**vars(base), "num_classes": classes}))


HEADS = {"mask": lambda config: config, "cascade": mmdetection_cascade, "htc": htc_without_semantic}

# Weights with the affine of norms: backbone, affine alone, Mask R-CNN, Cascade Mask R-CNN, HTC without semantic.
COCO = {
    "r50": (23_508_032, 53_120, 44_396_336, 77_324_606, 77_456_190),
    "r101": (42_500_160, 105_344, 63_388_464, 96_316_734, 96_448_318),
    "x101_32x4d": (42_128_704, 137_856, 63_017_008, 95_945_278, 96_076_862),
    "x101_64x4d": (81_406_272, 202_880, 102_294_576, 135_222_846, 135_354_430),
    "x101_32x8d": (86_742_336, 202_880, 107_630_640, 140_558_910, 140_690_494),
}
NUIMAGES = {
    ("r50", "mask"): 44_019_596,
    ("r50", "cascade"): 77_055_386,
    ("r50", "htc"): 77_186_970,
    ("r101", "mask"): 63_011_724,
    ("r101", "cascade"): 96_047_514,
    ("x101_32x4d", "mask"): 62_640_268,
    ("x101_32x4d", "cascade"): 95_676_058,
    ("x101_64x4d", "htc"): 135_085_210,
}


@pytest.mark.parametrize("name", COCO)
def test_parameters_of_the_published_networks(name):
    backbone, affine, *heads = COCO[name]
    detector = on_meta(of_backbone(name))
    found = detector.pyramid.backbone
    assert weights_and_affines(found) == backbone
    assert sum(value.numel() for value in found.state_dict().values() if value.ndim == 1) == 2 * affine
    assert [size(head(of_backbone(name))) for head in HEADS.values()] == heads


@pytest.mark.parametrize(("backbone", "head"), NUIMAGES)
def test_parameters_with_the_classes_of_nuimages(backbone, head):
    assert size(HEADS[head](of_backbone(backbone, classes=10))) == NUIMAGES[backbone, head]


def test_parameters_of_parts():
    detector = on_meta(mmdetection())
    pyramid = weights_and_affines(detector.pyramid) - weights_and_affines(detector.pyramid.backbone)
    parts = [weights_and_affines(part) for part in (detector.rpn, detector.roi.box_head, detector.roi.mask_head)]
    assert (pyramid, *parts) == (3_344_384, 593_935, 14_306_705, 2_643_280)


@pytest.mark.parametrize(("semantic", "count"), [(COCO_STUFF, 2_802_103), (NUIMAGES_SURFACES, 2_763_296)])
def test_parameters_of_the_semantic_branch(semantic, count):
    base = mmdetection()
    assert size(htc(base, semantic)) - size(htc_without_semantic(base)) == count


@pytest.mark.parametrize(
    ("name", "modulated", "count"),
    [
        ("r50", False, 580_842),
        ("r50", True, 871_263),
        ("r101", False, 1_286_172),
        ("x101_32x4d", False, 2_571_804),
        ("x101_64x4d", False, 5_143_068),
    ],
)
def test_parameters_of_deformable_convolutions(name, modulated, count):
    base = of_backbone(name)
    assert size(deformable(base, modulated)) - size(base) == count


@pytest.mark.parametrize(
    ("ours", "theirs", "slots", "count", "unused"),
    [
        # torchvision has box deltas and a mask for the background too.
        ("torchvision_mask_rcnn_r50_fpn", detection.maskrcnn_resnet50_fpn, 91, 44_454_513, 4 * 1025 + 257),
        ("torchvision_mask_rcnn_r50_fpn_v2", detection.maskrcnn_resnet50_fpn_v2, 91, 46_359_409, 4 * 1025 + 257),
        ("torchvision_keypoint_rcnn_r50_fpn", detection.keypointrcnn_resnet50_fpn, 2, 59_190_378, 4 * 1025),
    ],
)
def test_torchvision_has_as_many_parameters_and_a_background_slot_more(ours, theirs, slots, count, unused):
    with torch.device("meta"):
        peer = theirs(weights=None, weights_backbone=None, num_classes=slots)
    assert weights_and_affines(peer) == count
    assert size(DETECTORS[ours]()) == count - unused


def test_the_nuimages_presets_have_their_size():
    assert size(DETECTORS["nuimages_mask_rcnn_r50_fpn"]()) == NUIMAGES["r50", "mask"]
    assert size(DETECTORS["nuimages_htc_r50_fpn"]()) == NUIMAGES["r50", "htc"] + 2_763_296
    dconv = size(DETECTORS["nuimages_htc_x101_64x4d_fpn_dconv_c3_c5"]())
    assert dconv == NUIMAGES["x101_64x4d", "htc"] + 2_763_296 + 5_143_068


def test_what_is_frozen():
    """Caffe style has constant norms; pytorch style trains their affine, but not in the stem and the first stage."""
    frozen = on_meta(DETECTORS["mmdet_mask_rcnn_r50_caffe_fpn"]()).pyramid.backbone
    fixed = on_meta(DETECTORS["mmdet_mask_rcnn_r50_fpn"]()).pyramid.backbone
    norms = {name for name, parameter in fixed.named_parameters() if "norm" in name and parameter.requires_grad}
    assert not any("norm" in name and parameter.requires_grad for name, parameter in frozen.named_parameters())
    assert norms
    assert not any(name.startswith(("stem", "stages.0")) for name in norms)
