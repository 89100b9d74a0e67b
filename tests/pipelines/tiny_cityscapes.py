"""A small copy of Cityscapes in its true layout: pictures, polygons and the instance images drawn from them."""

import json

import numpy as np
from PIL import Image, ImageDraw

COUNTED = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "caravan": 29, "bicycle": 33}
IDS = {"out of roi": 3, "road": 7, "building": 11, "sky": 23, "license plate": -1, **COUNTED}
OBJECTS = ["car", "car", "person", "cargroup", "bicycle", "rider", "license plate", "caravan", "persongroup", "bus"]


def box(x1, y1, x2, y2):
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def polygons(seed, height, width):
    """A street: stuff first, then objects from far to near, so that later ones hide parts of earlier ones."""
    rng = np.random.default_rng(seed)
    things = [
        {"label": "out of roi", "polygon": box(0, 0, width, height)},
        {"label": "sky", "polygon": box(2, 2, width - 2, height // 2)},
        {"label": "road", "polygon": box(2, height // 2, width - 2, height - 2)},
    ]
    for label in OBJECTS:
        x, y = int(rng.integers(5, width - 60)), int(rng.integers(height // 3, height - 40))
        w, h = int(rng.integers(14, 55)), int(rng.integers(12, 35))
        things.append({"label": label, "polygon": [[x, y + 3], [x + w // 2, y], [x + w, y + h // 2], [x + 4, y + h]]})
    things.append({"label": "truck", "polygon": box(0, 0, 50, 50), "deleted": 1})
    hidden = things[3]["polygon"]  # drawn again on top: the first car has no pixel left, and still has its number
    things.append({"label": "building", "polygon": box(*np.min(hidden, 0).tolist(), *np.max(hidden, 0).tolist())})
    return {"imgHeight": height, "imgWidth": width, "objects": things}


def instance_image(body):
    """Drawn as Cityscapes' tool does: class * 1000 + number for objects, the class alone for groups and stuff."""
    picture = Image.new("I", (body["imgWidth"], body["imgHeight"]), 0)
    pen, seen = ImageDraw.Draw(picture), dict.fromkeys(COUNTED, 0)
    for thing in body["objects"]:
        label = thing["label"].removesuffix("group")
        if thing.get("deleted") or IDS[label] < 0:
            continue
        value = IDS[label]
        if label in COUNTED and label == thing["label"]:
            value, seen[label] = 1000 * value + seen[label], seen[label] + 1
        pen.polygon([tuple(point) for point in thing["polygon"]], fill=value)
    return np.array(picture).astype(np.uint16)


def write(root, cities=(("aachen", 2), ("bochum", 1)), split="train", size_hw=(128, 256)):
    """Write the pictures of a split; returns their base names, such as aachen/aachen_000000_000019."""
    names = []
    for city, count in cities:
        for number in range(count):
            name = f"{city}/{city}_{number:06d}_000019"
            names.append(name)
            body = polygons(len(names), *size_hw)
            picture = np.random.default_rng(number).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
            for folder in ("leftImg8bit", "gtFine"):
                (root / folder / split / city).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png")
            labels = root / "gtFine" / split
            (labels / f"{name}_gtFine_polygons.json").write_text(json.dumps(body))
            Image.fromarray(instance_image(body)).save(labels / f"{name}_gtFine_instanceIds.png")
    return names
