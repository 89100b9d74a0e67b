"""The comparisons of Mask R-CNN (He et al. 2017, arXiv 1703.06870v3) as sweeps: each row of a table is a variant.

Run them as grids. Rows differ from the run that is varied only in what their table is about, so a small preset compares
the same things at a small scale.
"""

from collections.abc import Mapping
from typing import Any

from model.config import Norm
from model.config.switches import FeatureKind
from pipelines.config import TrainConfig
from pipelines.optim import OptimConfig
from pipelines.sweep_space import Dimension, Options, Variants

Settings = Mapping[str, Any]

# One crop a RoI for the fifth stage, which is the head: no layers of its own.
_C4: Settings = {
    "detector.features": "c4", "detector.box.num_fcs": 0, "detector.pooler.box_size": 14, "detector.mask.num_convs": 0,
}  # fmt: skip
_C5: Settings = {"detector.features": "c5"}
_FPN: Settings = {"detector.features": "fpn"}
_BOX_ONLY: Settings = {"detector.mask.enabled": False, "detector.keypoint.enabled": False}
_MASK: Settings = {"detector.mask.enabled": True, "detector.keypoint.enabled": False}
_KEYPOINT: Settings = {"detector.mask.enabled": False, "detector.keypoint.enabled": True}
_BOTH: Settings = {"detector.mask.enabled": True, "detector.keypoint.enabled": True}


def longer(optim: OptimConfig, times: int) -> dict[str, Any]:
    """A schedule so many times as long, in steps or epochs as it is given, its milestones moved with it."""
    length = {"optim.epochs": optim.epochs * times} if optim.epochs else {"optim.steps": optim.steps * times}
    return {**length, "optim.milestones": [milestone * times for milestone in optim.milestones]}


def _pooling(operation: str, reduction: str) -> Settings:
    return {
        "detector.pooler.operation": operation,
        "detector.pooler.reduction": reduction,
        "detector.pooler.sampling_ratio": 2,  # the paper's four samples a bin
    }


def _norm_for_c4(base: TrainConfig) -> Settings:
    """A norm for every row of a table with rows on C4, whose fifth stage cannot count padding out of a batch's mean."""
    counts_batch = base.detector.backbone.norm in (Norm.BATCH, Norm.SYNC)
    return {"detector.backbone.norm": "group"} if counts_batch else {}


def _rows(rows: Mapping[str, Settings]) -> tuple[Dimension, ...]:
    return (Variants("row", rows),)


def table_2a(base: TrainConfig) -> tuple[Dimension, ...]:
    """Backbone: two depths on C4 and on FPN, and a ResNeXt of the larger depth."""
    small, large = (50, 101) if base.detector.backbone.depth >= 50 else (18, 34)
    norm = _norm_for_c4(base)
    rows: dict[str, Settings] = {
        f"R{depth}-{name}": {"detector.backbone.depth": depth, **features, **norm}
        for name, features in (("C4", _C4), ("FPN", _FPN))
        for depth in (small, large)
    }
    if large >= 50:  # groups live in bottlenecks
        rows["X101-FPN"] = {"detector.backbone.depth": 101, "detector.backbone.groups": 64,
                            "detector.backbone.group_width": 4, **_FPN, **norm}  # fmt: skip
    return _rows(rows)


def table_2b(base: TrainConfig) -> tuple[Dimension, ...]:
    """Masks of all classes compete (softmax) or each stands alone (sigmoid)."""
    return _rows({name: {"detector.mask.activation": name} for name in ("softmax", "sigmoid")})


def table_2c(base: TrainConfig) -> tuple[Dimension, ...]:
    """RoIPool, RoIWarp and RoIAlign, by maximum and average, on C4."""
    pairs = [("pool", "max"), ("warp", "max"), ("warp", "average"), ("align", "max"), ("align", "average")]
    return _rows(
        {
            f"{operation}-{reduction}": {**_C4, **_norm_for_c4(base), **_pooling(operation, reduction)}
            for operation, reduction in pairs
        }
    )


def table_2d(base: TrainConfig) -> tuple[Dimension, ...]:
    """RoIPool and RoIAlign on C5, of stride 32, where alignment matters most."""
    return _rows({"pool": {**_C5, **_pooling("pool", "max")}, "align": {**_C5, **_pooling("align", "average")}})


def table_2e(base: TrainConfig) -> tuple[Dimension, ...]:
    """Mask head of fully connected layers, one or two hidden, or convolutions."""
    return _rows({
        "mlp-1": {"detector.mask.kind": "mlp", "detector.mask.hidden_layers": 1},
        "mlp-2": {"detector.mask.kind": "mlp", "detector.mask.hidden_layers": 2},
        "fcn": {"detector.mask.kind": "fcn"},
    })  # fmt: skip


def class_agnostic(base: TrainConfig) -> tuple[Dimension, ...]:
    """A mask for every class, or one for all (section 4.2)."""
    return (Options("detector.mask.class_agnostic", (False, True)),)


def table_3(base: TrainConfig) -> tuple[Dimension, ...]:
    """Boxes alone, with RoIPool and with RoIAlign, and with masks learned beside them; compared by their boxes."""
    return _rows({
        "box-pool": {**_BOX_ONLY, **_pooling("pool", "max")},
        "box-align": {**_BOX_ONLY, **_pooling("align", "average")},
        "box-and-mask": {**_MASK, **_pooling("align", "average")},
    })  # fmt: skip


def table_5(base: TrainConfig) -> tuple[Dimension, ...]:
    """People: boxes, masks, keypoints, and all of them together, compared by their boxes; needs keypoints."""
    return _rows({"box": _BOX_ONLY, "mask": _MASK, "keypoint": _KEYPOINT, "keypoint-and-mask": _BOTH})


def table_6(base: TrainConfig) -> tuple[Dimension, ...]:
    """Keypoints by RoIPool and by RoIAlign; needs data with keypoints."""
    return _rows({
        "pool": {**_KEYPOINT, **_pooling("pool", "max")},
        "align": {**_KEYPOINT, **_pooling("align", "average")},
    })  # fmt: skip


def _enhanced(base: TrainConfig, heads: Settings) -> tuple[Dimension, ...]:
    edge = base.detector.picture.short_edge_px
    scales = {"augment.short_edges_px": [round(edge * share) for share in (0.8, 0.85, 0.9, 0.95, 1.0)]}
    steps: dict[str, Settings] = {"baseline": {}, "longer": longer(base.optim, 2), "scales": scales}
    if base.detector.backbone.depth >= 50:
        steps["resnext"] = {"detector.backbone.depth": 101, "detector.backbone.groups": 32,
                            "detector.backbone.group_width": 8}  # fmt: skip
    else:
        steps["deeper"] = {"detector.backbone.depth": 34}
    if base.detector.backbone.depth >= 50 and base.detector.features is FeatureKind.FPN:
        steps["non-local"] = {"detector.backbone.non_local": True}
    rows, so_far = {}, dict(heads)
    for name, settings in steps.items():
        so_far |= settings
        rows[name if name == "baseline" else f"+{name}"] = dict(so_far)
    return _rows(rows)


def table_8(base: TrainConfig) -> tuple[Dimension, ...]:
    """Enhanced masks, step on step: longer schedule, several scales, a larger backbone, a non-local block."""
    return _enhanced(base, _MASK)


def table_9(base: TrainConfig) -> tuple[Dimension, ...]:
    """The same steps for keypoints; needs data with keypoints."""
    return _enhanced(base, _KEYPOINT)
