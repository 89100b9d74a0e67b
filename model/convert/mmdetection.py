"""MMDetection's parameter names (2.x and 3.x): Mask, Faster and Cascade R-CNN, HTC, on FPN, C4 and single maps.

The order of classes and anchors is ours. Files of version 1.x put the background first, as torchvision does, and name
the heads without `roi_head`; the anchors and box coder of that version (widths "+1") are not reproduced.
"""

import dataclasses
import re
from collections.abc import Collection

from model.convert.blocks import RES5, STAGE, BlockNames, block_rules
from model.convert.names import Rule, Table, count, parts
from model.convert.steps import BACKGROUND_LAST, Layer, Step, WithoutBackground


def _norms(theirs: str, ours: str, group: bool) -> tuple[Rule, ...]:
    """MMDetection names a normalisation by its kind; `theirs` has a place for it."""
    return (
        Rule(theirs.format(kind="bn") + ".{norm}", f"{ours}.{{norm}}", writes=not group),
        Rule(theirs.format(kind="gn") + ".{norm}", f"{ours}.{{norm}}", writes=group),
    )


def _conv(theirs: str, ours: str, group: bool) -> tuple[Rule, ...]:
    norm = theirs.replace("{", "{{").replace("}", "}}") + ".{kind}"
    return (Rule(f"{theirs}.conv.{{wb}}", f"{ours}.{{wb}}"), *_norms(norm, f"{ours}.norm", group))


def _blocks(theirs: str, ours: str, group: bool, *, writes: bool = True) -> tuple[Rule, ...]:
    kinds = [BlockNames(kind + "{n}", "downsample.0", "downsample.1", "conv2.conv_offset") for kind in ("bn", "gn")]
    return (
        *block_rules(theirs, kinds[group], ours, writes=writes),
        *block_rules(theirs, kinds[not group], ours, writes=False),
        Rule(f"{theirs}.conv2_offset.{{wb}}", f"{ours}.conv2.offset.{{wb}}", writes=False),
    )


def _box(theirs: str, ours: str, group: bool) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.shared_fcs.{{n}}.{{wb}}", f"{ours}.fcs.{{n}}.{{wb}}"),
        *_conv(f"{theirs}.shared_convs.{{n}}", f"{ours}.convs.{{n}}", group),
        *parts(theirs, ours, (("fc_cls", "scores"), ("fc_reg", "deltas"))),
    )


def _mask(theirs: str, ours: str, group: bool) -> tuple[Rule, ...]:
    return (
        *_conv(f"{theirs}.convs.{{n}}", f"{ours}.convs.{{n}}", group),
        *parts(theirs, ours, (("upsample", "deconv"), ("conv_logits", "logits"), ("conv_res.conv", "flow"))),
    )


def _second_stage(prefix: str, group: Collection[str]) -> tuple[Rule, ...]:
    box, mask = f"{prefix}bbox_head", f"{prefix}mask_head"
    semantic, ours = f"{prefix}semantic_head", "roi.semantic"
    return (
        *_blocks(f"{prefix}shared_head.layer4.{{b}}", RES5, "backbone" in group),
        *_box(box, "roi.box_head", "box" in group),
        *_box(f"{box}.{{k}}", "roi.box_heads.{k}", "box" in group),
        *_mask(mask, "roi.mask_head", "mask" in group),
        *_mask(f"{mask}.{{k}}", "roi.mask_heads.{k}", "mask" in group),
        *_conv(f"{semantic}.lateral_convs.{{n}}", f"{ours}.lateral.{{n}}", False),
        *_conv(f"{semantic}.convs.{{n}}", f"{ours}.convs.{{n}}", False),
        *parts(semantic, ours, (("conv_embedding.conv", "embedding"), ("conv_logits", "logits"))),
    )


def rules(*, rpn_convs: int, group: Collection[str]) -> tuple[Rule, ...]:
    """The table of a detector with so many RPN convolutions, and group norm in the parts named by `group`."""
    return (
        Rule("backbone.conv1.weight", "pyramid.backbone.stem.conv.weight"),
        *_norms("backbone.{kind}1", "pyramid.backbone.stem.norm", "backbone" in group),
        *_blocks("backbone.layer{s+1}.{b}", STAGE, "backbone" in group),
        *_conv("neck.lateral_convs.{i}", "pyramid.lateral.{i}", "neck" in group),
        *_conv("neck.fpn_convs.{i}", "pyramid.output.{i}", "neck" in group),
        Rule("rpn_head.rpn_conv.{wb}", "rpn.head.convs.0.{wb}", writes=rpn_convs == 1),
        Rule("rpn_head.rpn_conv.{n}.conv.{wb}", "rpn.head.convs.{n}.{wb}"),
        *parts("rpn_head", "rpn.head", (("rpn_cls", "objectness"), ("rpn_reg", "deltas"))),
        *_second_stage("roi_head.", group),
        *(dataclasses.replace(rule, writes=False) for rule in _second_stage("", group)),  # version 1.x
    )


# A part of ours, and a normalisation of it.
_PARTS = {
    "backbone": "pyramid.backbone.stem.norm",
    "neck": "pyramid.lateral.0.norm",
    "box": "roi.box_head.convs.0.norm",
    "mask": "roi.mask_head.convs.0.norm",
}


def table_to_read(names: Collection[str]) -> Table:
    """The table for a state dict of theirs with these names."""
    return Table(rules(rpn_convs=1, group=()))


def table_to_write(names: Collection[str]) -> Table:
    """The table for a state dict of ours with these names."""
    flat = {re.sub(r"(box|mask)_heads\.\d", r"\1_head", name) for name in names}
    group = [part for part, norm in _PARTS.items() if f"{norm}.weight" in flat and f"{norm}.running_mean" not in flat]
    return Table(rules(rpn_convs=count(names, r"rpn\.head\.convs\.(\d+)\.weight"), group=group))


VERSION_1_STEPS: dict[Layer, Step] = {
    Layer.SCORES: BACKGROUND_LAST,
    Layer.DELTAS: WithoutBackground(rows=4),
    Layer.MASK_LOGITS: WithoutBackground(rows=1),
}
