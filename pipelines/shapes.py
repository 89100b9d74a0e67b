"""The demo's data set: pictures of textured shapes that hide each other, in the true layout of COCO 2017.

Owns what is drawn and how it is annotated. A picture depends on (config, split, position in it) only: a folder can be
generated again, byte for byte under the same numpy and Pillow, and a larger split begins with a smaller one's pictures.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.outlines import tight_box_xywh, to_polygons, to_run_lengths
from pipelines.shape_drawing import Layer, background, lighting, shape

# Ids have gaps, as COCO's have: a reader that takes them for labels must fail on the demo.
CATEGORIES = ((1, "disc"), (3, "triangle"), (7, "ring"), (18, "square"), (44, "star"))
_SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
KEYPOINTS = ("nose", *(f"{side}_{part}" for part in _SIDES for side in ("left", "right")))
_SPLITS: tuple[str, ...] = ("train", "val", "unlabeled")
_ASPECTS_HW: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.0, 1.0), (0.75, 1.0), (1.0, 0.75))
_INFO = {"description": "maskray demo shapes", "version": "1", "year": 2017}
_LICENCES = [{"id": 1, "name": "generated", "url": ""}]


@dataclass(frozen=True)
class ShapesConfig:
    """What to generate.

    Attributes:
        train: Training pictures, annotated.
        val: Held-out pictures, annotated.
        unlabelled: Pictures without annotations; COCO's folder keeps their truth in hidden_unlabeled2017.json, for
            audits only.
        size_px: Longest side; a quarter of the pictures are 4:3, a quarter 3:4, the rest square.
        classes: How many of disc, triangle, ring, square and star are used, 3 to 5.
        colour_cue: Share of objects, 0 to 1, whose hue hints at the class; 0 leaves the outline alone.
        noise: Standard deviation of the pixel noise on a 0..1 scale.
        empty: Share of pictures without an object, 0 to 1.
        crowds: Share of pictures with a crowd region, 0 to 1.
        min_visible_px: Objects with fewer visible pixels are drawn but not annotated.
        keypoints: Objects carry the 17 keypoints of COCO's persons, at fixed places of their boxes.
        seed: Everything random follows from it.

    Raises:
        ValueError: A value is out of its range.
    """

    train: int = 240
    val: int = 60
    unlabelled: int = 240
    size_px: int = 128
    classes: int = 4
    colour_cue: float = 0.8
    noise: float = 0.03
    empty: float = 0.05
    crowds: float = 0.06
    min_visible_px: int = 40
    seed: int = 0
    keypoints: bool = False

    def __post_init__(self) -> None:
        """Check each value's range."""
        for name in ("train", "val", "unlabelled", "min_visible_px", "seed"):
            _require(name, getattr(self, name), 0, math.inf)
        for name in ("colour_cue", "noise", "empty", "crowds"):
            _require(name, getattr(self, name), 0, 1)
        _require("classes", self.classes, 3, len(CATEGORIES))
        _require("size_px", self.size_px, 48, 4096)


class _Placed(NamedTuple):
    label: int
    crowd: bool
    layer: Layer


class Picture(NamedTuple):
    """A rendered picture and the truth about it."""

    rgb: NDArray[np.uint8]
    """[H, W, 3]."""
    objects: list[tuple[int, bool, NDArray[np.uint8]]]
    """(label, crowd, visible mask [H, W] of 0 and 1), back to front."""
    whole: list[NDArray[np.uint8]]
    """Their masks as if nothing hid them."""


def generate(config: ShapesConfig, out: Path) -> None:
    """Write the data set under ``out``: pictures, then annotations; a finished one is kept.

    Args:
        config: What to generate.
        out: Folder to make; gets train2017, val2017, unlabeled2017, annotations and generator.json.

    Raises:
        ValueError: ``out`` holds something else, or shapes of another config; nothing is touched then.
    """
    files = ("instances_train2017", "instances_val2017", "image_info_unlabeled2017", "hidden_unlabeled2017")
    finished = [out / "annotations" / f"{name}.json" for name in files]
    claim(config, out)
    if all(path.exists() for path in finished):
        return
    finished[0].parent.mkdir(exist_ok=True)
    for split, count in zip(_SPLITS, (config.train, config.val, config.unlabelled), strict=True):
        truth = _write_split(config, split, count, out / f"{split}2017")
        if split != "unlabeled":
            _write_json(out / "annotations" / f"instances_{split}2017.json", truth)
            continue
        bare = {key: value for key, value in truth.items() if key != "annotations"}
        _write_json(finished[2], bare)
        _write_json(finished[3], truth)


def render(config: ShapesConfig, split: str, index: int) -> Picture:
    """Draw picture number ``index`` of ``split`` (train, val or unlabeled).

    Args:
        config: What to generate.
        split: One of train, val, unlabeled.
        index: Position in the split, from 0.

    Returns:
        Pixels and the visible masks of the annotated objects.

    Raises:
        ValueError: ``split`` is none of the three.
    """
    if split not in _SPLITS:
        raise ValueError(f"no split {split!r} in the shapes: choose one of {', '.join(_SPLITS)}")
    rng = np.random.default_rng([config.seed, _SPLITS.index(split), index])
    tall, wide = _ASPECTS_HW[int(rng.integers(len(_ASPECTS_HW)))]
    height, width = round(config.size_px * tall), round(config.size_px * wide)
    rgb = background(rng, height, width)
    scene = _scene(rng, config, height, width)
    for placed in scene:
        rgb += placed.layer.alpha[..., None] * (placed.layer.rgb - rgb)
    rgb *= lighting(rng, height, width)[..., None]
    rgb += rng.normal(0.0, config.noise, rgb.shape).astype(np.float32)
    hidden = np.zeros((height, width), bool)
    objects, whole = [], []
    for label, crowd, layer in reversed(scene):
        visible = layer.mask & ~hidden
        hidden |= layer.mask
        if visible.sum() >= config.min_visible_px:
            objects.append((label, crowd, visible.astype(np.uint8)))
            whole.append(layer.mask.astype(np.uint8))
    return Picture((rgb.clip(0.0, 1.0) * 255.0 + 0.5).astype(np.uint8), objects[::-1], whole[::-1])


def _scene(rng: np.random.Generator, config: ShapesConfig, height: int, width: int) -> list[_Placed]:
    """Shapes back to front, pushed against each other, but never so that one is nearly hidden."""
    if rng.random() < config.empty:
        return []
    scene: list[_Placed] = []
    if rng.random() < config.crowds:
        scene.append(_crowd(rng, config, height, width))
    centre: tuple[float, float] | None = None
    for _ in range(int(rng.integers(1, 6))):
        for _attempt in range(10):
            radius = config.size_px * float(rng.uniform(0.10, 0.24))
            x, y = float(rng.uniform(0.08, 0.92)) * width, float(rng.uniform(0.08, 0.92)) * height
            if centre is not None and rng.random() < 0.5:
                turn, reach = float(rng.uniform(0, 2 * math.pi)), radius * float(rng.uniform(0.8, 1.5))
                x, y = centre[0] + reach * math.cos(turn), centre[1] + reach * math.sin(turn)
            label = int(rng.integers(config.classes))
            name, hue = CATEGORIES[label][1], _hue(rng, config, label)
            layer = shape(rng, name, hue, (height, width), (x, y, radius))
            if _fits(scene, layer):
                scene.append(_Placed(label, False, layer))
                centre = (x, y)
                break
    return scene


def _hue(rng: np.random.Generator, config: ShapesConfig, label: int) -> float:
    """A hue near the class's own, or any."""
    if rng.random() >= config.colour_cue:
        return float(rng.random())
    return (label + float(rng.normal(0.0, 0.12))) / config.classes


def _fits(scene: list[_Placed], new: Layer) -> bool:
    """Whether ``new`` on top leaves each shape 40 % visible, and touches at most two sides of the picture."""
    hidden = new.mask
    if hidden.sum() < 100 or hidden[[0, -1], :].any(axis=1).sum() + hidden[:, [0, -1]].any(axis=0).sum() > 2:
        return False
    for placed in reversed(scene):
        mask = placed.layer.mask
        if (mask & ~hidden).sum() < 0.4 * mask.sum():
            return False
        hidden = hidden | mask
    return True


def _crowd(rng: np.random.Generator, config: ShapesConfig, height: int, width: int) -> _Placed:
    """Many small shapes of one class, packed, as one layer."""
    label, middle = int(rng.integers(config.classes)), rng.uniform(0.25, 0.75, 2) * (width, height)
    alpha, rgb = np.zeros((height, width), np.float32), np.zeros((height, width, 3), np.float32)
    for _ in range(int(rng.integers(8, 15))):
        x, y = middle + rng.normal(0.0, 0.10, 2) * config.size_px
        circle = (float(x), float(y), config.size_px * float(rng.uniform(0.05, 0.08)))
        part = shape(rng, CATEGORIES[label][1], _hue(rng, config, label), (height, width), circle)
        rgb += part.alpha[..., None] * (part.rgb - rgb)
        alpha = np.maximum(alpha, part.alpha)
    return _Placed(label, True, Layer(alpha, rgb))


def _write_split(config: ShapesConfig, split: str, count: int, folder: Path) -> dict[str, object]:
    """Write one split's pictures; returns its annotations in COCO's form."""
    folder.mkdir(exist_ok=True)
    images, annotations = [], []
    for index, image_id in zip(range(count), _image_ids(config.seed, split), strict=False):
        picture = render(config, split, index)
        name = f"{image_id:012d}.jpg"
        (folder / name).write_bytes(jpeg(picture))
        height, width = picture.rgb.shape[:2]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width, "license": 1})
        annotations += _annotations(picture, image_id, config.keypoints)
    used = CATEGORIES[: config.classes]
    points = {"keypoints": list(KEYPOINTS), "skeleton": []} if config.keypoints else {}
    return {
        "info": _INFO,
        "licenses": _LICENCES,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "shape", **points} for number, name in used],
    }


def jpeg(picture: Picture) -> bytes:
    """A picture's pixels, compressed."""
    data = BytesIO()
    Image.fromarray(picture.rgb).save(data, "JPEG", quality=90)
    return data.getvalue()


def _image_ids(seed: int, split: str) -> Iterator[int]:
    """Rising ids with gaps, disjoint between splits."""
    number = _SPLITS.index(split)
    rng, image_id = np.random.default_rng([seed, number]), number * 10_000_000
    while True:
        image_id += int(rng.integers(1, 40))
        yield image_id


def _annotations(picture: Picture, image_id: int, keypoints: bool) -> list[dict[str, object]]:
    """COCO's annotation rows of one picture: crowds as uncompressed run lengths, objects as polygons."""
    rows: list[dict[str, object]] = []
    for position, (label, crowd, mask) in enumerate(picture.objects):
        runs = {"size": list(mask.shape), "counts": to_run_lengths(mask)}
        rows.append(
            {
                "id": image_id * 100 + 7 * position + 1,
                "image_id": image_id,
                "category_id": CATEGORIES[label][0],
                "iscrowd": int(crowd),
                "area": int(mask.sum()),
                "bbox": list(tight_box_xywh(mask)),
                "segmentation": runs if crowd else to_polygons(mask),
                **(_keypoints(mask, crowd) if keypoints else {}),
            }
        )
    return rows


def _keypoints(mask: NDArray[np.uint8], crowd: bool) -> dict[str, object]:
    """COCO's x, y, v of each keypoint, on rows of the box from head to foot: seen where the object is, else hidden."""
    x, y, width, height = tight_box_xywh(mask)
    values: list[int] = []
    for at, name in enumerate(KEYPOINTS):
        side = 0.8 if name.startswith("left") else 0.2 if name.startswith("right") else 0.5
        column, row = int(x + side * (width - 1)), int(y + (at + 0.5) / len(KEYPOINTS) * (height - 1))
        values += [0, 0, 0] if crowd else [column, row, 2 if mask[row, column] else 1]
    return {"keypoints": values, "num_keypoints": 0 if crowd else len(KEYPOINTS)}


def claim(config: ShapesConfig, out: Path, source: str = "") -> None:
    """Make a folder that of these shapes in the layout of a source, by a file in it; empty is COCO's.

    Raises:
        ValueError: ``out`` holds something else, or shapes of another config; nothing is touched then.
    """
    marker, wanted = out / "generator.json", json.loads(json.dumps(asdict(config)))
    if source:
        wanted["source"] = source
    if not wanted["keypoints"]:
        del wanted["keypoints"]  # folders older than this setting are the same ones
    if marker.exists():
        if json.loads(marker.read_text("utf-8")) != wanted:
            raise ValueError(f"{out} holds shapes of another config: choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and was not made by this generator: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_json(marker, wanted)


def _write_json(path: Path, value: object) -> None:
    """Whole or not at all: a killed run must not leave half a file that counts as finished."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value), "utf-8")
    part.replace(path)


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"shapes: {name} is {value}, wanted {low} to {high}: change {name}")
