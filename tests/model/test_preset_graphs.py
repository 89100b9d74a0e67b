"""The losses of every architecture are one graph of fixed shapes: its presets, made narrow, compile whole."""

import pytest
import torch

from model.build import build_detector
from model.config import FeatureKind
from model.detector import loss_names
from model.presets import DETECTORS
from model.settings import override
from tests.model.tiny_batch import CLASSES, SIDE, SLOTS, tiny_batch

NARROW = {
    "backbone.stem_channels": 8,
    "fpn_channels": 16,
    "anchors.sizes_px": [16, 24, 32, 48, 64],
    "rpn.samples": 32,
    "rpn.pre_nms_train": 60,
    "rpn.post_nms_train": 40,
    "box.conv_channels": 16,
    "box.channels": 32,
    "box.samples": 16,
    "mask.channels": 16,
    "mask.hidden_channels": 16,
    "keypoint.channels": 16,
    "keypoint.num_convs": 1,
    "semantic.channels": 16,
}

# What has a second stage, a head or a kind of layer of its own; the rest differ from one of these in a part.
ARCHITECTURES = [
    "detectron2_mask_rcnn_r50_c4",
    "detectron2_mask_rcnn_r50_dc5",
    "detectron2_cascade_mask_rcnn_r50_fpn",
    "mmdet_mask_rcnn_r50_fpn_mdconv_c3_c5",
    "nuimages_htc_r50_fpn",
    "torchvision_mask_rcnn_r50_fpn_v2",
    "paper_keypoint_mask_rcnn_r50_fpn",
]
VARIANTS = [
    "detectron2_faster_rcnn_r50_fpn",
    "detectron2_mask_rcnn_r50_fpn",
    "detectron2_mask_rcnn_r50_fpn_dconv_c3_c5",
    "detectron2_scratch_mask_rcnn_r50_fpn_gn",
    "detectron2_keypoint_rcnn_r50_fpn",
    "mmdet_mask_rcnn_r50_caffe_c4",
    "mmdet_mask_rcnn_x101_32x4d_fpn",
    "mmdet_cascade_mask_rcnn_r50_fpn",
    "mmdet_htc_without_semantic_r50_fpn",
    "paper_mask_rcnn_r50_c4",
    "paper_mask_rcnn_r50_c4_softmax",
    "paper_mask_rcnn_r50_c4_class_agnostic",
    "paper_mask_rcnn_r50_c4_roipool_max",
    "paper_mask_rcnn_r50_c4_roiwarp_ave",
    "paper_mask_rcnn_r50_c4_roialign_max",
    "paper_mask_rcnn_r50_c5",
    "paper_mask_rcnn_r50_fpn_mlp_2",
    "paper_enhanced_mask_rcnn_x152_32x8d_fpn_nl",
]


def narrow(name):
    """The named detector with few channels and, where it has no bottlenecks to need them, 18 layers."""
    config = DETECTORS[name]()
    backbone = config.backbone
    changes = dict(NARROW)
    if backbone.groups > 1:
        changes |= {"backbone.groups": 2, "backbone.group_width": 4}
    needs_bottlenecks = backbone.groups > 1 or backbone.deformable_stages
    changes["backbone.depth"] = 50 if needs_bottlenecks else 18
    if config.mask.num_convs:
        changes["mask.num_convs"] = 1
    if config.num_classes > CLASSES:
        changes["num_classes"] = CLASSES
    if config.features is not FeatureKind.FPN:
        changes["anchors.sizes_px"] = [16, 32]
    for path, value in changes.items():
        config = override(config, path, value)
    return config


def batch_for(config, seed):
    """A tiny batch with the keypoints and the semantic map that the detector learns from."""
    images, targets = tiny_batch(seed)
    generator = torch.Generator().manual_seed(seed)
    targets = targets._replace(labels=targets.labels % config.num_classes)
    if config.keypoint.enabled:
        shape = (len(targets.boxes), SLOTS, config.keypoint.num_keypoints)
        inside = torch.rand((*shape, 2), generator=generator)
        corner, size = targets.boxes[..., None, :2], (targets.boxes[..., 2:] - targets.boxes[..., :2])[..., None, :]
        seen = torch.randint(0, 3, (*shape, 1), generator=generator).float()
        targets = targets._replace(keypoints=torch.cat([corner + inside * size, seen], dim=3))
    if config.semantic.enabled:
        shape = (len(targets.boxes), SIDE, SIDE)
        semantic = torch.randint(0, config.semantic.num_classes, shape, dtype=torch.uint8, generator=generator)
        targets = targets._replace(semantic=semantic)
    return images, targets


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.soak) for name in VARIANTS)])
def test_the_losses_are_one_graph(name):
    config = narrow(name)
    torch.manual_seed(0)
    detector = build_detector(config)
    batch = batch_for(config, 0)
    compiled = torch.compile(detector.losses, fullgraph=True, backend="aot_eager", dynamic=False)
    found = compiled(*batch)
    assert tuple(found) == loss_names(config)
    sum(found.values()).backward()
    with torch.no_grad():
        wanted = detector.losses(*batch)
    for loss, value in wanted.items():
        assert value.isfinite(), loss
        torch.testing.assert_close(found[loss].detach(), value, rtol=1e-3, atol=1e-5, msg=loss)


def test_every_architecture_is_a_preset():
    assert set(ARCHITECTURES + VARIANTS) <= set(DETECTORS)
