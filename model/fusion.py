"""Weighted box fusion (Solovyev et al. 2021) by its authors' library (extra `wbf`)."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor

_SAME_OBJECT_IOU = 0.55  # the library's own
_MISSING = "merging by weighted box fusion needs the library ensemble-boxes: pip install 'maskray[wbf]'"


def require() -> None:
    """Say early where the library is missing.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ensemble_boxes  # noqa: F401, PLC0415 - an optional extra
    except ImportError as error:
        raise ValueError(_MISSING) from error


def fuse(boxes: Tensor, scores: Tensor, labels: Tensor, num_views: int) -> tuple[Tensor, Tensor, Tensor]:
    """One box an object: the score-weighted mean of those that overlap it; its score falls with the views that miss it.

    Args:
        boxes: float32 [N, 4], x1, y1, x2, y2 >= 0, in an order that does not depend on the views': the library ranks
            equal scores by it.
        scores: float32 [N].
        labels: int64 [N].
        num_views: all of them, those that found nothing included.

    Returns:
        Boxes float32 [D, 4], scores float32 [D] and labels int64 [D], best first.

    Raises:
        ValueError: the library is not installed.
    """
    require()
    from ensemble_boxes import weighted_boxes_fusion  # noqa: PLC0415

    # The library takes 0..1; a power of two changes no bit.
    scale = 2.0 ** math.ceil(math.log2(max(1.0, float(boxes.max())))) if len(boxes) else 1.0
    # All as one list, since its own order would be that of the views; the others count as views that are there.
    empty = [np.zeros((0, 4))] * (num_views - 1), [np.zeros(0)] * (num_views - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of boxes without an area, which it leaves out
        fused, confidence, classes = weighted_boxes_fusion(
            [(boxes.double() / scale).numpy(), *empty[0]], [scores.double().numpy(), *empty[1]],
            [labels.numpy(), *empty[1]], iou_thr=_SAME_OBJECT_IOU,
        )  # fmt: skip
    order = np.lexsort([*fused.T, classes, -confidence])
    return (
        torch.from_numpy(fused[order] * scale).float(),
        torch.from_numpy(confidence[order]).float(),
        torch.from_numpy(classes[order]).to(torch.int64),
    )
