"""The kinds and rules a detector chooses from: one enum a question on which the published frameworks differ."""

import enum


class BackboneKind(enum.Enum):
    """Where the backbone's layers come from."""

    RESNET = "resnet"  # ResNet and ResNeXt
    TIMM = "timm"  # any network of the timm library with `features_only`


class FeatureKind(enum.Enum):
    """The feature maps that the region proposal network and the heads look at."""

    FPN = "fpn"  # a pyramid P2..P6
    C4 = "c4"  # the fourth stage (stride 16); the fifth is the heads' own and runs on every RoI
    C5 = "c5"  # the fifth stage (stride 32); table 2d of the paper
    DC5 = "dc5"  # the fifth stage, dilated (stride 16); Detectron2


class Norm(enum.Enum):
    """Normalisation of a part of the network."""

    NONE = "none"  # a bias instead; necks and heads only
    FROZEN = "frozen"  # batch statistics and affine are constants (fine-tuning from ImageNet)
    FIXED = "fixed"  # batch statistics are constants, the affine is trained (MMDetection)
    BATCH = "batch"
    SYNC = "sync"  # batch norm over all training workers
    GROUP = "group"  # 32 groups


class StrideIn(enum.Enum):
    """The convolution of a bottleneck that carries the stride."""

    FIRST_1X1 = "first_1x1"  # Caffe: the original MSRA weights
    CONV_3X3 = "conv_3x3"  # torchvision, ResNeXt


class LevelRule(enum.Enum):
    """Where the epsilon stands in the choice of a RoI's pyramid level (FPN paper, equation 1)."""

    TORCHVISION = "torchvision"  # floor(4 + log2(sqrt(area) / 224) + 1e-6)
    DETECTRON2 = "detectron2"  # floor(4 + log2(sqrt(area) / 224 + 1e-8))
    MMDETECTION = "mmdetection"  # floor(log2(sqrt(area) / 56 + 1e-6)), counted from the finest level


class PoolOperation(enum.Enum):
    """How a RoI becomes a crop of fixed size (table 2c of the paper)."""

    ALIGN = "align"
    POOL = "pool"  # corners and bins rounded; always the maximum
    WARP = "warp"  # corners rounded, bilinear samples


class PoolReduction(enum.Enum):
    """What becomes of the samples of a bin."""

    AVERAGE = "average"
    MAX = "max"


class PasteRule(enum.Enum):
    """How an M x M mask probability becomes pixels of the picture."""

    GRID_SAMPLE = "grid_sample"  # Detectron2, MMDetection: bilinear at pixel centres, >= threshold
    PADDED_RESIZE = "padded_resize"  # torchvision, Caffe2: pad by one, integer box, > threshold


class MaskKind(enum.Enum):
    """The layers of the mask head (table 2e of the paper)."""

    FCN = "fcn"
    MLP = "mlp"


class MaskActivation(enum.Enum):
    """How mask logits become probabilities (table 2b of the paper)."""

    SIGMOID = "sigmoid"  # each class on its own, binary cross entropy
    SOFTMAX = "softmax"  # classes and background compete in each cell, multinomial cross entropy


class MaskTarget(enum.Enum):
    """How a ground-truth mask becomes an M x M target."""

    BINARY = "binary"  # aligned RoIAlign, then >= 0.5 (MMDetection, Detectron2 with bit masks)
    SOFT = "soft"  # unaligned RoIAlign, left as it is (torchvision)


class KeypointScore(enum.Enum):
    """What stands for the confidence of a keypoint."""

    PROBABILITY = "probability"  # Detectron2: the peak's share of the heat map
    LOGIT = "logit"  # torchvision


class RoIKind(enum.Enum):
    """The second stage."""

    STANDARD = "standard"
    CASCADE = "cascade"  # Cascade R-CNN (Cai and Vasconcelos 2018)
    HTC = "htc"  # Hybrid Task Cascade (Chen et al. 2019)


class CascadeMerge(enum.Enum):
    """What of the cascade's stages is averaged into the class scores."""

    LOGITS = "logits"  # MMDetection
    PROBABILITIES = "probabilities"  # Detectron2


class LossDivisor(enum.Enum):
    """What the region proposal network's summed losses are divided by."""

    SAMPLED = "sampled"  # the anchors in the loss (torchvision)
    ONE_POSITIVE = "one_positive"  # the same, a picture without positives counting as if it had one (MMDetection)
    CONFIGURED = "configured"  # `samples` times pictures, however many were found (Detectron2)


class ResizeKernel(enum.Enum):
    """The interpolation of the picture resize."""

    FLOAT_BILINEAR = "float_bilinear"  # torch, float32, no antialias (torchvision's detection transform)
    PIL_BILINEAR = "pil_bilinear"  # Pillow on bytes, antialiased where it shrinks (Detectron2)
    CV2_BILINEAR = "cv2_bilinear"  # OpenCV on bytes, not antialiased (MMDetection)


class ResizeRounding(enum.Enum):
    """How a scaled side becomes whole pixels."""

    FLOOR = "floor"  # torchvision; can be one below the short edge asked for
    HALF_UP = "half_up"  # MMDetection, Detectron2


class ChannelOrder(enum.Enum):
    """Order of the colour channels that enter the network."""

    RGB = "rgb"
    BGR = "bgr"
