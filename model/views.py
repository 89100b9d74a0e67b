"""Views of a picture for test-time augmentation: a size and perhaps a mirror, and the way there and back."""

import dataclasses

import torch
from torch import Tensor

from model.config import PictureConfig
from model.picture import resized_hw

_FAST = (1.0, 1.25)
_PAPER = tuple(eighths / 8 for eighths in range(4, 13))


@dataclasses.dataclass(frozen=True)
class View:
    """One way to look at a picture.

    Attributes:
        short_edge_px: the shorter side after the resize.
        flip: left and right change places.
    """

    short_edge_px: int
    flip: bool = False

    def __str__(self) -> str:
        """As `parse_views` reads it: 800, or 800f when flipped."""
        return f"{self.short_edge_px}{'f' if self.flip else ''}"


def parse_views(text: str, picture: PictureConfig) -> tuple[View, ...]:
    """The views that a user asked for.

    Args:
        text: `none` (the picture as the detector was trained on it), `fast` (4 views: that size and 1.25 times it,
            each also flipped), `paper` (18: half to one and a half times that size by eighths, each also flipped;
            400..1200 px of a detector for 800, Radosavovic et al. 2017), or short edges such as 800,800f,1000.
        picture: the detector's picture pipeline.

    Raises:
        ValueError: none of these.
    """
    scales = {"none": (1.0,), "fast": _FAST, "paper": _PAPER}.get(text)
    if scales is not None:
        edges = [round(picture.short_edge_px * scale) for scale in scales]
        return tuple(View(edge, flip) for edge in edges for flip in ((False,) if text == "none" else (False, True)))
    views = []
    for word in text.split(","):
        edge = word.strip().removesuffix("f")
        if not edge.isdecimal() or int(edge) < 1:
            raise ValueError(
                f"views are {text!r}, wanted none, fast, paper or short edges in pixels with an f for a flipped one, "
                "such as 800,800f,1000"
            )
        views.append(View(int(edge), word.strip().endswith("f")))
    return tuple(views)


def view_hw(height: int, width: int, view: View, picture: PictureConfig) -> tuple[int, int]:
    """Height and width of a picture in a view; the limit of the longer side grows with the shorter one.

    Raises:
        ValueError: the picture is so narrow that a side would vanish.
    """
    limit = round(picture.long_edge_px * view.short_edge_px / picture.short_edge_px)
    limits = dataclasses.replace(picture, short_edge_px=view.short_edge_px, long_edge_px=max(limit, view.short_edge_px))
    return resized_hw(height, width, view.short_edge_px, limits)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes [..., 4] in the mirror of a picture of that width: x becomes width - x, since boxes are continuous."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def rescale(boxes: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] float32 of a picture of one size in the pixels of another size."""
    return boxes * torch.tensor([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]] * 2, dtype=torch.float32)


def flip_heatmaps(heatmaps: Tensor, flip_pairs: tuple[tuple[int, int], ...]) -> Tensor:
    """Heat maps [D, J, S, S] in the mirror: columns reversed, and left keypoints in the place of right ones."""
    places = list(range(heatmaps.shape[1]))
    for one, other in flip_pairs:
        places[one], places[other] = other, one
    return heatmaps.flip(-1)[:, places]
