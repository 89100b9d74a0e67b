"""Changes of what stands behind the backbone: each takes a detector and returns it with other features or heads."""

from dataclasses import replace

from model.config import CascadeConfig, CascadeMerge, DetectorConfig, FeatureKind, Norm, RoIKind, SemanticHeadConfig


def without_masks(config: DetectorConfig) -> DetectorConfig:
    """Faster R-CNN."""
    return replace(config, mask=replace(config.mask, enabled=False))


def with_keypoints(config: DetectorConfig) -> DetectorConfig:
    """Persons, and their 17 keypoints, besides what else the detector finds."""
    return replace(config, num_classes=1, keypoint=replace(config.keypoint, enabled=True))


def with_normalised_heads(config: DetectorConfig, norm: Norm) -> DetectorConfig:
    """A norm after each convolution of the mask head and of a box head of four convolutions and one layer.

    The head of Wu and He, Group Normalization, 2018.
    """
    box = replace(config.box, num_convs=4, num_fcs=1, norm=norm)
    return replace(config, box=box, mask=replace(config.mask, norm=norm))


def with_norm(config: DetectorConfig, norm: Norm) -> DetectorConfig:
    """The same kind of norm in the backbone, the pyramid and the heads."""
    changed = with_normalised_heads(config, norm)
    return replace(changed, fpn_norm=norm, backbone=replace(config.backbone, norm=norm))


def c4(config: DetectorConfig) -> DetectorConfig:
    """The fourth stage's map alone; the fifth stage is the head of boxes and masks, as in Detectron2 and MMDetection.

    It halves a crop of 14 x 14 (the paper leaves one of 7 x 7 as it is).
    """
    rpn = replace(config.rpn, pre_nms_train=12_000, pre_nms_test=6000, post_nms_train=2000)
    return replace(
        config,
        features=FeatureKind.C4,
        rpn=rpn,
        pooler=replace(config.pooler, box_size=14, mask_size=7),
        box=replace(config.box, num_fcs=0),
        mask=replace(config.mask, num_convs=0),
    )


def mmdetection_c4(config: DetectorConfig) -> DetectorConfig:
    """MMDetection's C4: anchors inside the picture only, and no object takes a proposal from another."""
    changed = c4(config)
    return replace(changed, rpn=replace(changed.rpn, border_px=0), box=replace(changed.box, reassign_best=False))


def detectron2_single_map(config: DetectorConfig) -> DetectorConfig:
    """Detectron2 pads pictures to the batch's largest only, where no pyramid needs more."""
    return replace(config, picture=replace(config.picture, size_divisor=1))


def dc5(config: DetectorConfig) -> DetectorConfig:
    """The fifth stage's map, dilated to stride 16, with the heads of a pyramid."""
    rpn = replace(config.rpn, pre_nms_train=12_000, pre_nms_test=6000, post_nms_train=2000)
    return replace(config, features=FeatureKind.DC5, rpn=rpn)


def c5(config: DetectorConfig) -> DetectorConfig:
    """The fifth stage's map at stride 32 with the heads of a pyramid: table 2d of the paper."""
    return replace(dc5(config), features=FeatureKind.C5)


def detectron2_cascade(config: DetectorConfig) -> DetectorConfig:
    """Cascade R-CNN by Detectron2's rules; its one mask head is trained on the first stage's boxes."""
    cascade = CascadeConfig(
        delta_weights=((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        loss_weights=(1.0, 1.0, 1.0),
        resample=False,
        feature_gradient=1 / 3,
        mask_each_stage=False,
        merge=CascadeMerge.PROBABILITIES,
    )
    return replace(
        config,
        roi=RoIKind.CASCADE,
        rpn=replace(config.rpn, post_nms_train=2000),
        box=replace(config.box, class_agnostic=True),
        cascade=cascade,
    )


def mmdetection_cascade(config: DetectorConfig) -> DetectorConfig:
    """Cascade Mask R-CNN by MMDetection's rules: three mask heads, each trained on its own stage's samples."""
    return replace(
        config,
        roi=RoIKind.CASCADE,
        rpn=replace(config.rpn, smooth_l1_beta=1 / 9, border_px=0, post_nms_train=2000),
        box=replace(config.box, class_agnostic=True, reassign_best=False, smooth_l1_beta=1.0),
    )


def htc_without_semantic(config: DetectorConfig) -> DetectorConfig:
    """Hybrid Task Cascade by MMDetection's rules, without its semantic branch.

    Masks are the mean of three stages. MMDetection 3.3.0 returns the last stage's alone by an oversight; the published
    numbers were made with 2.x, which averages.
    """
    cascade = mmdetection_cascade(config)
    box = replace(cascade.box, reassign_best=True, score_threshold=0.001)
    return replace(cascade, roi=RoIKind.HTC, box=box)


def htc(config: DetectorConfig, semantic: SemanticHeadConfig) -> DetectorConfig:
    """Hybrid Task Cascade with a semantic branch."""
    return replace(htc_without_semantic(config), semantic=semantic)


COCO_STUFF = SemanticHeadConfig(enabled=True, num_classes=183)
"""HTC's semantic branch on the maps of COCO-stuff."""

NUIMAGES_SURFACES = SemanticHeadConfig(enabled=True, num_classes=32, ignore_label=0)
"""HTC's semantic branch on the maps of nuImages, where 0 is unlabelled."""
