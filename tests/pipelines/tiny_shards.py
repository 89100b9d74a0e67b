"""A small data set with rectangles as objects, and predictions on it, without Ray."""

from io import BytesIO

import numpy as np
from PIL import Image

from pipelines import commit, dataset_writer, masks, predictions, storage
from pipelines.dataset import Dataset
from pipelines.manifest import ClassInfo, FileInfo
from pipelines.predictions import PicturePrediction, PredictionsManifest
from pipelines.records import Instance, Record

CLASSES = (ClassInfo(3, "dog"), ClassInfo(7, "cat & <mouse>", ("nose", "tail")))
SIZE_HW = (48, 64)


def ring(box):
    x1, y1, x2, y2 = box
    return np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float64)


def thing(number, box, label=0, **changes):
    area = (box[2] - box[0]) * (box[3] - box[1])
    settings = dict(
        id=number, label=label, box_xyxy=tuple(map(float, box)), area=float(area), crowd=False, ignore=False,
        polygons=(ring(box),), rle=None, keypoints=None,
    )  # fmt: skip
    return Instance(**settings | changes)


def jpeg(size_hw=SIZE_HW, value=90):
    data = BytesIO()
    Image.fromarray(np.full((*size_hw, 3), value, np.uint8)).save(data, "JPEG")
    return data.getvalue()


def record(number, things=(), size_hw=SIZE_HW, **changes):
    settings = dict(
        image_id=number, file_name=f"{number}.jpg", image=jpeg(size_hw), sha256="0" * 64, height=size_hw[0],
        width=size_hw[1], instances=tuple(things), labelled=True,
    )  # fmt: skip
    return Record(**settings | changes)


def write_dataset(folder, shards, semantic_classes=0, classes=CLASSES):
    """Commit records, a list a shard."""
    filesystem, path = storage.open_uri(str(folder))
    infos = [dataset_writer.write_shard(filesystem, path, at, rows, {}) for at, rows in enumerate(shards)]
    total = sum(info.instances for info in infos)
    draft = dataset_writer.Draft(classes, tuple(infos), (), sum(map(len, shards)), total, {}, "f", semantic_classes)
    dataset_writer.commit_dataset(filesystem, path, draft)
    return Dataset(str(folder))


def detected(record, boxes, labels=None, scores=None):
    """Detections with masks that fill their boxes."""
    bitmaps = []
    for x1, y1, x2, y2 in boxes:
        bitmap = np.zeros((record.height, record.width), np.uint8)
        bitmap[y1:y2, x1:x2] = 1
        bitmaps.append(bitmap)
    return PicturePrediction(
        image_id=record.image_id,
        height=record.height,
        width=record.width,
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores or [0.9] * len(boxes), np.float32),
        labels=np.array(labels or [0] * len(boxes), np.int64),
        rles=tuple(masks.encode(bitmap) for bitmap in bitmaps),
        areas=np.array([bitmap.sum() for bitmap in bitmaps], np.int64),
        view_agreement=np.ones(len(boxes), np.float32),
        box_spread=np.zeros(len(boxes), np.float32),
        mask_agreement=np.ones(len(boxes), np.float32),
    )


def write_predictions(folder, data, found, **changes):
    """Commit one prediction a record, ``found`` being a function of the record."""
    filesystem, path = storage.open_uri(str(folder))
    infos, row, count = [], 0, 0
    for number, shard in enumerate(data.manifest.shards):
        pictures = [found(data.record(row + at)) for at in range(shard.rows)]
        row, count = row + shard.rows, count + sum(len(picture.scores) for picture in pictures)
        buffer, name = predictions.to_ipc(pictures, {}), predictions.shard_name(number)
        commit.write_file(filesystem, storage.join(path, name), memoryview(buffer))
        infos.append(FileInfo(name, buffer.size, commit.sha256_of(memoryview(buffer))))
    settings = dict(
        dataset=data.manifest.hash, checkpoint="c", classes=CLASSES, shards=tuple(infos), pictures=row,
        detections=count,
    )  # fmt: skip
    manifest = PredictionsManifest(**settings | changes)
    commit.write_file(filesystem, storage.join(path, predictions.FILE_NAME), manifest.to_bytes())
    return str(folder)
