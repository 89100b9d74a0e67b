"""One table: the speed of checking and preparing pictures, of indexing a large COCO JSON, and of measuring AP.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/prepare.py --coco FOLDER [--split val2017] [--rounds 5]
        [--only check|prepare|index|ap]

FOLDER holds COCO's pictures and annotations. Checks are of these pictures with all their objects, read before, in this
process on one thread. The JSON of 850,000 annotations and the 200,000 detections on 5,000 pictures are generated. Times
are processor time of one process, the best of the rounds (the index and AP: once); `prepare` is the whole command on
one CPU of local Ray, by the clock.
"""

import argparse
import gc
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import check, masks, prepare, prepare_config
from pipelines.check_instance import Vocabulary
from pipelines.coco_metrics import evaluate
from pipelines.coco_rows import GroundTruth
from pipelines.collection import no_collection
from pipelines.datasets import coco
from pipelines.ray_session import ray_session

PARTS = ("check", "prepare", "index", "ap")
_COPIES = 20
_SIZE_HW = (480, 640)
_CLASSES = 80


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Time of one call."""
    start = clock()
    work()
    return clock() - start


def check_rates(pictures: Path, annotations: Path, rounds: int) -> Iterator[tuple[str, str]]:
    """Pictures a second of the check, which a worker of `prepare` does for each."""
    index = coco.read_index(str(pictures), str(annotations))
    vocabulary = Vocabulary({c.id: label for label, c in enumerate(index.classes)}, (0,) * len(index.classes))
    read = [(row, (pictures / str(row.file_name)).read_bytes()) for row in index.rows]
    gc.freeze()  # a worker holds the rows of one shard, not of all
    for name, full in (("check of pictures and objects, header only", False), ("check with full decode", True)):
        rules = check.Rules(vocabulary, index.labelled, full_decode=full)
        repeats = 1 if full else _COPIES
        with no_collection():  # as in a worker
            found = [
                seconds(lambda rules=rules, n=repeats: [check.check(r, d, rules) for _ in range(n) for r, d in read])  # type: ignore[misc]
                for _ in range(rounds + 1)
            ]
        yield name, f"{repeats * len(read) / min(found[1:]):,.0f} pictures/s/core"


def prepare_rate(pictures: Path, annotations: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Pictures a second of the whole command on many copies of the pictures, by the clock."""
    body = json.loads(annotations.read_text())
    images, things, copies = body["images"], body["annotations"], folder / "copies"
    copies.mkdir()
    made: dict[str, list[Any]] = {"images": [], "annotations": []}
    for number in range(_COPIES):
        for image in images:
            name = f"{number}-{image['file_name']}"
            (copies / name).write_bytes((pictures / image["file_name"]).read_bytes())
            made["images"].append({**image, "id": image["id"] + number * 10**7, "file_name": name})
        made["annotations"] += [
            {**t, "id": len(made["annotations"]) + k, "image_id": t["image_id"] + number * 10**7}
            for k, t in enumerate(things)
        ]
    file = folder / "copies.json"
    file.write_text(json.dumps({**made, "categories": body["categories"]}))
    config = prepare_config.PrepareCoco(images=str(copies), annotations=str(file), out=str(folder / "out"))
    with ray_session(num_cpus=1):
        rate = len(made["images"]) / seconds(lambda: prepare.run(config), time.monotonic)
    yield f"whole `prepare` of {len(made['images'])} pictures with full decode, by the clock", f"{rate:,.0f} pictures/s"


def index_time(folder: Path, images: int = 118_000, annotations: int = 850_000) -> Iterator[tuple[str, str]]:
    """Time and memory of reading a JSON as large as COCO's train2017."""
    rng = np.random.default_rng(0)
    file = folder / "large.json"
    with file.open("w") as stream:
        stream.write('{"categories": [{"id": 1, "name": "a"}], "images": [')
        rows = ({"id": k, "file_name": f"{k:012d}.jpg", "height": 480, "width": 640} for k in range(images))
        stream.write(",".join(map(json.dumps, rows)) + '], "annotations": [')
        for k in range(annotations):
            ring = rng.uniform(0, 480, 2 * rng.integers(4, 40)).round(2).tolist()
            thing = {"id": k, "image_id": k % images, "category_id": 1, "bbox": [1.5, 2.5, 99.25, 98.75], "area": 1.5}
            stream.write(("," if k else "") + json.dumps({**thing, "iscrowd": 0, "segmentation": [ring]}))
        stream.write("]}")
    # In a process of its own, so that its largest memory is that of the index.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        took_s, gib = pool.apply(_index, (str(folder), str(file)))
    what = f"index of a COCO JSON of {annotations:,} annotations ({file.stat().st_size / 1e6:,.0f} MB)"
    yield what, f"{took_s:.1f} s, {gib:.1f} GiB at most"


def _index(folder: str, file: str) -> tuple[float, float]:
    took_s = seconds(lambda: coco.read_index(folder, file))
    return took_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def detections(pictures: int = 5_000, wanted: int = 200_000) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth of ellipses and as many detections, shifted truth and false ones, with boxes and masks."""
    rng = np.random.default_rng(0)
    things: list[dict[str, Any]] = []
    for image in range(pictures):
        for _ in range(rng.poisson(7)):
            things.append({"id": len(things) + 1, "image_id": image, "iscrowd": 0} | _ellipse(rng, *_draw(rng)))
    found = []
    for number in range(wanted):
        if number < len(things):
            thing = things[number]
            x, y, w, h = thing["bbox"]
            made = _ellipse(rng, x + 0.05 * w, y, w, h, thing["category_id"])
            found.append({"image_id": thing["image_id"], "score": float(rng.random()), **made})
        else:
            made = _ellipse(rng, *_draw(rng))
            found.append({"image_id": int(rng.integers(pictures)), "score": float(rng.random() / 2), **made})
    height, width = _SIZE_HW
    truth = {
        "images": [{"id": k, "height": height, "width": width} for k in range(pictures)],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(_CLASSES)],
        "annotations": things,
    }
    return truth, found


def _draw(rng: np.random.Generator) -> tuple[float, float, float, float]:
    w, h = np.exp(rng.uniform(np.log(8), np.log(300), 2))
    return float(rng.uniform(0, _SIZE_HW[1] - w)), float(rng.uniform(0, _SIZE_HW[0] - h)), float(w), float(h)


def _ellipse(
    rng: np.random.Generator, x: float, y: float, w: float, h: float, category: int | None = None
) -> dict[str, Any]:
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    edge = 0.5 + 0.4 * rng.random(24)
    ring = np.stack([x + w / 2 + w * edge * np.cos(turn) / 2, y + h / 2 + h * edge * np.sin(turn) / 2], 1).ravel()
    counts = masks.polygons_to_rle((ring,), *_SIZE_HW)
    return {
        "category_id": category or int(rng.integers(_CLASSES)) + 1,
        "bbox": [x, y, w, h],
        "area": float(masks.area(counts)),
        "segmentation": {"size": list(_SIZE_HW), "counts": counts.decode()},
    }


def ap_times() -> Iterator[tuple[str, str]]:
    """Time of COCO's AP."""
    raw, found = detections()
    truth = GroundTruth.from_coco(raw)
    for kind in ("bbox", "segm"):
        took_s = seconds(lambda kind=kind: evaluate(truth, found, kind))  # type: ignore[misc]
        what = "box" if kind == "bbox" else "mask"
        sizes = f"{len(truth.sizes_hw):,} pictures, {len(truth.annotations):,} objects, {len(found):,} detections"
        yield f"COCO {what} AP, {sizes}", f"{took_s:.1f} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--split", default="val2017")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    pictures, annotations = args.coco / args.split, args.coco / f"annotations/instances_{args.split}.json"
    print(f"load before the run {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n\n| what | figure |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
            "check": lambda: check_rates(pictures, annotations, args.rounds),
            "prepare": lambda: prepare_rate(pictures, annotations, Path(folder)),
            "index": lambda: index_time(Path(folder)),
            "ap": ap_times,
        }
        for name in (args.only,) if args.only else PARTS:
            for what, figure in parts[name]():
                print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
