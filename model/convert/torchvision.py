"""torchvision's parameter names: Mask, Keypoint and Faster R-CNN with a ResNet pyramid, v1 and v2.

Its class 0 is background: it moves to the end of the scores, and its slots in the deltas and masks, which torchvision
never uses, leave the weights. Class c of torchvision becomes label c - 1.
"""

from collections.abc import Collection

from model.convert.blocks import BlockNames, block_rules
from model.convert.names import Rule, Table, count, layers, parts
from model.convert.steps import BACKGROUND_LAST, Layer, Step, WithoutBackground

_BODY = "backbone.body"
_BLOCK = BlockNames("bn{n}", "downsample.0", "downsample.1", "")


def rules(num_box_convs: int) -> tuple[Rule, ...]:
    """The table of a detector whose box head begins with so many convolutions (v1: none; v2: four)."""
    # The convolutional box head is one sequence: convolutions, flatten, then linear layers and ReLUs by turns.
    first = num_box_convs + 1
    linear = (
        tuple(Rule(f"roi_heads.box_head.{first + 2 * n}.{{wb}}", f"roi.box_head.fcs.{n}.{{wb}}") for n in range(3))
        if num_box_convs
        else parts("roi_heads.box_head", "roi.box_head", (("fc6", "fcs.0"), ("fc7", "fcs.1")))
    )
    fpn, mask = "backbone.fpn", "roi_heads.mask_head"
    return (
        Rule(f"{_BODY}.conv1.weight", "pyramid.backbone.stem.conv.weight"),
        Rule(f"{_BODY}.bn1.{{norm}}", "pyramid.backbone.stem.norm.{norm}"),
        *block_rules(f"{_BODY}.layer{{s+1}}.{{b}}", _BLOCK),
        *layers(f"{fpn}.inner_blocks.{{i}}.0", "pyramid.lateral.{i}", f"{fpn}.inner_blocks.{{i}}.1.{{norm}}"),
        *layers(f"{fpn}.layer_blocks.{{i}}.0", "pyramid.output.{i}", f"{fpn}.layer_blocks.{{i}}.1.{{norm}}"),
        Rule("rpn.head.conv.{n}.0.{wb}", "rpn.head.convs.{n}.{wb}"),
        *parts("rpn.head", "rpn.head", (("cls_logits", "objectness"), ("bbox_pred", "deltas"))),
        *linear,
        *layers("roi_heads.box_head.{n}.0", "roi.box_head.convs.{n}", "roi_heads.box_head.{n}.1.{norm}"),
        *parts("roi_heads.box_predictor", "roi.box_head", (("cls_score", "scores"), ("bbox_pred", "deltas"))),
        *layers(f"{mask}.{{n}}.0", "roi.mask_head.convs.{n}", f"{mask}.{{n}}.1.{{norm}}"),
        *parts("roi_heads.mask_predictor", "roi.mask_head", (("conv5_mask", "deconv"), ("mask_fcn_logits", "logits"))),
        Rule("roi_heads.keypoint_head.{n*2}.{wb}", "roi.keypoint_head.convs.{n}.{wb}"),
        Rule("roi_heads.keypoint_predictor.kps_score_lowres.{wb}", "roi.keypoint_head.deconv.{wb}"),
        # Up to torchvision 0.12; the published v1 files have these.
        Rule(f"{fpn}.inner_blocks.{{i}}.{{wb}}", "pyramid.lateral.{i}.{wb}", writes=False),
        Rule(f"{fpn}.layer_blocks.{{i}}.{{wb}}", "pyramid.output.{i}.{wb}", writes=False),
        Rule("rpn.head.conv.{wb}", "rpn.head.convs.0.{wb}", writes=False),
        Rule(f"{mask}.mask_fcn{{n+1}}.{{wb}}", "roi.mask_head.convs.{n}.{wb}", writes=False),
    )  # fmt: skip


def table_to_read(names: Collection[str]) -> Table:
    """The table for a state dict of theirs with these names."""
    return Table(rules(count(names, r"roi_heads\.box_head\.(\d+)\.0\.weight")))


def table_to_write(names: Collection[str]) -> Table:
    """The table for a state dict of ours with these names."""
    return Table(rules(count(names, r"roi\.box_head\.convs\.(\d+)\.weight")))


STEPS: dict[Layer, Step] = {
    Layer.SCORES: BACKGROUND_LAST,
    Layer.DELTAS: WithoutBackground(rows=4),
    Layer.MASK_LOGITS: WithoutBackground(rows=1),
}
