"""Weights of other frameworks, by explicit tables of names; nothing is guessed.

A table maps the other framework's parameter names to ours with one regular expression a rule. What the tables do
not cover is reported, and a detector with a missing weight is refused.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_NORM = "weight|bias|running_mean|running_var"
_STAGE = r"pyramid.backbone.stages.<\1>."

# (torchvision's name, ours); torchvision before 0.13 wrote the FPN, RPN and mask names without the inner ".0".
_TORCHVISION_RULES = (
    (r"backbone\.body\.conv1\.weight", r"pyramid.backbone.stem.conv.weight"),
    (rf"backbone\.body\.bn1\.({_NORM})", r"pyramid.backbone.stem.norm.\1"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.conv(\d)\.weight", rf"{_STAGE}\2.conv\3.weight"),
    (rf"backbone\.body\.layer(\d)\.(\d+)\.bn(\d)\.({_NORM})", rf"{_STAGE}\2.norm\3.\4"),
    (r"backbone\.body\.layer(\d)\.(\d+)\.downsample\.0\.weight", rf"{_STAGE}\2.shortcut.conv.weight"),
    (rf"backbone\.body\.layer(\d)\.(\d+)\.downsample\.1\.({_NORM})", rf"{_STAGE}\2.shortcut.norm.\3"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"pyramid.output.\1.\2"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn.head.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"rpn.head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(weight|bias)", r"roi.box_head.fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(weight|bias)", r"roi.box_head.fcs.1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(weight|bias)", r"roi.box_head.scores.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)", r"roi.box_head.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)(?:\.0)?\.(weight|bias)", r"roi.mask_head.convs.\1.\2"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", r"roi.mask_head.convs.<\1>.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(weight|bias)", r"roi.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)", r"roi.mask_head.logits.\1"),
)  # fmt: skip


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in rules:
        if found := re.fullmatch(pattern, name):
            # <n> marks a number that is counted from one on the other side.
            return re.sub(r"<(\d+)>", lambda number: str(int(number[1]) - 1), found.expand(replacement))
    return None


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights from the state dict of torchvision's ``maskrcnn_resnet*_fpn``.

    torchvision's class 0 is background: it moves to the end of the scores, and its unused slots in the deltas and
    masks are dropped. Class c of torchvision becomes label c - 1.

    Raises:
        ValueError: a name no rule covers, or a head that is missing.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        ours = _renamed(name, _TORCHVISION_RULES)
        if ours is None:
            raise ValueError(
                f"the weights hold {name!r}, which torchvision's maskrcnn_resnet_fpn does not have: "
                "only Mask R-CNN with a ResNet pyramid (v1) can be read so far"
            )
        renamed[ours] = value
    for head in ("roi.box_head.scores", "roi.box_head.deltas", "roi.mask_head.logits"):
        for part in ("weight", "bias"):
            if f"{head}.{part}" not in renamed:
                raise ValueError(
                    f"the weights have nothing for {head}.{part}: give those of a whole Mask R-CNN, not of a part of it"
                )
    for part in ("weight", "bias"):
        scores = renamed[f"roi.box_head.scores.{part}"]
        renamed[f"roi.box_head.scores.{part}"] = torch.cat([scores[1:], scores[:1]])
        renamed[f"roi.box_head.deltas.{part}"] = renamed[f"roi.box_head.deltas.{part}"][4:]
        renamed[f"roi.mask_head.logits.{part}"] = renamed[f"roi.mask_head.logits.{part}"][1:]
    return renamed
