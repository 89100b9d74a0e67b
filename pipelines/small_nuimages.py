"""The generated shapes as a small copy of nuImages: its ten linked tables, pictures of key frames, masks in base64.

As in nuImages, a mask is what is seen of an object and its box is that of the whole, and there are no crowds. Of the
sensors there is one camera, and of each sample its key frame; what is drivable is the lower half of the background.
"""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines import masks
from pipelines.outlines import tight_box_xywh
from pipelines.shapes import Picture, ShapesConfig, claim, jpeg, render

NAMES = ("vehicle.car", "human.pedestrian.adult", "vehicle.bicycle", "vehicle.truck", "vehicle.motorcycle")
"""What the shapes are called, in the order of `shapes.CATEGORIES`."""

CATEGORIES = (
    "animal", "flat.driveable_surface", "human.pedestrian.adult", "human.pedestrian.child",
    "human.pedestrian.construction_worker", "human.pedestrian.personal_mobility", "human.pedestrian.police_officer",
    "human.pedestrian.stroller", "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.ego",
    "vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck",
)  # fmt: skip
"""All of nuImages, in the order of its table."""

_VERSIONS = {"train": "v1.0-train", "val": "v1.0-val", "unlabeled": "v1.0-test"}
_CHANNEL = "CAM_FRONT"
_SURFACE = "flat.driveable_surface"

Tables = dict[str, list[dict[str, Any]]]


def generate(config: ShapesConfig, out: Path) -> None:
    """Write v1.0-train, v1.0-val and, without labels, v1.0-test; the same again gives the same bytes.

    Raises:
        ValueError: ``out`` holds something else.
    """
    claim(config, out, "nuimages")
    without_crowds = dataclasses.replace(config, crowds=0.0)
    for split, count in (("train", config.train), ("val", config.val), ("unlabeled", config.unlabelled)):
        if not count:
            continue
        version = _VERSIONS[split]
        tables = _tables()
        for index in range(count):
            picture = render(without_crowds, split, index)
            frame = _add_frame(tables, out, version, index, picture)
            if split != "unlabeled":
                _annotate(tables, frame, picture)
        (out / version).mkdir(exist_ok=True)
        for name, rows in tables.items():
            (out / version / f"{name}.json").write_text(json.dumps(rows), "utf-8")


def _token(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _tables() -> Tables:
    """What is the same for all frames."""
    tables: Tables = {name: [] for name in ("ego_pose", "sample", "sample_data", "object_ann", "surface_ann")}
    tables["attribute"] = [{"token": _token("attribute"), "name": "vehicle.moving", "description": ""}]
    tables["category"] = [{"token": _token("category", n), "name": n, "description": ""} for n in CATEGORIES]
    tables["log"] = [{"token": _token("log"), "logfile": "n000-generated", "vehicle": "n000",
                      "date_captured": "2020-01-01", "location": "generated"}]  # fmt: skip
    tables["sensor"] = [{"token": _token("sensor"), "channel": _CHANNEL, "modality": "camera"}]
    tables["calibrated_sensor"] = [
        {"token": _token("calibrated"), "sensor_token": _token("sensor"), "translation": [0.0] * 3,
         "rotation": [1.0, 0.0, 0.0, 0.0], "camera_intrinsic": np.eye(3).tolist(), "camera_distortion": [0.0] * 5}
    ]  # fmt: skip
    return tables


def _add_frame(tables: Tables, out: Path, version: str, index: int, picture: Picture) -> str:
    """Write a picture and its rows; its token."""
    height, width = picture.rgb.shape[:2]
    sample, frame, pose = (_token(version, name, index) for name in ("sample", "frame", "pose"))
    time = 1_577_836_800_000_000 + 500_000 * index
    file = f"samples/{_CHANNEL}/n000-{version}__{_CHANNEL}__{time}.jpg"
    (out / file).parent.mkdir(parents=True, exist_ok=True)
    (out / file).write_bytes(jpeg(picture))
    tables["ego_pose"].append(
        {"token": pose, "translation": [0.0] * 3, "rotation": [1.0, 0.0, 0.0, 0.0], "timestamp": time, "speed": 0.0,
         "rotation_rate": [0.0] * 3, "acceleration": [0.0] * 3}
    )  # fmt: skip
    tables["sample_data"].append(
        {"token": frame, "sample_token": sample, "ego_pose_token": pose, "filename": file, "fileformat": "jpg",
         "calibrated_sensor_token": _token("calibrated"), "width": width, "height": height, "timestamp": time,
         "is_key_frame": True, "next": "", "prev": ""}
    )  # fmt: skip
    tables["sample"].append({"token": sample, "timestamp": time, "log_token": _token("log"), "key_camera_token": frame})
    return frame


def _annotate(tables: Tables, frame: str, picture: Picture) -> None:
    drivable = np.ones(picture.rgb.shape[:2], np.uint8)
    drivable[: len(drivable) // 2] = 0
    for place, ((label, _, mask), whole) in enumerate(zip(picture.objects, picture.whole, strict=True)):
        drivable[mask > 0] = 0
        x, y, width, height = map(int, tight_box_xywh(whole))
        tables["object_ann"].append(
            {"token": _token(frame, place), "sample_data_token": frame,
             "category_token": _token("category", NAMES[label]), "attribute_tokens": [],
             "bbox": [x, y, x + width, y + height], "mask": _rle(mask)}
        )  # fmt: skip
    tables["surface_ann"].append(
        {"token": _token(frame, "surface"), "sample_data_token": frame, "category_token": _token("category", _SURFACE),
         "mask": _rle(drivable)}
    )  # fmt: skip


def _rle(mask: npt.NDArray[np.uint8]) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": base64.b64encode(masks.encode(mask)).decode()}
