"""A small, wholly known COCO data set on disk, for the tests of preparing."""

import io
import json

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def jpeg(height=24, width=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def image(image_id, **changes):
    return {"id": image_id, "file_name": f"{image_id}.jpg", "height": 24, "width": 32, **changes}


def annotation(annotation_id, image_id, **changes):
    made = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [2.0, 3.0, 10.0, 8.0],
        "area": 40.0,
        "iscrowd": 0,
        "segmentation": [[2.0, 3.0, 12.0, 3.0, 12.0, 11.0]],
    }
    return {**made, **changes}


def write(folder, images=None, annotations=None, categories=CATEGORIES, pictures=None):
    """Write pictures and annotations; returns (images folder, annotation file)."""
    images = [image(i) for i in range(1, 8)] if images is None else images
    if annotations is None:
        annotations = [annotation(10 * i + k, i) for i in range(1, 8) for k in range(i % 3)]
    pictures = [f"{i}.jpg" for i in range(1, 8)] if pictures is None else pictures
    root = folder / "pictures"
    root.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(pictures):
        (root / name).write_bytes(jpeg(seed=position))
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": list(categories)}))
    return str(root), str(file)
