"""What the config text inside an MMDetection file says of the rules that its weights do not tell.

The text is Python. It is parsed, never run: only literals and calls of `dict` are understood, all else is unknown.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from model.config import ChannelOrder, DetectorConfig, FeatureKind, Norm, RoIKind, StrideIn
from model.convert.architecture import Found
from model.settings import override

_MAX_CHARACTERS = 1_000_000


def parse(text: str) -> dict[str, Any]:
    """The assignments of an MMDetection config; what is neither literal nor `dict(...)` becomes None.

    Raises:
        ValueError: the text is not a config.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(
            f"the file's config has {len(text)} characters, wanted at most {_MAX_CHARACTERS}: give --preset"
        )
    try:
        body = ast.parse(text).body
        return {
            target.id: _value(node.value)
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the file's config is not an MMDetection config ({error}): give --preset") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        is_dict = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return {word.arg: _value(word.value) for word in node.keywords if word.arg} if is_dict else None
    if isinstance(node, ast.Dict):
        keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
        return {key: _value(value) for key, value in zip(keys, node.values, strict=True) if isinstance(key, str)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand)
        return -number if isinstance(number, int | float) else None
    return node.value if isinstance(node, ast.Constant) else None


class _Said(NamedTuple):
    """A place in their config, the field of ours, and what the value means there (None: nothing)."""

    place: str
    path: str
    meaning: Callable[[Any], Any]


def _number(kind: type) -> Callable[[Any], Any]:
    accepted = (int, float) if kind is float else (int,)
    return lambda value: kind(value) if isinstance(value, accepted) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _numbers(count: int) -> Callable[[Any], Any]:
    def meaning(value: Any) -> tuple[float, ...] | None:
        is_sound = isinstance(value, list) and len(value) == count and all(isinstance(x, int | float) for x in value)
        return tuple(float(x) for x in value) if is_sound else None

    return meaning


def _beta(loss: Any) -> float | None:
    """Beta of a box loss; plain L1 is 0."""
    kind = loss.get("type") if isinstance(loss, dict) else None
    if kind == "L1Loss":
        return 0.0
    beta: float | None = _number(float)(loss.get("beta", 1.0)) if kind == "SmoothL1Loss" else None
    return beta


def _order(to_rgb: Any) -> ChannelOrder | None:
    return (ChannelOrder.RGB if to_rgb else ChannelOrder.BGR) if isinstance(to_rgb, bool) else None


def _weights(stds: Any) -> tuple[float, ...] | None:
    values = _numbers(4)(stds)
    return tuple(1 / value for value in values) if values and min(values) > 0 else None


def _stride(style: Any) -> StrideIn | None:
    return _STYLES.get(style) if isinstance(style, str) else None


_STYLES = {"pytorch": StrideIn.CONV_3X3, "caffe": StrideIn.FIRST_1X1}
_RPN, _RCNN = "model.train_cfg.rpn", "model.train_cfg.rcnn"
_BOX = "model.roi_head.bbox_head"
_ALIGN = "model.roi_head.bbox_roi_extractor.roi_layer"

# A list stands for its first item where a single value is wanted (cascades: the stages agree).
_TABLE = (
    _Said("model.backbone.style", "backbone.stride_in", _stride),
    _Said("model.backbone.frozen_stages", "backbone.frozen_stages",
          lambda value: value + 1 if isinstance(value, int) and -1 <= value <= 4 else None),
    _Said("img_norm_cfg.mean", "picture.mean", _numbers(3)),
    _Said("img_norm_cfg.std", "picture.std", _numbers(3)),
    _Said("img_norm_cfg.to_rgb", "picture.channel_order", _order),
    _Said("model.data_preprocessor.mean", "picture.mean", _numbers(3)),
    _Said("model.data_preprocessor.std", "picture.std", _numbers(3)),
    _Said("model.data_preprocessor.bgr_to_rgb", "picture.channel_order", _order),
    _Said("model.data_preprocessor.pad_size_divisor", "picture.size_divisor", _number(int)),
    _Said("model.rpn_head.loss_bbox", "rpn.smooth_l1_beta", _beta),
    _Said(f"{_RPN}.assigner.pos_iou_thr", "rpn.positive_iou", _number(float)),
    _Said(f"{_RPN}.assigner.neg_iou_thr", "rpn.negative_iou", _number(float)),
    _Said(f"{_RPN}.assigner.min_pos_iou", "rpn.min_best_iou", _number(float)),
    _Said(f"{_RPN}.allowed_border", "rpn.border_px", _number(int)),
    _Said("model.train_cfg.rpn_proposal.nms_pre", "rpn.pre_nms_train", _number(int)),
    _Said("model.train_cfg.rpn_proposal.max_per_img", "rpn.post_nms_train", _number(int)),
    _Said("model.test_cfg.rpn.nms_pre", "rpn.pre_nms_test", _number(int)),
    _Said("model.test_cfg.rpn.max_per_img", "rpn.post_nms_test", _number(int)),
    _Said("model.test_cfg.rpn.nms.iou_threshold", "rpn.nms_iou", _number(float)),
    _Said(f"{_ALIGN}.sampling_ratio", "pooler.sampling_ratio", _number(int)),
    _Said(f"{_ALIGN}.aligned", "pooler.aligned", _flag),
    _Said(f"{_BOX}.loss_bbox", "box.smooth_l1_beta", _beta),
    _Said(f"{_BOX}.bbox_coder.target_stds", "box.delta_weights", _weights),
    _Said(f"{_RCNN}.assigner.pos_iou_thr", "box.positive_iou", _number(float)),
    _Said(f"{_RCNN}.assigner.match_low_quality", "box.reassign_best", _flag),
    _Said(f"{_RCNN}.sampler.num", "box.samples", _number(int)),
    _Said(f"{_RCNN}.sampler.pos_fraction", "box.positive_share", _number(float)),
    _Said("model.test_cfg.rcnn.score_thr", "box.score_threshold", _number(float)),
    _Said("model.test_cfg.rcnn.nms.iou_threshold", "box.nms_iou", _number(float)),
    _Said("model.test_cfg.rcnn.max_per_img", "box.max_detections", _number(int)),
    _Said("model.roi_head.semantic_head.ignore_label", "semantic.ignore_label", _number(int)),
    _Said("model.roi_head.semantic_head.loss_seg.ignore_index", "semantic.ignore_label", _number(int)),
    _Said("model.roi_head.semantic_head.loss_seg.loss_weight", "semantic.loss_weight", _number(float)),
    _Said("model.roi_head.stage_loss_weights", "cascade.loss_weights", _numbers(3)),
)  # fmt: skip
# Fields that a standard head has alone, or a cascade for each stage.
_STANDARD_ONLY = ("box.delta_weights", "box.positive_iou")


def _at(config: Mapping[str, Any], place: str) -> Any:
    """The value at a dotted place; up to 2.7 the training and test settings stood outside the model."""
    starts = [place.removeprefix("model.")] if place.startswith(("model.train_cfg", "model.test_cfg")) else []
    for start in (place, *starts):
        value: Any = config
        for name in start.split("."):
            value = value[0] if isinstance(value, list) and value else value
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def style(config: Mapping[str, Any]) -> str | None:
    """`pytorch` or `caffe`, where the config says so."""
    found = _at(config, "model.backbone.style")
    return found if found in _STYLES else None


def lay_over(base: DetectorConfig, config: Mapping[str, Any]) -> tuple[DetectorConfig, tuple[Found, ...]]:
    """The preset with every rule that the config states, and which those are.

    Raises:
        ValueError: a value out of range.
    """
    found = [
        Found(said.path, value, f"config in the file: {said.place}")
        for said in _TABLE
        if not (base.roi is not RoIKind.STANDARD and said.path in _STANDARD_ONLY)
        and (value := said.meaning(_at(config, said.place))) is not None
    ]
    found += [*_norm(config), *_scale(config, base.picture.short_edge_px)]
    if base.features in (FeatureKind.C5, FeatureKind.DC5):
        found.append(_dilation(config))
    for item in found:
        base = override(base, item.path, item.value)
    return base, tuple(found)


def _norm(config: Mapping[str, Any]) -> list[Found]:
    kind, trained, fixed = (
        _at(config, f"model.backbone.{name}") for name in ("norm_cfg.type", "norm_cfg.requires_grad", "norm_eval")
    )
    if trained is False:
        return [Found("backbone.norm", Norm.FROZEN, "config in the file: norm_cfg.requires_grad is False")]
    if not isinstance(fixed, bool) or kind not in ("BN", "SyncBN"):
        return []
    learning = Norm.SYNC if kind == "SyncBN" else Norm.BATCH
    return [Found("backbone.norm", Norm.FIXED if fixed else learning, "config in the file: norm_eval")]


def _scale(config: Mapping[str, Any], short_edge_px: int) -> list[Found]:
    """The edges of the test pictures, in the order that keeps the longer above the shorter on the way."""
    edges = _search(config.get("test_pipeline"), ("img_scale", "scale"))
    if edges is None:
        return []
    why = "config in the file: test_pipeline"
    found = [Found("picture.long_edge_px", max(edges), why), Found("picture.short_edge_px", min(edges), why)]
    return found if max(edges) >= short_edge_px else found[::-1]


def _search(value: Any, names: Sequence[str]) -> tuple[int, int] | None:
    """The first pair of positive whole numbers under one of these names, however deep."""
    if isinstance(value, dict):
        for name in names:
            match value.get(name):
                case [int(one), int(other)] if min(one, other) > 0:
                    return one, other
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((pair for pair in (_search(item, names) for item in items) if pair), None)


def _dilation(config: Mapping[str, Any]) -> Found:
    match _at(config, "model.backbone.dilations"), _at(config, "model.backbone.strides"):
        case [*_, 2], [*_, 1]:
            return Found("features", FeatureKind.DC5, "config in the file: dilations and strides")
    return Found("features", FeatureKind.C5, "config in the file: the fifth stage is not dilated")
