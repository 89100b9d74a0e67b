"""What the names and shapes of a state dict of ours tell about the detector, each finding with how it is known.

They do not tell the place of the stride, colours, thresholds, epsilons, nor whether a single map is dilated: these are
a preset's.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from model.config import FeatureKind, Norm, RoIKind
from model.convert.conversion import COUNTER, Framework
from model.convert.names import count

_BACKBONE = "pyramid.backbone"
# Blocks a stage, and whether they are bottlenecks.
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


class Found(NamedTuple):
    """A field of the configuration that the weights tell.

    Attributes:
        path: dotted name in `DetectorConfig`.
        value: its value.
        why: the name or shape that tells it.
    """

    path: str
    value: Any
    why: str


class _Shapes:
    """Shapes by name; a name that is missing is the file's fault."""

    def __init__(self, state: Mapping[str, Tensor], framework: Framework) -> None:
        self.framework = framework
        self._shapes = {name: tuple(value.shape) for name, value in state.items()}

    def has(self, name: str) -> bool:
        return name in self._shapes

    def of(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape, of so many dimensions, none of them empty."""
        shape = self._shapes.get(name)
        if shape is None:
            raise ValueError(f"the weights have nothing for {name}: give those of a whole detector")
        if len(shape) != ndim or min(shape) < 1:
            raise ValueError(f"{name} has the shape {shape}, wanted {ndim} dimensions, none empty: the file is damaged")
        return shape

    def count(self, pattern: str) -> int:
        return count(self._shapes, pattern)

    def norm(self, prefix: str) -> Norm:
        """Kind of normalisation: NONE, GROUP, FROZEN, or BATCH for all that have statistics and may be trained."""
        if not self.has(f"{prefix}.weight"):
            return Norm.NONE
        if not self.has(f"{prefix}.running_mean"):
            return Norm.GROUP
        # MMDetection counts batches even where all is frozen, so that its counters say nothing.
        counts = self.framework is Framework.MMDETECTION or self.has(f"{prefix}.{COUNTER}")
        return Norm.BATCH if counts else Norm.FROZEN


def observe(state: Mapping[str, Tensor], framework: Framework) -> tuple[Found, ...]:
    """Every field that the names and shapes of our state dict tell.

    Args:
        state: weights under our names.
        framework: whose they were; it decides what a norm's counter says.

    Raises:
        ValueError: a detector that maskray does not have, or a part that is missing.
    """
    shapes = _Shapes(state, framework)
    return (*_backbone(shapes), *_neck(shapes), *_boxes(shapes), *_masks(shapes), *_other_heads(shapes))


def _norm(path: str, shapes: _Shapes, prefix: str) -> list[Found]:
    kind = shapes.norm(prefix)
    why = {
        Norm.NONE: f"no {prefix}",
        Norm.GROUP: f"{prefix} has no running_mean",
        Norm.FROZEN: f"{prefix} counts no batches",
        Norm.BATCH: f"{prefix} has statistics",
    }
    return [Found(path, kind, why[kind])]


def _backbone(shapes: _Shapes) -> list[Found]:
    blocks = [f"{_BACKBONE}.stages.{s}" for s in range(4)]
    if shapes.has("roi.res5.0.conv1.weight"):
        blocks[3] = "roi.res5"
    counts = tuple(shapes.count(rf"{stage}\.(\d+)\.conv1\.weight") for stage in blocks)
    bottleneck = shapes.has(f"{blocks[0]}.0.conv3.weight")
    if (counts, bottleneck) not in _DEPTHS:
        raise ValueError(
            f"the backbone has {', '.join(map(str, counts))} blocks in its stages, wanted those of a ResNet or ResNeXt "
            "of 18, 34, 50, 101 or 152 layers: other backbones cannot be read"
        )
    stem = f"{_BACKBONE}.stem.conv.weight"
    width = shapes.of(stem, 4)[0]
    found = [
        Found("backbone.depth", _DEPTHS[counts, bottleneck], f"{'+'.join(map(str, counts))} blocks"
              f"{' of three convolutions' if bottleneck else ' of two convolutions'}"),
        Found("backbone.stem_channels", width, stem),
        *_norm("backbone.norm", shapes, f"{_BACKBONE}.stem.norm"),
        Found("backbone.non_local", shapes.count(r".*\.(non_local)\..*") > 0, "non_local"),
    ]  # fmt: skip
    if bottleneck:
        found += _bottleneck(shapes, f"{blocks[0]}.0.conv2.weight", width)
    return found + _deformable(shapes, blocks)


def _bottleneck(shapes: _Shapes, name: str, stem: int) -> list[Found]:
    outputs, inputs = shapes.of(name, 4)[:2]
    groups, rest = divmod(outputs, inputs)
    if rest or groups < 1:
        raise ValueError(f"{name} has {outputs} outputs and {inputs} inputs a group, wanted a multiple: it is damaged")
    group_width = 0 if (groups, outputs) == (1, stem) else inputs
    why = f"{name} is {outputs} x {inputs}"
    return [Found("backbone.groups", groups, why), Found("backbone.group_width", group_width, why)]


def _deformable(shapes: _Shapes, blocks: list[str]) -> list[Found]:
    stages = tuple(s + 2 for s, stage in enumerate(blocks) if shapes.has(f"{stage}.0.conv2.offset.weight"))
    if not stages:
        return [Found("backbone.deformable_stages", (), "no conv2.offset")]
    name = f"{blocks[stages[0] - 2]}.0.conv2.offset.weight"
    channels, inputs = shapes.of(name, 4)[:2]
    # 18 a group (two offsets for each of nine taps), 27 with weights; where both divide, groups must divide the inputs.
    for taps in (27, 18):
        if channels % taps == 0 and inputs % (channels // taps) == 0:
            groups, why = channels // taps, f"{name} has {channels} outputs"
            return [
                Found("backbone.deformable_stages", stages, "stages with conv2.offset"),
                Found("backbone.modulated", taps == 27, why),
                Found("backbone.deformable_groups", groups, why),
            ]
    raise ValueError(
        f"{name} has {channels} outputs, wanted 18 or 27 for each group of its {inputs} inputs: "
        "other deformable convolutions cannot be read"
    )


def _neck(shapes: _Shapes) -> list[Found]:
    found = [Found("rpn.num_convs", shapes.count(r"rpn\.head\.convs\.(\d+)\.weight"), "rpn.head.convs")]
    lateral = "pyramid.lateral.0"
    if shapes.has(f"{lateral}.weight"):
        return [
            *found,
            Found("features", FeatureKind.FPN, lateral),
            Found("fpn_channels", shapes.of(f"{lateral}.weight", 4)[0], f"{lateral}.weight"),
            *_norm("fpn_norm", shapes, f"{lateral}.norm"),
        ]
    if shapes.has("roi.res5.0.conv1.weight"):
        return [*found, Found("features", FeatureKind.C4, "roi.res5: the fifth stage is in the heads")]
    return found


def _boxes(shapes: _Shapes) -> list[Found]:
    stages = shapes.count(r"roi\.box_heads\.(\d)\.scores\.weight")
    if stages not in (0, 3):
        raise ValueError(f"the weights have {stages} box heads in a row, wanted 1, or 3 of a cascade")
    head = "roi.box_heads.0" if stages else "roi.box_head"
    has_flow = shapes.has("roi.mask_heads.1.flow.weight")
    kind = RoIKind.HTC if has_flow else RoIKind.CASCADE if stages else RoIKind.STANDARD
    why = {RoIKind.HTC: "mask_heads.1.flow", RoIKind.CASCADE: "three box heads", RoIKind.STANDARD: "one box head"}
    classes = shapes.of(f"{head}.scores.weight", 2)[0] - 1
    deltas = shapes.of(f"{head}.deltas.weight", 2)[0]
    if classes < 1 or deltas not in (4, 4 * classes):
        raise ValueError(
            f"{head} has {deltas} rows of deltas and {classes + 1} of scores (with the background), wanted 4, or 4 for "
            "each class without the background: the file is damaged or of another kind of head"
        )
    return [
        Found("roi", kind, why[kind]),
        Found("num_classes", classes, f"{head}.scores has {classes + 1} rows, one is the background"),
        Found("box.class_agnostic", deltas == 4 and (classes > 1 or stages > 0), f"{head}.deltas has {deltas} rows"),
        *_box_layers(shapes, head),
    ]


def _box_layers(shapes: _Shapes, head: str) -> list[Found]:
    convs, fcs = (shapes.count(rf"{head}\.{kind}\.(\d+)\.weight") for kind in ("convs", "fcs"))
    found = [Found("box.num_convs", convs, f"{head}.convs"), Found("box.num_fcs", fcs, f"{head}.fcs")]
    channels = 0
    if convs:
        name = f"{head}.convs.0.weight"
        channels = shapes.of(name, 4)[0]
        found += [Found("box.conv_channels", channels, name), *_norm("box.norm", shapes, f"{head}.convs.0.norm")]
    if fcs:
        name = f"{head}.fcs.0.weight"
        outputs, inputs = shapes.of(name, 2)
        channels = channels or shapes.of("rpn.head.convs.0.weight", 4)[1]
        side = math.isqrt(inputs // channels)
        if side * side * channels != inputs:
            raise ValueError(f"{name} has {inputs} inputs, wanted {channels} channels of a square crop: it is damaged")
        found += [
            Found("box.channels", outputs, name),
            Found("pooler.box_size", side, f"{name} has {inputs} inputs, {channels} channels"),
        ]
    return found


def _masks(shapes: _Shapes) -> list[Found]:
    heads = shapes.count(r"roi\.mask_heads\.(\d)\.logits\.weight")
    head = "roi.mask_heads.0" if heads else "roi.mask_head"
    if not shapes.has(f"{head}.logits.weight"):
        return [Found("mask.enabled", False, "no mask head")]
    if heads not in (0, 1, 3):
        raise ValueError(f"the weights have {heads} mask heads, wanted 1 or 3")
    rows = shapes.of(f"{head}.logits.weight", 4)[0]
    scores = next(name for name in ("roi.box_heads.0.scores.weight", "roi.box_head.scores.weight") if shapes.has(name))
    classes = shapes.of(scores, 2)[0] - 1
    if rows not in (1, classes):
        raise ValueError(f"{head}.logits has {rows} rows, wanted 1 or {classes}, the classes without the background")
    found = [
        Found("mask.enabled", True, head),
        Found("mask.channels", shapes.of(f"{head}.deconv.weight", 4)[1], f"{head}.deconv.weight"),
        Found("mask.num_convs", shapes.count(rf"{head}\.convs\.(\d+)\.weight"), f"{head}.convs"),
        Found("mask.class_agnostic", rows == 1 and classes > 1, f"{head}.logits has {rows} rows"),
        *_norm("mask.norm", shapes, f"{head}.convs.0.norm"),
    ]
    return [*found, Found("cascade.mask_each_stage", heads == 3, f"{heads} mask heads")] if heads else found


def _other_heads(shapes: _Shapes) -> list[Found]:
    keypoint, semantic = "roi.keypoint_head", "roi.semantic"
    found = []
    if shapes.has(f"{keypoint}.deconv.weight"):
        inputs, points = shapes.of(f"{keypoint}.deconv.weight", 4)[:2]
        found += [
            Found("keypoint.enabled", True, keypoint),
            Found("keypoint.num_keypoints", points, f"{keypoint}.deconv.weight"),
            Found("keypoint.channels", inputs, f"{keypoint}.deconv.weight"),
            Found("keypoint.num_convs", shapes.count(rf"{keypoint}\.convs\.(\d+)\.weight"), f"{keypoint}.convs"),
        ]
    else:
        found.append(Found("keypoint.enabled", False, "no keypoint head"))
    if shapes.has(f"{semantic}.logits.weight"):
        classes, channels = shapes.of(f"{semantic}.logits.weight", 4)[:2]
        return [
            *found,
            Found("semantic.enabled", True, semantic),
            Found("semantic.num_classes", classes, f"{semantic}.logits has {classes} rows"),
            Found("semantic.channels", channels, f"{semantic}.logits.weight"),
            Found("semantic.num_convs", shapes.count(rf"{semantic}\.convs\.(\d+)\.weight"), f"{semantic}.convs"),
        ]
    return [*found, Found("semantic.enabled", False, "no semantic branch")]
