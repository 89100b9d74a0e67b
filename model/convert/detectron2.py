"""Detectron2's parameter names: Mask, Keypoint and Faster R-CNN on FPN, C4 and DC5, and Cascade R-CNN.

On a single map Detectron2 orders the anchors of a cell by size, then by ratio; maskray, as MMDetection, by ratio first.
"""

from collections.abc import Collection

from model.convert.blocks import RES5, BlockNames, block_rules
from model.convert.names import Rule, Table, count, layers, parts
from model.convert.steps import AnchorsByRatio, Layer, Step

_BLOCK = BlockNames("conv{n}.norm", "shortcut", "shortcut.norm", "conv2_offset")
_RPN = "proposal_generator.rpn_head"
_BUFFERS = ("pixel_mean", "pixel_std", *(f"proposal_generator.anchor_generator.cell_anchors.{i}" for i in range(5)))


def _backbone(prefix: str, *, writes: bool) -> tuple[Rule, ...]:
    return (
        Rule(f"{prefix}.stem.conv1.weight", "pyramid.backbone.stem.conv.weight", writes),
        Rule(f"{prefix}.stem.conv1.norm.{{norm}}", "pyramid.backbone.stem.norm.{norm}", writes),
        *block_rules(f"{prefix}.res{{s+2}}.{{b}}", _BLOCK, writes=writes),
    )


def _box(theirs: str, predictor: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.fc{{n+1}}.{{wb}}", f"{ours}.fcs.{{n}}.{{wb}}"),
        *layers(f"{theirs}.conv{{n+1}}", f"{ours}.convs.{{n}}", f"{theirs}.conv{{n+1}}.norm.{{norm}}"),
        *parts(predictor, ours, (("cls_score", "scores"), ("bbox_pred", "deltas"))),
    )


def rules(*, pyramid: bool, cascade: bool, rpn_convs: int) -> tuple[Rule, ...]:
    """The table of a detector with a pyramid or without, with one box head or three, and so many RPN convolutions."""
    mask, our_mask = "roi_heads.mask_head", "roi.mask_heads.0" if cascade else "roi.mask_head"
    return (
        *_backbone("backbone.bottom_up", writes=pyramid),
        *_backbone("backbone", writes=not pyramid),
        *layers("backbone.fpn_lateral{i+2}", "pyramid.lateral.{i}", "backbone.fpn_lateral{i+2}.norm.{norm}"),
        *layers("backbone.fpn_output{i+2}", "pyramid.output.{i}", "backbone.fpn_output{i+2}.norm.{norm}"),
        Rule(f"{_RPN}.conv.{{wb}}", "rpn.head.convs.0.{wb}", writes=rpn_convs == 1),
        Rule(f"{_RPN}.conv.conv{{n}}.{{wb}}", "rpn.head.convs.{n}.{wb}"),
        *parts(_RPN, "rpn.head", (("objectness_logits", "objectness"), ("anchor_deltas", "deltas"))),
        *block_rules("roi_heads.res5.{b}", _BLOCK, RES5),
        *_box("roi_heads.box_head", "roi_heads.box_predictor", "roi.box_head"),
        *_box("roi_heads.box_head.{k}", "roi_heads.box_predictor.{k}", "roi.box_heads.{k}"),
        *layers(f"{mask}.mask_fcn{{n+1}}", f"{our_mask}.convs.{{n}}", f"{mask}.mask_fcn{{n+1}}.norm.{{norm}}"),
        *parts(mask, our_mask, (("deconv", "deconv"), ("predictor", "logits"))),
        Rule("roi_heads.keypoint_head.conv_fcn{n+1}.{wb}", "roi.keypoint_head.convs.{n}.{wb}"),
        Rule("roi_heads.keypoint_head.score_lowres.{wb}", "roi.keypoint_head.deconv.{wb}"),
    )


def table_to_read(names: Collection[str]) -> Table:
    """The table for a state dict of theirs with these names."""
    cascade = count(names, r"roi_heads\.box_predictor\.(\d)\.cls_score\.weight") > 0
    return Table(rules(pyramid=True, cascade=cascade, rpn_convs=1))


def table_to_write(names: Collection[str]) -> Table:
    """The table for a state dict of ours with these names."""
    pyramid = "pyramid.lateral.0.weight" in names
    cascade = count(names, r"roi\.box_heads\.(\d)\.scores\.weight") > 0
    return Table(rules(pyramid=pyramid, cascade=cascade, rpn_convs=count(names, r"rpn\.head\.convs\.(\d+)\.weight")))


# What files of early versions hold besides parameters; maskray's config says the same.
DROPPED = dict.fromkeys(_BUFFERS, "a constant that maskray keeps in its config")

STEPS: dict[Layer, Step] = {Layer.OBJECTNESS: AnchorsByRatio(rows=1), Layer.RPN_DELTAS: AnchorsByRatio(rows=4)}
