"""Every dataclass and switch that describes a detector; plain values, checked when they are made.

A detector is one frozen `DetectorConfig`. What differs between torchvision, Detectron2 and MMDetection is an
explicit field here, fixed by a preset, so that a checkpoint of any of them runs with the rules it was trained with.
"""

from model.config.backbone import BackboneConfig, PictureConfig
from model.config.detector import DetectorConfig
from model.config.fit import require_fit
from model.config.heads import (
    COCO_PERSON_FLIP,
    BoxHeadConfig,
    CascadeConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    SemanticHeadConfig,
)
from model.config.rpn import AnchorConfig, PoolerConfig, RpnConfig
from model.config.switches import (
    BackboneKind,
    CascadeMerge,
    ChannelOrder,
    FeatureKind,
    KeypointScore,
    LevelRule,
    LossDivisor,
    MaskActivation,
    MaskKind,
    MaskTarget,
    Norm,
    PasteRule,
    PoolOperation,
    PoolReduction,
    ResizeKernel,
    ResizeRounding,
    RoIKind,
    StrideIn,
)

__all__ = [
    "COCO_PERSON_FLIP",
    "AnchorConfig",
    "BackboneConfig",
    "BackboneKind",
    "BoxHeadConfig",
    "CascadeConfig",
    "CascadeMerge",
    "ChannelOrder",
    "DetectorConfig",
    "FeatureKind",
    "KeypointHeadConfig",
    "KeypointScore",
    "LevelRule",
    "LossDivisor",
    "MaskActivation",
    "MaskHeadConfig",
    "MaskKind",
    "MaskTarget",
    "Norm",
    "PasteRule",
    "PictureConfig",
    "PoolOperation",
    "PoolReduction",
    "PoolerConfig",
    "ResizeKernel",
    "ResizeRounding",
    "RoIKind",
    "RpnConfig",
    "SemanticHeadConfig",
    "StrideIn",
    "require_fit",
]
