"""The presets' rules are those the frameworks themselves ran with: settings recorded beside their outputs.

The recorded models are narrow, small and sample everything, so widths, sizes and sample counts are not compared.
"""

import json
import os
import struct
from pathlib import Path

import pytest

from model.presets import DETECTORS
from model.settings import to_dict

FOLDER = os.environ.get("MASKRAY_PARITY_DIR", "")
PRESETS = {
    "detectron2_cascade_mask_rcnn_R_50_FPN": "detectron2_cascade_mask_rcnn_r50_fpn",
    "detectron2_keypoint_rcnn_R_50_FPN": "detectron2_keypoint_rcnn_r50_fpn",
    "detectron2_mask_rcnn_R_50_C4": "detectron2_mask_rcnn_r50_c4",
    "detectron2_mask_rcnn_R_50_DC5": "detectron2_mask_rcnn_r50_dc5",
    "detectron2_mask_rcnn_R_50_FPN": "detectron2_mask_rcnn_r50_fpn",
    "detectron2_mask_rcnn_R_50_FPN_dconv": "detectron2_mask_rcnn_r50_fpn_dconv_c3_c5",
    "detectron2_mask_rcnn_X_50_FPN": "detectron2_mask_rcnn_x101_32x8d_fpn",
    "mmdet_cascade_mask_rcnn_r50_fpn": "mmdet_cascade_mask_rcnn_r50_fpn",
    "mmdet_cascade_mask_rcnn_r50_fpn_nuim": "nuimages_cascade_mask_rcnn_r50_fpn",
    "mmdet_htc_r50_fpn": "mmdet_htc_r50_fpn",
    "mmdet_htc_r50_fpn_nuim": "nuimages_htc_r50_fpn",
    "mmdet_htc_without_semantic_r50_fpn": "mmdet_htc_without_semantic_r50_fpn",
    "mmdet_mask_rcnn_r50_caffe_c4": "mmdet_mask_rcnn_r50_caffe_c4",
    "mmdet_mask_rcnn_r50_caffe_fpn": "mmdet_mask_rcnn_r50_caffe_fpn",
    "mmdet_mask_rcnn_r50_fpn": "mmdet_mask_rcnn_r50_fpn",
    "mmdet_mask_rcnn_r50_fpn_dconv_c3_c5": "mmdet_mask_rcnn_r50_fpn_dconv_c3_c5",
    "mmdet_mask_rcnn_x50_fpn": "mmdet_mask_rcnn_x101_32x4d_fpn",
    "torchvision_keypointrcnn_resnet50_fpn": "torchvision_keypoint_rcnn_r50_fpn",
    "torchvision_maskrcnn_resnet50_fpn": "torchvision_mask_rcnn_r50_fpn",
    "torchvision_maskrcnn_resnet50_fpn_v2": "torchvision_mask_rcnn_r50_fpn_v2",
}


def recorded(name):
    """The configuration stored in the first file of a model; files of one model differ in sizes and seeds alone."""
    with (Path(FOLDER) / f"{name}_a.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return json.loads(header["__metadata__"]["meta"])["config"]


def stages_of(flags):
    """Per-stage flags of stages two to five -> numbers of those that are set."""
    return [number for number, flag in enumerate(flags or (), start=2) if flag]


def detectron2(seen):
    box, mask, keypoint, cascade = (seen[part] for part in ("box_head", "mask_head", "keypoint_head", "cascade"))
    resnet, rpn, is_c4 = seen["resnet"], seen["rpn"], seen["resnet"]["out_features"] == ["res4"]
    single = "c4" if is_c4 else "dc5"
    wanted = {
        "picture.channel_order": seen["input"]["channel_order"].lower(),
        "picture.mean": seen["input"]["pixel_mean_bgr"],
        "picture.std": seen["input"]["pixel_std_bgr"],
        "picture.size_divisor": max(seen["input"]["pad_divisor"], 1),
        "picture.kernel": {"PIL bilinear on uint8": "pil_bilinear"}[seen["input"]["resize"]],
        "features": "fpn" if seen["fpn"] else single,
        "backbone.stride_in": "first_1x1" if resnet["stride_in_1x1"] else "conv_3x3",
        "backbone.norm": {"FrozenBN": "frozen"}[resnet["norm"]],
        "backbone.norm_eps": seen["frozen_bn_eps"],
        "backbone.frozen_stages": resnet["freeze_at"],
        "backbone.deformable_stages": stages_of(resnet["deform_on_per_stage"]),
        "backbone.modulated": resnet["deform_modulated"],
        "anchors.sizes_px": [size for level in seen["anchors"]["sizes"] for size in level],
        "anchors.ratios": seen["anchors"]["ratios"][0],
        "rpn.divisor": "configured",
        "rpn.negative_iou": rpn["iou_thresholds"][0],
        "rpn.positive_iou": rpn["iou_thresholds"][1],
        "rpn.border_px": rpn["boundary_thresh"],
        "rpn.smooth_l1_beta": rpn["smooth_l1_beta"],
        "rpn.nms_iou": rpn["nms_thresh"],
        "box.positive_iou": seen["roi_heads"]["iou_thresholds"][0],
        "box.score_threshold": seen["roi_heads"]["score_thresh_test"],
        "box.nms_iou": seen["roi_heads"]["nms_thresh_test"],
        "box.max_detections": seen["roi_heads"]["detections_per_image"],
        "box.num_convs": box["num_conv"],
        "box.num_fcs": box["num_fc"],
        "box.delta_weights": box["bbox_reg_weights"],
        "box.smooth_l1_beta": box["smooth_l1_beta"],
        "box.class_agnostic": box["cls_agnostic_bbox_reg"],
        "pooler.box_size": box["pooler_resolution"],
        "pooler.sampling_ratio": box["sampling_ratio"],
        "pooler.aligned": box["pooler_type"] == "ROIAlignV2",
        "roi": "cascade" if cascade else "standard",
        "mask.enabled": mask is not None,
        "keypoint.enabled": keypoint is not None,
    }
    for when in ("train", "test"):
        wanted[f"rpn.pre_nms_{when}"] = rpn[f"pre_nms_topk_{when}"]
        wanted[f"rpn.post_nms_{when}"] = rpn[f"post_nms_topk_{when}"]
    if mask:
        wanted |= {
            "mask.num_convs": mask["num_conv"],
            "mask.class_agnostic": mask["cls_agnostic_mask"],
            "mask.threshold": mask["mask_threshold"],
        }
    if keypoint:
        wanted |= {"keypoint.num_convs": len(keypoint["conv_dims"]), "keypoint.num_keypoints": 17}
    if cascade:
        wanted |= {"cascade.ious": cascade["ious"], "cascade.delta_weights": cascade["bbox_reg_weights"]}
    return wanted


def mmdetection(seen):
    stages, rpn, backbone = seen["roi_stages"], seen["rpn"], seen["backbone"]
    first, is_c4, semantic = stages[0], seen["fpn"] is None, seen["semantic"]
    strides = seen["anchors"]["strides"]
    kind = "htc" if seen["htc"] else ("cascade" if len(stages) == 3 else "standard")
    norm = "fixed" if backbone["bn_affine_trainable"] else "frozen"
    wanted = {
        "picture.channel_order": seen["input"]["fed_channel_order"].lower(),
        "picture.mean": seen["input"]["mean_in_fed_order"],
        "picture.std": seen["input"]["std_in_fed_order"],
        "picture.size_divisor": seen["input"]["pad_divisor"],
        "picture.kernel": {"cv2 bilinear on uint8": "cv2_bilinear"}[seen["input"]["resize"]],
        "features": "c4" if is_c4 else "fpn",
        "backbone.stride_in": {"1x1": "first_1x1", "3x3": "conv_3x3"}[backbone["stride_in"]],
        "backbone.norm": norm,
        "backbone.frozen_stages": backbone["frozen_stages"] + 1,
        "backbone.deformable_stages": stages_of(backbone["deformable_stages"]),
        "anchors.sizes_px": [stride * scale for stride in strides for scale in seen["anchors"]["scales"]],
        "anchors.ratios": seen["anchors"]["ratios"],
        "rpn.smooth_l1_beta": rpn["box_loss"].get("beta", 0.0),
        "rpn.positive_iou": rpn["assign"]["pos_iou"],
        "rpn.negative_iou": rpn["assign"]["neg_iou"],
        "rpn.min_best_iou": rpn["assign"]["min_pos_iou"],
        "rpn.reassign_best": rpn["assign"]["low_quality_matches"],
        "rpn.border_px": rpn["allowed_border"],
        "rpn.limit_shrink": True,
        "rpn.own_padding_only": True,
        "rpn.nms_iou": rpn["train_nms"],
        "roi": kind,
        "box.reassign_best": first["assign"]["low_quality_matches"],
        "box.smooth_l1_beta": first["box_loss"].get("beta", 0.0),
        "box.class_agnostic": first["class_agnostic_box"],
        "box.limit_shrink": True,
        "box.score_threshold": seen["test"]["score_thr"],
        "box.nms_iou": seen["test"]["nms"],
        "box.max_detections": seen["test"]["max_per_image"],
        "pooler.box_size": seen["roi_align"]["box"],
        "pooler.aligned": seen["roi_align"]["aligned"],
        "pooler.sampling_ratio": seen["roi_align"]["sampling_ratio"],
        "mask.num_convs": seen["mask_head"]["convs"],
        "mask.threshold": seen["test"]["mask_threshold"],
        "semantic.enabled": semantic is not None,
    }
    for when in ("train", "test"):
        wanted[f"rpn.pre_nms_{when}"] = rpn[f"{when}_pre_nms"]
        wanted[f"rpn.post_nms_{when}"] = rpn[f"{when}_max"]
    factors = [[1 / deviation for deviation in stage["delta_std"]] for stage in stages]
    if kind == "standard":
        wanted |= {"box.delta_weights": factors[0], "box.positive_iou": first["assign"]["pos_iou"]}
    else:
        wanted |= {
            "cascade.delta_weights": factors,
            "cascade.ious": [stage["assign"]["pos_iou"] for stage in stages],
            "cascade.loss_weights": seen["stage_loss_weights"],
            "cascade.merge": "logits",
            "cascade.mask_each_stage": True,
        }
    if semantic:
        wanted |= {
            "semantic.fusion_level": semantic["fusion_level"],
            "semantic.num_convs": semantic["convs"],
            "semantic.loss_weight": semantic["loss_weight"],
            "semantic.ignore_label": semantic["ignore_index"],
        }
    return wanted


def torchvision(seen):
    rpn, box, mask, keypoint = seen["rpn"], seen["box"], seen["mask"], seen["keypoint"]
    is_frozen = seen["resnet"]["norm"] == "FrozenBatchNorm2d"
    wanted = {
        "picture.channel_order": seen["input"]["channel_order"].lower(),
        "picture.mean": [255 * value for value in seen["input"]["mean"]],
        "picture.std": [255 * value for value in seen["input"]["std"]],
        "picture.size_divisor": seen["input"]["pad_divisor"],
        "picture.kernel": "float_bilinear",
        "picture.rounding": "floor",
        "features": "fpn",
        "backbone.stride_in": {"3x3": "conv_3x3"}[seen["resnet"]["stride_in"]],
        "backbone.norm": "frozen" if is_frozen else "batch",
        "backbone.frozen_stages": {"layer2-4": 2}[seen["resnet"]["trainable"]],
        "fpn_norm": {None: "none", "BatchNorm2d": "batch"}[seen["fpn"]["norm"]],
        "anchors.sizes_px": [size for level in seen["anchors"]["sizes"] for size in level],
        "anchors.ratios": seen["anchors"]["ratios"],
        "anchors.rounded": seen["anchors"]["rounded"],
        "rpn.num_convs": rpn["conv_depth"],
        "rpn.nms_iou": rpn["nms_thresh"],
        "rpn.positive_iou": rpn["fg_iou"],
        "rpn.negative_iou": rpn["bg_iou"],
        "rpn.smooth_l1_beta": rpn["smooth_l1_beta"],
        "box.num_convs": {"2fc": 0, "4conv+1fc": 4}[box["head"]],
        "box.num_fcs": {"2fc": 2, "4conv+1fc": 1}[box["head"]],
        "box.positive_iou": box["fg_iou"],
        "box.smooth_l1_beta": box["smooth_l1_beta"],
        "box.delta_weights": box["weights"],
        "box.score_threshold": box["score_thresh"],
        "box.nms_iou": box["nms_thresh"],
        "box.max_detections": box["detections_per_img"],
        "pooler.box_size": box["pool"],
        "pooler.sampling_ratio": box["sampling_ratio"],
        "pooler.aligned": box["aligned"],
        "mask.enabled": mask is not None,
        "keypoint.enabled": keypoint is not None,
    }
    for ours, theirs in (("train", "training"), ("test", "testing")):
        wanted[f"rpn.pre_nms_{ours}"] = rpn["pre_nms_top_n"][theirs]
        wanted[f"rpn.post_nms_{ours}"] = rpn["post_nms_top_n"][theirs]
    if mask:
        wanted |= {"pooler.mask_size": mask["pool"], "mask.num_convs": mask["layers"]}
    if keypoint:
        wanted |= {"pooler.keypoint_size": keypoint["pool"], "keypoint.num_convs": keypoint["layers"]}
    return wanted


PEERS = {"detectron2": detectron2, "mmdet": mmdetection, "torchvision": torchvision}


def at(values, path):
    for name in path.split("."):
        values = values[name]
    return values


@pytest.mark.skipif(not FOLDER, reason="MASKRAY_PARITY_DIR names no folder of recorded outputs")
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_rules_its_framework_ran_with(name):
    wanted = PEERS[name.split("_", maxsplit=1)[0]](recorded(name))
    found = to_dict(DETECTORS[PRESETS[name]]())
    differing = {path: (at(found, path), value) for path, value in wanted.items() if not same(at(found, path), value)}
    assert differing == {}


def same(found, wanted):
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(same(*pair) for pair in zip(found, wanted, strict=True))
    if (found, wanted) == ("sync", "batch"):  # statistics over all workers: of one, its own
        return True
    return found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)
