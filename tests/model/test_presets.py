"""Named detectors build on the meta device, with as many parameters as the networks their weights come from."""

import pytest
import torch
from torchvision.models.detection import maskrcnn_resnet50_fpn

from model.backbones.resnet import FrozenBatchNorm
from model.build import build_detector
from model.presets import DETECTORS
from model.presets.own import OWN


def on_meta(config):
    with torch.device("meta"):
        return build_detector(config)


def weights_and_affines(detector):
    """Parameters, with the affine parts of frozen norms counted as such."""
    frozen = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm)]
    return sum(p.numel() for p in detector.parameters()) + sum(2 * module.weight.numel() for module in frozen)


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_each_detector_builds_without_memory(make):
    detector = on_meta(make())
    assert detector.training
    assert {value.device.type for value in detector.state_dict().values()} == {"meta"}


# torchvision's maskrcnn_resnet50_fpn with 91 classes has 44,401,393; 80 + 1 classes and their slots make the first.
@pytest.mark.parametrize(("name", "count"), [("mask_rcnn_r50_fpn", 44_396_336), ("mask_rcnn_r101_fpn", 63_388_464)])
def test_parameters_of_the_published_networks(name, count):
    assert weights_and_affines(on_meta(DETECTORS[name]())) == count


def test_torchvision_has_as_many_parameters_and_a_background_slot_more():
    with torch.device("meta"):
        peer = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    affines = sum(buffer.numel() for name, buffer in peer.named_buffers() if name.endswith(("weight", "bias")))
    theirs = sum(parameter.numel() for parameter in peer.parameters()) + affines
    unused = 4 * (1024 + 1) + (256 + 1)  # background's box deltas and mask
    assert weights_and_affines(on_meta(DETECTORS["torchvision_mask_rcnn_r50_fpn"]())) == theirs - unused
