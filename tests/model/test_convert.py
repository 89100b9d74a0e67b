"""Weights of torchvision under the names of every version; what the table does not cover is refused."""

import re

import pytest
import torch
from torchvision.models.detection import MaskRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from model.build import build_detector
from model.checkpoint import load_strict
from model.convert import from_torchvision
from model.presets import torchvision_mask_rcnn_r50_fpn
from model.settings import override

CLASSES = 6  # with the background


@pytest.fixture(scope="module")
def states():
    """State dicts of torchvision by backbone, on the meta device: names and shapes."""
    with torch.device("meta"):
        names = ("resnet18", "resnet50", "resnet101")
        return {
            name: MaskRCNN(resnet_fpn_backbone(backbone_name=name, weights=None), CLASSES).state_dict()
            for name in names
        }


def detector(depth, norm="frozen"):
    config = torchvision_mask_rcnn_r50_fpn()
    for path, value in {"backbone.depth": depth, "num_classes": CLASSES - 1, "backbone.norm": norm}.items():
        config = override(config, path, value)
    with torch.device("meta"):
        return build_detector(config)


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_every_weight_finds_its_place_and_shape(states, depth):
    converted = from_torchvision(states[f"resnet{depth}"])
    load_strict(detector(depth), converted, "torchvision's weights")
    # Nothing is mapped onto something else.
    kept = [name for name in states[f"resnet{depth}"] if not name.endswith("num_batches_tracked")]
    assert len(converted) == len(kept)


# How torchvision up to 0.12 wrote the names, from its checkpoints of that time.
OLD_NAMES = (
    (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
)


def old_name(name):
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def test_names_of_old_versions_mean_the_same(states):
    new = states["resnet50"]
    numbered = {name: torch.full((2,), float(i)) for i, name in enumerate(new)}
    renamed = {old_name(name): value for name, value in numbered.items()}
    assert len(renamed) == len(numbered)
    assert len(renamed.keys() - numbered.keys()) == 2 * (4 + 4 + 1 + 4)
    assert {"backbone.fpn.inner_blocks.3.bias", "rpn.head.conv.weight", "roi_heads.mask_head.mask_fcn1.weight"} <= set(
        renamed
    )
    one, other = from_torchvision(numbered), from_torchvision(renamed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_stages_layers_and_convolutions_are_counted_from_zero_one_and_zero(states):
    numbered = {name: torch.full((2,), float(i)) for i, name in enumerate(states["resnet50"])}
    converted = from_torchvision(numbered)
    pairs = {
        "pyramid.backbone.stages.0.0.conv1.weight": "backbone.body.layer1.0.conv1.weight",
        "pyramid.backbone.stages.3.2.norm3.running_var": "backbone.body.layer4.2.bn3.running_var",
        "pyramid.backbone.stages.2.0.shortcut.norm.bias": "backbone.body.layer3.0.downsample.1.bias",
        "pyramid.lateral.3.weight": "backbone.fpn.inner_blocks.3.0.weight",
        "pyramid.output.0.bias": "backbone.fpn.layer_blocks.0.0.bias",
        "roi.mask_head.convs.0.weight": "roi_heads.mask_head.0.0.weight",
        "roi.mask_head.convs.3.bias": "roi_heads.mask_head.3.0.bias",
        "roi.box_head.fc2.weight": "roi_heads.box_head.fc7.weight",
        "rpn.head.deltas.bias": "rpn.head.bbox_pred.bias",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(converted[ours], numbered[theirs]), ours


def test_the_background_moves_to_the_end_and_leaves_deltas_and_masks(states):
    state = {name: torch.zeros(2) for name in states["resnet18"]}
    for part, shape in {"weight": (3,), "bias": ()}.items():
        class_of = torch.arange(CLASSES).float().view(-1, *[1] * len(shape))
        state[f"roi_heads.box_predictor.cls_score.{part}"] = class_of.expand(CLASSES, *shape)
        state[f"roi_heads.box_predictor.bbox_pred.{part}"] = class_of.repeat_interleave(4, 0).expand(
            4 * CLASSES, *shape
        )
        state[f"roi_heads.mask_predictor.mask_fcn_logits.{part}"] = class_of.expand(CLASSES, *shape)
    converted = from_torchvision(state)
    assert converted["roi.box_head.scores.bias"].tolist() == [1, 2, 3, 4, 5, 0]
    assert converted["roi.box_head.deltas.bias"].tolist() == [c for c in range(1, 6) for _ in range(4)]
    assert converted["roi.mask_head.logits.bias"].tolist() == [1, 2, 3, 4, 5]
    for name in ("roi.box_head.scores", "roi.box_head.deltas", "roi.mask_head.logits"):
        assert converted[f"{name}.weight"][:, 0].tolist() == converted[f"{name}.bias"].tolist()


def test_counters_of_batch_norm_are_left_out(states):
    state = {name: torch.zeros(2) for name in states["resnet18"]}
    state["backbone.body.bn1.num_batches_tracked"] = torch.tensor(3)
    assert not any("num_batches" in name for name in from_torchvision(state))


@pytest.mark.parametrize(
    "name",
    [
        "backbone.body.fc.weight",
        "backbone.body.layer1.0.conv1.weight.",
        "xbackbone.body.conv1.weight",
        "module.backbone.body.conv1.weight",
        "backbone.body.layer1.0.conv1.bias",
        "backbone.fpn.extra_blocks.p6.weight",
        "roi_heads.keypoint_head.0.weight",
        "roi_heads.box_head.0.0.weight",
        "",
    ],
)
def test_unknown_names_are_refused(states, name):
    with pytest.raises(ValueError, match=rf"the weights hold '{re.escape(name)}', which torchvision's"):
        from_torchvision({**states["resnet50"], name: torch.zeros(1)})


def test_weights_without_masks_are_refused():
    with torch.device("meta"):
        state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES).state_dict()
    with pytest.raises(
        ValueError, match=r"nothing for roi\.mask_head\.logits\.weight: give those of a whole Mask R-CNN"
    ):
        from_torchvision(state)
    with pytest.raises(ValueError, match=r"nothing for roi\.box_head\.scores\.weight"):
        from_torchvision({})


def test_a_missing_weight_is_reported_when_loading(states):
    state = {name: value for name, value in states["resnet50"].items() if name != "rpn.head.cls_logits.bias"}
    with pytest.raises(ValueError, match=r"\(1 missing: rpn\.head\.objectness\.bias\)"):
        load_strict(detector(50), from_torchvision(state), "torchvision's weights")
