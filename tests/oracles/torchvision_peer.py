"""torchvision's Mask R-CNN, built live with random weights whose activations stay near unit size."""

import torch
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import misc

from model.build import build_detector
from model.checkpoint import load_strict
from model.convert import from_torchvision
from model.presets import torchvision_mask_rcnn_r50_fpn
from model.settings import override

NUM_CLASSES = 12
CLASS_SCALE = 12
PROPOSALS = 8000


def textured_picture(seed, height, width):
    """A picture float [3, H, W] in 0..1 with structure at many scales, so that detections differ."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, height, width)
    for cells in (3, 7, 15, 40, 90, 160):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        picture += torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic") / 6
    return picture[0].clamp(0, 1)


def build_peer(**settings):
    """The peer with calibrated random weights: batch statistics of one picture, confident class scores."""
    torch.manual_seed(3)
    # Small pictures and as many proposals as there are anchors: no cut-off at which two near-equal scores could swap.
    size = {"min_size": 128, "max_size": 192}
    size |= {f"rpn_{when}_nms_top_n_{mode}": PROPOSALS for when in ("pre", "post") for mode in ("train", "test")}
    live = MaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5), NUM_CLASSES, **size
    )
    picture = textured_picture(0, 320, 416)
    for module in live.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        live.backbone.train()(picture[None])
        features = live.eval().backbone(picture[None])
        for i, block in enumerate(live.backbone.fpn.layer_blocks):
            block[0].weight /= features[str(i)].std()
        live.rpn.head.conv[0][0].weight *= 4
        live.rpn.head.cls_logits.weight *= 20
        live.rpn.head.bbox_pred.weight *= 4
        predictor = live.roi_heads.box_predictor
        predictor.cls_score.weight *= CLASS_SCALE
        predictor.bbox_pred.weight *= 2
    state = {name: value for name, value in live.state_dict().items() if "num_batches_tracked" not in name}
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=misc.FrozenBatchNorm2d
    )
    peer = MaskRCNN(backbone, NUM_CLASSES, **{**size, **settings})
    peer.load_state_dict(state)
    return peer


def build_ours(peer, **settings):
    """Our detector with the peer's weights."""
    config = torchvision_mask_rcnn_r50_fpn()
    values = {
        "num_classes": NUM_CLASSES - 1,
        "picture.short_edge_px": 128,
        "picture.long_edge_px": 192,
        **{f"rpn.{when}_nms_{mode}": PROPOSALS for when in ("pre", "post") for mode in ("train", "test")},
        "backbone.frozen_stages": 0,
        **settings,
    }
    for path, value in values.items():
        config = override(config, path, value)
    detector = build_detector(config)
    load_strict(detector, from_torchvision(peer.state_dict()), "torchvision's weights")
    return detector
