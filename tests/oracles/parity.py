"""Fixtures recorded from the real peers: a detector's configuration from what a file says of its model.

The format is described in the README beside the files; a file of a known architecture needs no change here.
"""

import dataclasses
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from model.config import (
    AnchorConfig,
    BackboneConfig,
    BoxHeadConfig,
    CascadeConfig,
    CascadeMerge,
    ChannelOrder,
    DetectorConfig,
    FeatureKind,
    KeypointHeadConfig,
    KeypointScore,
    LevelRule,
    LossDivisor,
    MaskHeadConfig,
    MaskTarget,
    Norm,
    PasteRule,
    PictureConfig,
    PoolerConfig,
    ResizeKernel,
    ResizeRounding,
    RoIKind,
    RpnConfig,
    SemanticHeadConfig,
    StrideIn,
)
from model.picture import pad, tight_hw
from model.structures import Images, PackedMasks, Proposals, Targets

FOLDER = os.environ.get("MASKRAY_PARITY_DIR")


def files() -> list[Path]:
    """All fixtures; none where the folder is not given."""
    return sorted(Path(FOLDER).glob("*.safetensors")) if FOLDER else []


class Fixture:
    """One file: tensors by name, and the metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def peer(self) -> str:
        return self.meta["peer"]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return {name.removeprefix("weights/"): t for name, t in self.tensors.items() if name.startswith("weights/")}

    @cached_property
    def config(self) -> DetectorConfig:
        return {"torchvision": _torchvision, "detectron2": _detectron2, "mmdet": _mmdet}[self.peer](self.meta["config"])


def _keep_all(box: BoxHeadConfig, rpn: RpnConfig, samples: int) -> tuple[BoxHeadConfig, RpnConfig]:
    """Sampling that keeps every candidate, as the peers were set up; 512 RoIs are more positives than any file has."""
    return (
        dataclasses.replace(box, samples=4096, positive_share=1 / 8),
        dataclasses.replace(rpn, samples=samples, positive_share=1.0),
    )


def _norm(name: str | None) -> Norm:
    return {"": Norm.NONE, None: Norm.NONE, "BatchNorm2d": Norm.BATCH, "BN": Norm.BATCH, "GN": Norm.GROUP,
            "SyncBN": Norm.SYNC, "FrozenBN": Norm.FROZEN, "FrozenBatchNorm2d": Norm.FROZEN}[name]  # fmt: skip


def _torchvision(config: dict[str, Any]) -> DetectorConfig:
    resnet, rpn, box, mask, keypoint = (config[name] for name in ("resnet", "rpn", "box", "mask", "keypoint"))
    has_convs = box["head"] != "2fc"
    widths = config["fpn"]["out_channels"]
    box_config = BoxHeadConfig(
        num_convs=4 if has_convs else 0,
        conv_channels=widths,
        norm=Norm.BATCH if has_convs else Norm.NONE,
        num_fcs=1 if has_convs else 2,
        channels=box["fc"],
        positive_iou=box["fg_iou"],
        smooth_l1_beta=box["smooth_l1_beta"],
        delta_weights=tuple(map(float, box["weights"])),
        score_threshold=box["score_thresh"],
        nms_iou=box["nms_thresh"],
        max_detections=box["detections_per_img"],
        min_size_px=1e-2,
    )
    rpn_config = RpnConfig(
        num_convs=rpn["conv_depth"],
        positive_iou=rpn["fg_iou"],
        negative_iou=rpn["bg_iou"],
        smooth_l1_beta=rpn["smooth_l1_beta"],
        pre_nms_train=rpn["pre_nms_top_n"]["training"],
        pre_nms_test=rpn["pre_nms_top_n"]["testing"],
        post_nms_train=rpn["post_nms_top_n"]["training"],
        post_nms_test=rpn["post_nms_top_n"]["testing"],
        nms_iou=rpn["nms_thresh"],
        min_size_px=1e-3,
    )
    box_config, rpn_config = _keep_all(box_config, rpn_config, rpn["batch"])
    return DetectorConfig(
        num_classes=config["class_count"],
        fpn_channels=widths,
        fpn_norm=_norm(config["fpn"]["norm"]),
        picture=PictureConfig(
            short_edge_px=config["input"]["min_size"],
            long_edge_px=config["input"]["max_size"],
            rounding=ResizeRounding.FLOOR,
            size_divisor=config["input"]["pad_divisor"],
        ),
        backbone=BackboneConfig(
            depth=resnet["depth"],
            stem_channels=resnet["stem_out"],
            norm=_norm(resnet["norm"]),
            norm_eps=resnet["norm_eps_backbone"],
            frozen_statistics=False,
        ),
        anchors=AnchorConfig(
            sizes_px=tuple(float(sizes[0]) for sizes in config["anchors"]["sizes"]),
            ratios=tuple(map(float, config["anchors"]["ratios"])),
            rounded=True,
            fitted=True,
        ),
        rpn=rpn_config,
        pooler=PoolerConfig(
            box_size=box["pool"],
            mask_size=mask["pool"] if mask else 14,
            keypoint_size=keypoint["pool"] if keypoint else 14,
            sampling_ratio=box["sampling_ratio"],
            aligned=box["aligned"],
            level_rule=LevelRule.TORCHVISION,
        ),
        box=box_config,
        mask=MaskHeadConfig(
            enabled=mask is not None,
            channels=mask["dim"] if mask else 256,
            num_convs=mask["layers"] if mask else 4,
            norm=Norm.BATCH if has_convs else Norm.NONE,
            target=MaskTarget.SOFT,
            paste=PasteRule.PADDED_RESIZE,
        ),
        keypoint=_keypoint(keypoint and (keypoint["layers"], keypoint["dim"], keypoint["count"]), KeypointScore.LOGIT),
    )


def _keypoint(shape: tuple[int, int, int] | None, score: KeypointScore) -> KeypointHeadConfig:
    """The head of (layers, width, keypoints); none where there is no shape."""
    if shape is None:
        return KeypointHeadConfig()
    layers, width, count = shape
    pairs = KeypointHeadConfig().flip_pairs if count == 17 else ()
    return KeypointHeadConfig(True, count, pairs, layers, width, score)


def _detectron2(config: dict[str, Any]) -> DetectorConfig:
    resnet, rpn, roi, box, mask = (config[name] for name in ("resnet", "rpn", "roi_heads", "box_head", "mask_head"))
    keypoint, given, cascade = config["keypoint_head"], config["input"], config["cascade"]
    features = {"res4": FeatureKind.C4, "res5": FeatureKind.DC5 if resnet["res5_dilation"] == 2 else FeatureKind.C5}
    sizes = config["anchors"]["sizes"]
    box_config = BoxHeadConfig(
        num_convs=box["num_conv"],
        conv_channels=box["conv_dim"],
        norm=_norm(box["norm"]) if box["num_conv"] else Norm.NONE,
        num_fcs=box["num_fc"],
        channels=box["fc_dim"],
        class_agnostic=box["cls_agnostic_bbox_reg"],
        positive_iou=roi["iou_thresholds"][0],
        smooth_l1_beta=box["smooth_l1_beta"],
        delta_weights=tuple(box["bbox_reg_weights"]),
        score_threshold=roi["score_thresh_test"],
        nms_iou=roi["nms_thresh_test"],
        max_detections=roi["detections_per_image"],
    )
    rpn_config = RpnConfig(
        num_convs=rpn.get("num_convs", 1),
        negative_iou=rpn["iou_thresholds"][0],
        positive_iou=rpn["iou_thresholds"][1],
        divisor=LossDivisor.CONFIGURED,
        smooth_l1_beta=rpn["smooth_l1_beta"],
        pre_nms_train=rpn["pre_nms_topk_train"],
        pre_nms_test=rpn["pre_nms_topk_test"],
        post_nms_train=rpn["post_nms_topk_train"],
        post_nms_test=rpn["post_nms_topk_test"],
        nms_iou=rpn["nms_thresh"],
        border_px=rpn["boundary_thresh"],
    )
    box_config, rpn_config = _keep_all(box_config, rpn_config, rpn["batch_size_per_image"])
    has_groups = resnet["groups"] > 1
    deformable = tuple(stage for stage, on in enumerate(resnet["deform_on_per_stage"], start=2) if on)
    return DetectorConfig(
        num_classes=config["class_count"],
        features=FeatureKind.FPN if config["fpn"] else features[resnet["out_features"][-1]],
        fpn_channels=config["fpn"]["out_channels"] if config["fpn"] else 256,
        fpn_norm=_norm(config["fpn"]["norm"]) if config["fpn"] else Norm.NONE,
        roi=RoIKind.CASCADE if cascade else RoIKind.STANDARD,
        picture=PictureConfig(
            short_edge_px=given["min_size_test"],
            long_edge_px=given["max_size_test"],
            kernel=ResizeKernel.PIL_BILINEAR,
            channel_order=ChannelOrder(given["channel_order"].lower()),
            mean=tuple(given["pixel_mean_bgr"]),
            std=tuple(given["pixel_std_bgr"]),
            size_divisor=given["pad_divisor"] or 1,
        ),
        backbone=BackboneConfig(
            depth=resnet["depth"],
            stem_channels=resnet["stem_out"],
            groups=resnet["groups"],
            group_width=resnet["width_per_group"] if has_groups else 0,
            stride_in=StrideIn.FIRST_1X1 if resnet["stride_in_1x1"] else StrideIn.CONV_3X3,
            norm=_norm(resnet["norm"]),
            norm_eps=config["frozen_bn_eps"],
            frozen_stages=resnet["freeze_at"],
            deformable_stages=deformable,
            modulated=resnet["deform_modulated"],
        ),
        anchors=AnchorConfig(
            sizes_px=tuple(float(size) for level in sizes for size in level),
            ratios=tuple(config["anchors"]["ratios"][0]),
        ),
        rpn=rpn_config,
        pooler=PoolerConfig(
            box_size=box["pooler_resolution"],
            mask_size=mask["pooler_resolution"] if mask else 14,
            keypoint_size=keypoint["pooler_resolution"] if keypoint else 14,
            sampling_ratio=box["sampling_ratio"],
            aligned=box["pooler_type"] == "ROIAlignV2",
            level_rule=LevelRule.DETECTRON2,
        ),
        box=box_config,
        cascade=CascadeConfig(
            ious=tuple(cascade["ious"]) if cascade else (0.5, 0.6, 0.7),
            delta_weights=tuple(map(tuple, cascade["bbox_reg_weights"])) if cascade else CascadeConfig().delta_weights,
            loss_weights=(1.0, 1.0, 1.0),
            resample=False,
            feature_gradient=1 / 3,
            mask_each_stage=False,
            merge=CascadeMerge.PROBABILITIES,
        ),
        mask=MaskHeadConfig(
            enabled=mask is not None,
            channels=mask["conv_dim"] if mask else 256,
            num_convs=mask["num_conv"] if mask else 4,
            norm=_norm(mask["norm"]) if mask else Norm.NONE,
            class_agnostic=mask["cls_agnostic_mask"] if mask else False,
        ),
        keypoint=_keypoint(
            keypoint and (len(keypoint["conv_dims"]), keypoint["conv_dims"][0], keypoint["num_keypoints"]),
            KeypointScore.PROBABILITY,
        ),
    )


def _mmdet_features(config: dict[str, Any]) -> FeatureKind:
    if config["fpn"]:
        return FeatureKind.FPN
    return FeatureKind.C4 if config["backbone"]["stages"] == 3 else FeatureKind.C5


def _mmdet_beta(loss: dict[str, Any]) -> float:
    return 0.0 if loss["kind"] == "L1Loss" else loss["beta"]


def _mmdet(config: dict[str, Any]) -> DetectorConfig:
    backbone, rpn, given, semantic = (config[name] for name in ("backbone", "rpn", "input", "semantic"))
    features, stages, align = _mmdet_features(config), config["roi_stages"], config["roi_align"]
    is_cascade, is_c4 = len(stages) > 1, features is FeatureKind.C4
    first = stages[0]
    weights = tuple(tuple(1 / std for std in stage["delta_std"]) for stage in stages)
    box_config = BoxHeadConfig(
        num_fcs=0 if first["fc"] is None else 2,
        channels=first["fc"] or 1024,
        class_agnostic=first["class_agnostic_box"],
        positive_iou=first["assign"]["pos_iou"],
        reassign_best=first["assign"]["low_quality_matches"],
        smooth_l1_beta=_mmdet_beta(first["box_loss"]),
        delta_weights=weights[0],
        limit_shrink=True,
        score_threshold=config["test"]["score_thr"],
        nms_iou=config["test"]["nms"],
        max_detections=config["test"]["max_per_image"],
    )
    strides, scales = config["anchors"]["strides"], config["anchors"]["scales"]
    sizes = [scale * strides[0] for scale in scales] if len(strides) == 1 else [scales[0] * s for s in strides]
    rpn_config = RpnConfig(
        positive_iou=rpn["assign"]["pos_iou"],
        negative_iou=rpn["assign"]["neg_iou"],
        min_best_iou=rpn["assign"]["min_pos_iou"],
        reassign_best=True,
        border_px=rpn["allowed_border"],
        own_padding_only=True,
        divisor=LossDivisor.ONE_POSITIVE,
        smooth_l1_beta=_mmdet_beta(rpn["box_loss"]),
        limit_shrink=True,
        pre_nms_train=rpn["train_pre_nms"],
        pre_nms_test=rpn["test_pre_nms"],
        post_nms_train=rpn["train_max"],
        post_nms_test=rpn["test_max"],
        nms_iou=rpn["test_nms"],
    )
    box_config, rpn_config = _keep_all(box_config, rpn_config, 10**6)
    deformable = tuple(stage for stage, on in enumerate(backbone["deformable_stages"] or (), start=2) if on)
    kind = RoIKind.HTC if config["htc"] else RoIKind.CASCADE if is_cascade else RoIKind.STANDARD
    return DetectorConfig(
        num_classes=config["class_count"],
        features=features,
        fpn_channels=config["fpn"]["out_channels"] if config["fpn"] else 256,
        roi=kind,
        picture=PictureConfig(
            short_edge_px=min(given["test_scale_long_short"]),
            long_edge_px=max(given["test_scale_long_short"]),
            kernel=ResizeKernel.CV2_BILINEAR,
            channel_order=ChannelOrder(given["fed_channel_order"].lower()),
            mean=tuple(given["mean_in_fed_order"]),
            std=tuple(given["std_in_fed_order"]),
            size_divisor=given["pad_divisor"],
        ),
        backbone=BackboneConfig(
            depth=backbone["depth"],
            stem_channels=backbone["base_channels"],
            groups=backbone["groups"],
            group_width=_mmdet_group_width(backbone),
            stride_in=StrideIn.FIRST_1X1 if backbone["stride_in"] == "1x1" else StrideIn.CONV_3X3,
            norm=Norm.FIXED if backbone["bn_affine_trainable"] else Norm.FROZEN,
            frozen_stages=backbone["frozen_stages"] + 1,
            deformable_stages=deformable,
            modulated=backbone.get("deform_modulated", False),
        ),
        anchors=AnchorConfig(sizes_px=tuple(map(float, sizes)), ratios=tuple(config["anchors"]["ratios"])),
        rpn=rpn_config,
        pooler=PoolerConfig(
            box_size=align["box"],
            mask_size=14 if is_c4 else align["mask"],
            sampling_ratio=align["sampling_ratio"],
            aligned=align["aligned"],
            level_rule=LevelRule.MMDETECTION,
        ),
        box=box_config,
        cascade=CascadeConfig(
            ious=tuple(stage["assign"]["pos_iou"] for stage in stages) if is_cascade else (0.5, 0.6, 0.7),
            delta_weights=weights if is_cascade else CascadeConfig().delta_weights,
            loss_weights=tuple(map(float, config["stage_loss_weights"])) if is_cascade else (1.0, 0.5, 0.25),
        ),
        mask=MaskHeadConfig(
            enabled=config["mask_head"] is not None,
            channels=config["mask_head"]["channels"],
            num_convs=config["mask_head"]["convs"],
        ),
        semantic=SemanticHeadConfig(
            enabled=semantic is not None,
            num_classes=semantic["classes"] if semantic else 183,
            channels=config["fpn"]["out_channels"] if config["fpn"] else 256,
            num_convs=semantic["convs"] if semantic else 4,
            fusion_level=semantic["fusion_level"] if semantic else 1,
            loss_weight=semantic["loss_weight"] if semantic else 0.2,
            ignore_label=semantic["ignore_index"] if semantic else 255,
        ),
    )


def _mmdet_group_width(backbone: dict[str, Any]) -> int:
    return backbone["base_width"] if backbone["groups"] > 1 else 0


def train_batch(fixture: Fixture, second_is_empty: bool) -> tuple[Images, Targets]:
    """The two training pictures, padded together, with their objects; bit masks made from the polygons."""
    pictures = [fixture[f"train/{i}/image"].permute(2, 0, 1) for i in range(2)]
    sizes = [(picture.shape[1], picture.shape[2]) for picture in pictures]
    images = pad(pictures, tight_hw(sizes, fixture.config.picture))
    counts = [len(fixture[f"train/{i}/boxes"]) for i in range(2)]
    used = [counts[0], 0 if second_is_empty else counts[1]]
    shape = (2, max(counts))
    boxes, labels = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.int64)
    offsets, extents = torch.full(shape, -1), torch.zeros((*shape, 6), dtype=torch.int64)
    keypoints = torch.zeros(*shape, fixture.config.keypoint.num_keypoints, 3)
    semantic = torch.full((2, *images.pixels.shape[2:]), 255, dtype=torch.uint8)
    data = [torch.zeros(1, dtype=torch.uint8)]
    for i, (count, (height, width)) in enumerate(zip(used, sizes, strict=True)):
        boxes[i, :count] = fixture[f"train/{i}/boxes"][:count]
        labels[i, :count] = fixture[f"train/{i}/labels"][:count] - fixture.meta["config"]["label_base"]
        if f"train/{i}/keypoints" in fixture:
            keypoints[i, :count] = fixture[f"train/{i}/keypoints"][:count]
        if f"train/{i}/semantic" in fixture:
            semantic[i, :height, :width] = fixture[f"train/{i}/semantic"]
        if f"train/{i}/masks_packed" in fixture:
            bits = np.unpackbits(fixture[f"train/{i}/masks_packed"].numpy(), axis=-1)[:count, :, :width]
            for g, mask in enumerate(bits):
                offsets[i, g] = sum(len(part) for part in data)
                extents[i, g] = torch.tensor([0, 0, height, width, height, width])
                data.append(torch.from_numpy(mask.ravel().copy()))
    valid = torch.arange(shape[1]) < torch.tensor(used)[:, None]
    masks = PackedMasks(torch.cat(data), offsets, extents)
    seeds = torch.tensor([1, 2])
    return images, Targets(boxes, labels, valid, masks, seeds, keypoints, semantic)


def train_proposals(fixture: Fixture) -> Proposals:
    """The proposals the peer trained its heads on."""
    boxes = [fixture[f"train/{i}/proposals"] for i in range(2)]
    valid = torch.arange(max(map(len, boxes))) < torch.tensor([[len(boxes[0])], [len(boxes[1])]])
    padded = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)
    return Proposals(padded, torch.zeros(valid.shape), valid)


_LOSSES = {
    "detectron2": {"rpn_cls": "loss_rpn_cls", "rpn_box": "loss_rpn_loc", "cls": "loss_cls", "box": "loss_box_reg",
                   "mask": "loss_mask", "keypoint": "loss_keypoint"},
    "torchvision": {"rpn_cls": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "cls": "loss_classifier",
                    "box": "loss_box_reg", "mask": "loss_mask", "keypoint": "loss_keypoint"},
    "mmdet": {"rpn_cls": "loss_rpn_cls", "rpn_box": "loss_rpn_bbox", "cls": "loss_cls", "box": "loss_bbox",
              "mask": "loss_mask", "semantic": "loss_semantic_seg"},
}  # fmt: skip


def peer_loss(peer: str, name: str) -> str:
    """The peer's name of our loss."""
    stage, _, part = name.rpartition("_") if name.startswith("stage") else ("", "", name)
    theirs = _LOSSES[peer][part]
    if not stage or (peer == "detectron2" and part == "mask"):
        return theirs
    return f"s{stage[5:]}.{theirs}" if peer == "mmdet" else f"{theirs}_{stage}"
