"""torchvision's detectors of each kind, narrow in depth, with random weights whose detections differ clearly."""

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.misc import FrozenBatchNorm2d

PROPOSALS = 100
DETECTIONS = 40
# No cut-off at which two near-equal scores could swap, but few enough proposals to be quick.
SIZES = {
    "min_size": 96,
    "max_size": 160,
    "rpn_pre_nms_top_n_test": 8000,
    "rpn_post_nms_top_n_test": PROPOSALS,
    "box_detections_per_img": DETECTIONS,
}


def _v1():
    backbone = _resnet_fpn_extractor(resnet18(weights=None, norm_layer=FrozenBatchNorm2d), 5)
    return MaskRCNN(backbone, 6, **SIZES)


def _keypoints():
    backbone = _resnet_fpn_extractor(resnet18(weights=None, norm_layer=FrozenBatchNorm2d), 5)
    heads = {
        "keypoint_head": KeypointRCNNHeads(256, (32,) * 8),
        "keypoint_predictor": KeypointRCNNPredictor(32, 5),
    }
    predictor = FastRCNNPredictor(1024, 2)
    return KeypointRCNN(backbone, box_predictor=predictor, **heads, **SIZES)


def _v2():
    backbone = _resnet_fpn_extractor(resnet18(weights=None), 5, norm_layer=nn.BatchNorm2d)
    return MaskRCNN(
        backbone,
        6,
        rpn_head=RPNHead(256, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=nn.BatchNorm2d),
        **SIZES,
    )


KINDS = {"v1": _v1, "v2": _v2, "keypoints": _keypoints}


@torch.no_grad()
def build(kind, picture):
    """A detector of that kind in evaluation mode: pyramid of unit size on `picture`, confident scores."""
    torch.manual_seed(5)
    peer = KINDS[kind]().eval()
    for module in peer.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):  # statistics that matter
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1)
            module.bias.normal_(0, 0.1)
    for i, block in enumerate(peer.backbone.fpn.layer_blocks):
        scale = peer.backbone(picture[None])[str(i)].std()
        last = block[1] if len(block) > 1 else block[0]
        last.weight.div_(scale)
        last.bias.div_(scale)
    for layer, factor in ((peer.rpn.head.cls_logits, 40), (peer.rpn.head.bbox_pred, 4),
                          (peer.roi_heads.box_predictor.cls_score, 12)):  # fmt: skip
        layer.weight.mul_(factor)
    return peer
