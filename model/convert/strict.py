"""State dicts of one framework to ours and back, where every key must be known."""

from collections.abc import Mapping

from torch import Tensor

from model.convert.conversion import Framework, convert, to_theirs


def _strict(state: Mapping[str, Tensor], framework: Framework) -> dict[str, Tensor]:
    found = convert(state, framework)
    if found.leftover:
        raise ValueError(
            f"the weights hold {found.leftover[0]!r}, which {framework.value}'s detectors do not have "
            f"({len(found.leftover)} such names): give the weights of a detector that maskray knows"
        )
    return found.state


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights from torchvision's; class c of theirs is label c - 1, and the background comes last.

    Raises:
        ValueError: a name no rule covers, or no class scores.
    """
    return _strict(state, Framework.TORCHVISION)


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights from Detectron2's.

    Raises:
        ValueError: a name no rule covers, or no class scores.
    """
    return _strict(state, Framework.DETECTRON2)


def from_mmdetection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights from MMDetection's (2.x, 3.x).

    Raises:
        ValueError: a name no rule covers, or no class scores.
    """
    return _strict(state, Framework.MMDETECTION)


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of torchvision from ours; the background's rows of deltas and masks, which it never reads, are zeros.

    Raises:
        ValueError: a part that torchvision's detectors lack.
    """
    return to_theirs(state, Framework.TORCHVISION)


def to_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detectron2's weights from ours.

    Raises:
        ValueError: a part that Detectron2's detectors lack.
    """
    return to_theirs(state, Framework.DETECTRON2)


def to_mmdetection(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's weights from ours, with the counters of its norms.

    Raises:
        ValueError: a part that MMDetection's detectors lack.
    """
    return to_theirs(state, Framework.MMDETECTION)
