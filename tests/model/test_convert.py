"""Whole state dicts: the peers' own, both ways bit for bit, and the names of every version."""

import re

import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from model.build import build_detector
from model.checkpoint import load_strict
from model.convert import (
    Framework,
    convert,
    describe,
    fit_counters,
    from_detectron2,
    from_mmdetection,
    from_torchvision,
    identify,
    peer_names,
    to_detectron2,
    to_mmdetection,
    to_theirs,
    to_torchvision,
)
from tests.oracles import parity

FIXTURES = [pytest.param(path, id=path.stem) for path in parity.files()]
READ = {"torchvision": from_torchvision, "detectron2": from_detectron2, "mmdet": from_mmdetection}
WRITE = {"torchvision": to_torchvision, "detectron2": to_detectron2, "mmdet": to_mmdetection}
CLASSES = 6  # with the background


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("path", FIXTURES)
def test_both_directions_are_the_identity_for_the_peers_weights(path):
    fixture = parity.Fixture(path)
    framework = identify(fixture.weights)
    assert framework.value == fixture.peer
    found = convert(fixture.weights, framework)
    assert not found.leftover
    assert {use.theirs for use in found.uses} == set(fixture.weights)
    assert same(to_theirs(found.state, framework, found.remainder), fixture.weights)
    ours = READ[fixture.peer](fixture.weights)
    assert same(READ[fixture.peer](WRITE[fixture.peer](ours)), ours)
    # Every parameter of ours has one name of theirs.
    assert set(peer_names(ours, framework).values()) == set(fixture.weights)


@pytest.mark.parametrize("path", FIXTURES)
def test_the_peers_weights_fit_the_detector_they_describe(path):
    fixture = parity.Fixture(path)
    framework = identify(fixture.weights)
    ours = READ[fixture.peer](fixture.weights)
    config, _ = describe(ours, framework, fixture.config)
    with torch.device("meta"):
        detector = build_detector(config)
    fitted = fit_counters(ours, detector.state_dict())
    load_strict(detector, {name: value.to("meta") for name, value in fitted.items()}, path.name)
    # From what the detector itself would save, too: counters that it lacks come back.
    assert WRITE[fixture.peer](fitted).keys() == fixture.weights.keys()


@pytest.fixture(scope="module")
def states():
    """State dicts of torchvision by backbone, on the meta device: names and shapes."""
    with torch.device("meta"):
        names = ("resnet18", "resnet50", "resnet101")
        return {
            name: MaskRCNN(resnet_fpn_backbone(backbone_name=name, weights=None), CLASSES).state_dict()
            for name in names
        }


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


def test_names_of_old_torchvision_mean_the_same(states):
    numbered = {name: torch.full((2,), float(i)) for i, name in enumerate(states["resnet50"])}
    renamed = {old_name(name): value for name, value in numbered.items()}
    assert len(renamed.keys() - numbered.keys()) == 2 * (4 + 4 + 1 + 4)
    assert {"backbone.fpn.inner_blocks.3.bias", "rpn.head.conv.weight", "roi_heads.mask_head.mask_fcn1.weight"} <= set(
        renamed
    )
    assert same(from_torchvision(numbered), from_torchvision(renamed))
    with pytest.raises(ValueError, match=r"both 'rpn\.head\.conv\.0\.0\.bias' and 'rpn\.head\.conv\.bias' stand for"):
        from_torchvision({**numbered, "rpn.head.conv.bias": torch.zeros(2)})


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
        "roi.box_head.fcs.1.weight": "roi_heads.box_head.fc7.weight",
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
    found = convert(state, Framework.TORCHVISION)
    converted = found.state
    assert converted["roi.box_head.scores.bias"].tolist() == [1, 2, 3, 4, 5, 0]
    assert converted["roi.box_head.deltas.bias"].tolist() == [c for c in range(1, 6) for _ in range(4)]
    assert converted["roi.mask_head.logits.bias"].tolist() == [1, 2, 3, 4, 5]
    for name in ("roi.box_head.scores", "roi.box_head.deltas", "roi.mask_head.logits"):
        assert converted[f"{name}.weight"][:, 0].tolist() == converted[f"{name}.bias"].tolist()
    assert sorted(found.remainder) == sorted(
        f"roi_heads.{layer}.{part}"
        for layer in ("box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        for part in ("weight", "bias")
    )
    # Without the remainder the unused rows are zeros, and nothing else differs.
    back = to_torchvision(converted)
    unused = {name: value.clone() for name, value in state.items()}
    for name in found.remainder:
        unused[name][: len(found.remainder[name])] = 0
    assert same(back, unused)


def test_detectron2_orders_the_anchors_of_a_single_map_by_size():
    state = detectron2_state()
    ours = from_detectron2(state)
    # Row size * 3 + ratio of theirs is row ratio * 5 + size of ours.
    assert ours["rpn.head.objectness.bias"].tolist() == [float(s * 3 + r) for r in range(3) for s in range(5)]
    assert ours["rpn.head.deltas.bias"].tolist() == [
        float(4 * (s * 3 + r) + c) for r in range(3) for s in range(5) for c in range(4)
    ]
    assert same(to_detectron2(ours), state)


def detectron2_state(anchors=15):
    rpn, box = "proposal_generator.rpn_head", "roi_heads.box_predictor"
    return {
        f"{rpn}.objectness_logits.bias": torch.arange(anchors).float(),
        f"{rpn}.anchor_deltas.bias": torch.arange(4 * anchors).float(),
        f"{box}.cls_score.weight": torch.zeros(CLASSES, 2),
    }


def test_buffers_of_early_detectron2_are_dropped_with_a_reason():
    old = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    old |= {f"proposal_generator.anchor_generator.cell_anchors.{i}": torch.zeros(3, 4) for i in range(5)}
    found = convert({**detectron2_state(), **old}, Framework.DETECTRON2)
    assert set(found.dropped) == set(old)
    assert not found.leftover
    assert same(found.state, from_detectron2(detectron2_state()))


def mmdetection_state(prefix="roi_head.", first=0):
    box = f"{prefix}bbox_head"
    return {
        "backbone.layer2.0.conv2.weight": torch.zeros(2, 2, 3, 3),
        f"{box}.fc_cls.bias": torch.arange(CLASSES).float(),
        f"{box}.fc_reg.bias": torch.arange(4 * first, 4 * CLASSES).float(),
        f"{prefix}mask_head.conv_logits.bias": torch.arange(first, CLASSES).float(),
    }


def test_offsets_of_old_mmdetection_mean_the_same():
    offsets = torch.ones(18)
    old = convert({**mmdetection_state(), "backbone.layer2.0.conv2_offset.bias": offsets}, Framework.MMDETECTION)
    new = from_mmdetection({**mmdetection_state(), "backbone.layer2.0.conv2.conv_offset.bias": offsets})
    assert same(old.state, new)
    assert torch.equal(new["pyramid.backbone.stages.1.0.conv2.offset.bias"], offsets)


def test_version_1_of_mmdetection_has_the_background_first():
    found = convert(mmdetection_state(prefix=""), Framework.MMDETECTION, background_first=True)
    assert found.state["roi.box_head.scores.bias"].tolist() == [1, 2, 3, 4, 5, 0]
    assert found.state["roi.box_head.deltas.bias"].tolist() == list(range(4, 4 * CLASSES))
    assert found.state["roi.mask_head.logits.bias"].tolist() == [1, 2, 3, 4, 5]
    assert not found.leftover


def test_mmdetection_gets_counters_for_every_norm():
    state = {
        "roi.box_head.scores.bias": torch.zeros(3),
        "pyramid.backbone.stem.norm.running_mean": torch.zeros(2),
    }
    back = to_mmdetection(state)
    counter = back["backbone.bn1.num_batches_tracked"]
    assert (counter.dtype, counter.shape, counter.item()) == (torch.int64, (), 0)
    assert not any("num_batches" in name for name in to_detectron2(state))


def test_group_norms_of_mmdetection_have_their_own_name():
    state = {
        "roi.box_head.scores.bias": torch.zeros(3),
        "pyramid.backbone.stem.norm.weight": torch.zeros(2),
        "pyramid.lateral.0.norm.weight": torch.zeros(2),
        "pyramid.lateral.0.norm.running_mean": torch.zeros(2),
        "roi.mask_head.convs.0.norm.weight": torch.zeros(2),
    }
    assert peer_names(state, Framework.MMDETECTION) == {
        "roi.box_head.scores.bias": "roi_head.bbox_head.fc_cls.bias",
        "pyramid.backbone.stem.norm.weight": "backbone.gn1.weight",
        "pyramid.lateral.0.norm.weight": "neck.lateral_convs.0.bn.weight",
        "pyramid.lateral.0.norm.running_mean": "neck.lateral_convs.0.bn.running_mean",
        "roi.mask_head.convs.0.norm.weight": "roi_head.mask_head.convs.0.gn.weight",
    }


def test_counters_follow_what_the_detector_has():
    state = {"a.weight": torch.ones(1), "a.num_batches_tracked": torch.tensor(7)}
    wanted = ["a.weight", "b.num_batches_tracked"]
    fitted = fit_counters(state, wanted)
    assert fitted.keys() == set(wanted)
    assert fitted["b.num_batches_tracked"].item() == 0
    assert fit_counters(state, ["a.num_batches_tracked"])["a.num_batches_tracked"].item() == 7


@pytest.mark.parametrize(
    "name",
    [
        "backbone.body.fc.weight",
        "backbone.body.layer1.0.conv1.weight.",
        "xbackbone.body.conv1.weight",
        "backbone.body.layer1.0.conv1.bias",
        "backbone.fpn.extra_blocks.p6.weight",
        "roi_heads.keypoint_head.1.weight",
        "",
    ],
)
def test_unknown_names_are_refused(states, name):
    state = {**states["resnet50"], name: torch.zeros(1)}
    with pytest.raises(
        ValueError, match=rf"the weights hold '{re.escape(name)}', which torchvision's .*\(1 such names\)"
    ):
        from_torchvision(state)
    assert convert(state, Framework.TORCHVISION).leftover == (name,)


def test_what_is_no_detector_is_refused():
    with pytest.raises(ValueError, match=r"the 1 names, such as 'a', are not those of a detector of torchvision, .*"):
        identify(["a"])
    with pytest.raises(ValueError, match=r"the 0 names, such as 'nothing'"):
        identify([])
    with pytest.raises(ValueError, match=r"no class scores: give those of a whole detector, not of a backbone"):
        from_mmdetection({"backbone.conv1.weight": torch.zeros(2, 3, 7, 7)})
    with pytest.raises(ValueError, match=r"has 4 rows of 1 an anchor, wanted a multiple of 3 anchors"):
        from_detectron2(detectron2_state(anchors=4))


def test_a_part_that_the_other_lacks_is_refused():
    scores = torch.zeros(CLASSES, 2)
    with pytest.raises(ValueError, match=r"torchvision has no parameter like roi\.semantic\.logits\.bias: "):
        to_torchvision({"roi.box_head.scores.weight": scores, "roi.semantic.logits.bias": scores})
    with pytest.raises(ValueError, match=r"detectron2 has no parameter like roi\.mask_heads\.2\.logits\.bias"):
        to_detectron2({"roi.box_heads.0.scores.weight": scores, "roi.mask_heads.2.logits.bias": scores})
    with pytest.raises(ValueError, match=r"mmdet has no parameter like roi\.keypoint_head\.deconv\.bias"):
        to_mmdetection({"roi.box_head.scores.weight": scores, "roi.keypoint_head.deconv.bias": scores})


LIVE = {
    "maskrcnn_resnet50_fpn": {"num_classes": CLASSES},
    "maskrcnn_resnet50_fpn_v2": {"num_classes": CLASSES},
    "keypointrcnn_resnet50_fpn": {"num_classes": 2},
    "fasterrcnn_resnet50_fpn": {"num_classes": CLASSES},
    "fasterrcnn_resnet50_fpn_v2": {"num_classes": CLASSES},
}


@pytest.mark.parametrize("name", LIVE)
def test_torchvision_loads_what_we_write_strictly(name):
    with torch.device("meta"):
        peer = getattr(detection, name)(weights=None, weights_backbone=None, **LIVE[name])
    generator = torch.Generator().manual_seed(1)
    # A number a tensor is enough: what matters is which goes where.
    state = {
        key: torch.rand((), generator=generator).expand(value.shape) if value.is_floating_point() else torch.tensor(3)
        for key, value in peer.state_dict().items()
    }
    found = convert(state, Framework.TORCHVISION)
    back = to_theirs(found.state, Framework.TORCHVISION, found.remainder)
    peer.load_state_dict({key: value.to("meta") for key, value in back.items()}, strict=True)
    assert same(back, state)
