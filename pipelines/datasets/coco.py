"""COCO annotation files: one pass, objects grouped by picture, duplicates and orphans set aside."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pipelines import commit, storage
from pipelines.manifest import ClassInfo
from pipelines.rejections import Reason, Rejection, shown
from pipelines.source_index import Index, RawRow, as_id

MAX_JSON_BYTES = 8 * 2**30
"""Refused before parsing; COCO's largest file has 0.5 GB."""

_KEPT_FIELDS = ("id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation", "keypoints")


class CocoError(ValueError):
    """An annotation file that is not COCO; the message is one line that says what to do."""


def read_index(images: str, annotations: str, semantic: str = "", semantic_classes: int = 0) -> Index:
    """Read what a COCO annotation file lists.

    Args:
        images: path or URI of the folder of pictures.
        annotations: path or URI of the JSON file; one without `annotations` lists unlabelled pictures.
        semantic: path or URI of the folder of semantic maps, named as the pictures but ending in .png; empty for none.
        semantic_classes: values of the maps are below this, or 255.

    Raises:
        CocoError: the file is missing, too large, not JSON, or not of COCO's form.
    """
    raw = _read(annotations)
    body = _parse(raw, annotations)
    entries = _list_of(body, "images", annotations)
    labelled = "annotations" in body
    objects = _list_of(body, "annotations", annotations) if labelled else []
    categories = body.get("categories", [])
    if labelled or categories:
        categories = _list_of(body, "categories", annotations)
    pictures, rejections = _pictures(entries)
    grouped, orphans = _group(objects, pictures)
    digest = commit.sha256_of(raw)
    rows = [
        RawRow(
            image_id,
            e.get("file_name"),
            e.get("height"),
            e.get("width"),
            grouped.get(image_id, ()),
            semantic=_map_name(e.get("file_name")) if semantic else None,
        )
        for image_id, e in pictures.items()
    ]
    source = {"annotations": storage.canonical_uri(annotations), "annotations_sha256": digest}
    if semantic:
        source |= {"semantic": storage.canonical_uri(semantic), "semantic_classes": str(semantic_classes)}
    return Index(
        kind="coco",
        images=storage.canonical_uri(images),
        classes=_classes(categories, annotations),
        rows=tuple(rows),
        rejections=(*rejections, *orphans),
        labelled=labelled,
        identity=digest,
        source=source,
        semantic=source.get("semantic", ""),
        semantic_classes=semantic_classes if semantic else 0,
    )


def _map_name(file_name: object) -> str | None:
    """The map beside a picture's name; a name that is no text is rejected before the map is looked for."""
    return re.sub(r"\.[^./]*$", "", file_name) + ".png" if isinstance(file_name, str) else None


def _read(uri: str) -> bytes:
    filesystem, path = storage.open_uri(uri)
    info = filesystem.get_file_info(path)
    if not storage.is_file(filesystem, path):
        raise CocoError(f"there is no annotation file {uri}: give a COCO JSON such as instances_train2017.json")
    if info.size is not None and info.size > MAX_JSON_BYTES:
        raise CocoError(f"{uri} has {info.size} bytes, the limit is {MAX_JSON_BYTES}: split it into several data sets")
    return storage.read_bytes(filesystem, path)


def _parse(raw: bytes, uri: str) -> dict[str, object]:
    try:
        body = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise CocoError(f"{uri} is not UTF-8 text (byte {error.start}): give a COCO JSON file") from error
    except RecursionError as error:
        raise CocoError(f"{uri} is nested too deeply to be COCO: give a COCO JSON file") from error
    except ValueError as error:
        raise CocoError(f"{uri} is not JSON: {str(error).splitlines()[0][:200]}; give a COCO JSON file") from error
    if not isinstance(body, dict):
        raise CocoError(f"{uri} holds a {type(body).__name__}, wanted an object with images and annotations")
    return body


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        # Which of the two counts differs between parsers, so neither can be trusted.
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return made


def _list_of(body: Mapping[str, object], key: str, uri: str) -> list[object]:
    value = body.get(key)
    if not isinstance(value, list):
        got = f"a {type(value).__name__}" if key in body else "nothing"
        raise CocoError(f"{uri} has {got} under {key!r}, wanted a list: give a COCO JSON file")
    return value


def _classes(categories: object, uri: str) -> tuple[ClassInfo, ...]:
    made: dict[int, ClassInfo] = {}
    for entry in categories if isinstance(categories, list) else []:
        category = as_id(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if category is None or not isinstance(name, str):
            raise CocoError(f"{uri} has the category {shown(entry)}, wanted an integer id and a name: correct the file")
        if category in made:
            raise CocoError(f"{uri} has the category id {category} twice: give each category its own id")
        points = entry.get("keypoints", [])
        if not isinstance(points, list) or not all(isinstance(p, str) for p in points):
            raise CocoError(f"{uri}: category {name!r} has keypoints {shown(points)}, wanted a list of names")
        if any(not _is_unicode(text) for text in (name, *points)):
            raise CocoError(f"{uri}: category {category} has the names {shown([name, *points])}, wanted valid Unicode")
        made[category] = ClassInfo(category, name, tuple(points))
    names = [c.name for c in made.values()]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CocoError(f"{uri} has two categories named {shown(twice)}: give each its own name")
    return tuple(made[category] for category in sorted(made))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pictures(entries: Sequence[object]) -> tuple[dict[int, Mapping[str, object]], list[Rejection]]:
    made: dict[int, Mapping[str, object]] = {}
    rejections = []
    for entry in entries:
        fields: Mapping[str, object] = entry if isinstance(entry, dict) else {}
        image_id = as_id(fields.get("id"))
        if image_id is not None and image_id not in made:
            made[image_id] = fields
            continue
        reason = Reason.BAD_IMAGE_ID if image_id is None else Reason.DUPLICATE_IMAGE_ID
        found = shown(fields.get("id") if fields else entry)
        name = shown(fields.get("file_name", ""))
        rejections.append(Rejection(reason, "id", found, is_row=True, file_name=name, image_id=image_id))
    return made, rejections


def _group(
    objects: Sequence[object], pictures: Mapping[int, object]
) -> tuple[dict[int, list[Mapping[str, object]]], list[Rejection]]:
    grouped: dict[int, list[Mapping[str, object]]] = {}
    rejections = []
    seen: set[int] = set()
    for entry in objects:
        fields: Mapping[str, object] = entry if isinstance(entry, dict) else {}
        image_id, instance_id = as_id(fields.get("image_id")), as_id(fields.get("id"))
        if image_id is None or image_id not in pictures:
            reason, field, value = (
                Reason.UNKNOWN_IMAGE_ID,
                "image_id",
                fields.get("image_id") if fields else entry,
            )
        elif instance_id is not None and instance_id in seen:
            reason, field, value = Reason.DUPLICATE_INSTANCE_ID, "id", instance_id
        else:
            if instance_id is not None:
                seen.add(instance_id)
            kept = {key: fields[key] for key in _KEPT_FIELDS if key in fields}
            grouped.setdefault(image_id, []).append(kept)
            continue
        rejections.append(
            Rejection(reason, field, shown(value), False, image_id=image_id, instance_id=instance_id, instances=1)
        )
    return grouped, rejections
