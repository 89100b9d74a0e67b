"""A small copy of nuImages in its true layout: ten linked tables, pictures of key frames and sweeps, base64 masks."""

import base64
import hashlib
import json

import numpy as np
from PIL import Image

from pipelines import masks

CATEGORIES = (
    "animal", "flat.driveable_surface", "human.pedestrian.adult", "human.pedestrian.child",
    "human.pedestrian.construction_worker", "human.pedestrian.personal_mobility", "human.pedestrian.police_officer",
    "human.pedestrian.stroller", "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle",
    "vehicle.bus.bendy", "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.ego",
    "vehicle.emergency.ambulance", "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck",
)  # fmt: skip
SURFACES = ("flat.driveable_surface", "vehicle.ego")


def token(*parts):
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def rle(bitmap):
    return {"size": list(bitmap.shape), "counts": base64.b64encode(masks.encode(bitmap)).decode()}


def ellipse(size_hw, box):
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    x1, y1, x2, y2 = box
    inside = ((x + 0.5 - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + ((y + 0.5 - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2 <= 1
    return inside.astype(np.uint8)


def _annotations(frame, size_hw, rng):
    height, width = size_hw
    surfaces, objects = [], []
    road, ego = np.zeros(size_hw, np.uint8), np.zeros(size_hw, np.uint8)
    road[height // 2 :], ego[-height // 8 :, width // 4 : -width // 4] = 1, 1
    for name, mask in (*zip(SURFACES, (road, ego), strict=True), (SURFACES[0], None)):
        made = None if mask is None else rle(mask)
        surfaces.append({"token": token("surface", frame, len(surfaces)), "sample_data_token": frame,
                         "category_token": token("category", name), "mask": made})  # fmt: skip
    for number, name in enumerate(rng.permutation([c for c in CATEGORIES if c not in SURFACES])):
        x1, y1 = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 30))
        box = [x1, y1, x1 + int(rng.integers(11, 40)), y1 + int(rng.integers(11, 30))]
        mask = None if number == 3 else rle(ellipse(size_hw, box))
        objects.append({"token": token("object", frame, number), "sample_data_token": frame,
                        "category_token": token("category", name), "attribute_tokens": [token("attribute", 0)],
                        "bbox": box, "mask": mask})  # fmt: skip
    return surfaces, objects


def write(root, version="v1.0-mini", frames=3, size_hw=(90, 160)):
    """Write the tables of a version and its pictures; returns the tables."""
    rng = np.random.default_rng(len(version))
    tables = {
        "attribute": [{"token": token("attribute", 0), "name": "vehicle.moving", "description": ""}],
        "category": [{"token": token("category", name), "name": name, "description": ""} for name in CATEGORIES],
        "log": [{"token": token("log"), "logfile": "n003", "vehicle": "n003", "date_captured": "2018-01-02",
                 "location": "singapore-onenorth"}],
        "sensor": [{"token": token("sensor", m), "channel": c, "modality": m}
                   for m, c in (("camera", "CAM_FRONT"), ("lidar", "LIDAR_TOP"))],
        "calibrated_sensor": [{"token": token("calibrated", m), "sensor_token": token("sensor", m),
                               "translation": [0.0] * 3, "rotation": [1.0, 0.0, 0.0, 0.0], "camera_intrinsic": [],
                               "camera_distortion": []} for m in ("camera", "lidar")],
        "ego_pose": [], "sample": [], "sample_data": [], "object_ann": [], "surface_ann": [],
    }  # fmt: skip
    for number in range(frames):
        sample, kinds = token(version, "sample", number), (("camera", True), ("camera", False), ("lidar", True))
        for place, (modality, is_key) in enumerate(kinds):
            own, pose = token(version, "data", number, place), token(version, "pose", number, place)
            folder = "samples" if is_key else "sweeps"
            name = f"{folder}/CAM_FRONT/n003-2018__CAM_FRONT__{version}{number}{place}.jpg"
            name = name if modality == "camera" else f"{folder}/LIDAR_TOP/n003-2018__LIDAR_TOP__{number}.pcd.bin"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if modality == "camera":
                pixels = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name, "JPEG")
            tables["ego_pose"].append({"token": pose, "translation": [0.0] * 3, "rotation": [1.0, 0, 0, 0], "speed": 0,
                                       "timestamp": 0, "rotation_rate": [0] * 3, "acceleration": [0] * 3})  # fmt: skip
            tables["sample_data"].append(
                {"token": own, "sample_token": sample, "ego_pose_token": pose, "filename": name,
                 "calibrated_sensor_token": token("calibrated", modality), "fileformat": name.rsplit(".", 1)[-1],
                 "width": size_hw[1], "height": size_hw[0], "timestamp": place, "is_key_frame": is_key,
                 "next": "", "prev": ""})  # fmt: skip
        key_camera, key_lidar = token(version, "data", number, 0), token(version, "data", number, 2)
        tables["sample"].append({"token": sample, "timestamp": 0, "log_token": token("log"),
                                 "key_camera_token": key_camera, "key_lidar_token": key_lidar})  # fmt: skip
        if not version.endswith("test"):
            surfaces, objects = _annotations(key_camera, size_hw, rng)
            tables["surface_ann"] += surfaces
            tables["object_ann"] += objects
    dump(root, version, tables)
    return tables


def dump(root, version, tables):
    (root / version).mkdir(exist_ok=True)
    for name, rows in tables.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows))
