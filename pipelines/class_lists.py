"""The classes of weights: published lists, what a file says itself, and the choice of some of them for new heads."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.datasets import cityscapes, nuimages
from pipelines.manifest import ClassInfo

# COCO's names by id; the ids that are missing were never annotated.
_COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "", "backpack", "umbrella", "", "", "handbag", "tie", "suitcase",
    "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard",
    "surfboard", "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana",
    "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "", "dining table", "", "", "toilet", "", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO = tuple(ClassInfo(number, name) for number, name in enumerate(_COCO, start=1) if name)
COCO_SLOTS = tuple(ClassInfo(number, name or f"unused {number}") for number, name in enumerate(_COCO, start=1))
PERSON = (ClassInfo(1, "person", _KEYPOINTS),)
LISTS: dict[str, tuple[ClassInfo, ...]] = {
    "coco": COCO,
    "cityscapes": cityscapes.CLASSES,
    "nuimages": nuimages.CLASSES,
}


class ClassOrder(NamedTuple):
    """Classes in the order of labels, and how the order is known."""

    classes: tuple[ClassInfo, ...]
    why: str


def own_list(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names that an MMDetection file holds; empty where it holds none."""
    meta = metadata.get("meta")
    if not isinstance(meta, Mapping):
        return ()
    data = meta.get("dataset_meta")
    inner = data if isinstance(data, Mapping) else {}
    for found in (inner.get("classes"), inner.get("CLASSES"), meta.get("CLASSES")):
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return tuple(found)
    return ()


def order(count: int, given: Sequence[str], own: Sequence[str], num_keypoints: int) -> ClassOrder:
    """The classes of weights with so many, in the order of their labels.

    Args:
        count: foreground classes of the weights.
        given: names the user gave, or the name of a published list; empty for none.
        own: names the file holds; empty for none.
        num_keypoints: of the keypoint head; 0 without one.

    Raises:
        ValueError: another number of names, or the file's own list disagrees.
    """
    published = _published(count, num_keypoints)
    names = tuple(info.name for info in published)
    if given:
        wanted = tuple(info.name for info in LISTS[given[0]]) if len(given) == 1 and given[0] in LISTS else tuple(given)
        if own and wanted != tuple(own):
            raise ValueError(
                f"--class-order is {_listed(wanted)}, the file's own list {_listed(own)}: they must agree; leave out "
                "--class-order to take the file's"
            )
        return ClassOrder(_infos(_counted(wanted, count, "--class-order"), published), "--class-order")
    if own:
        if set(own) == set(names) and tuple(own) != names:
            raise ValueError(
                f"the file lists its classes as {_listed(own)}, the published order is {_listed(names)} (weights made "
                "with mmdetection3d 0.6 order nuImages otherwise): give --class-order with the order to trust"
            )
        return ClassOrder(_infos(_counted(own, count, "the file's own list"), published), "the file's own list")
    if published:
        return ClassOrder(published, f"assumed, as there are {count}; --class-order names others")
    unnamed = tuple(ClassInfo(label, f"class {label}") for label in range(count))
    return ClassOrder(unnamed, "the file does not name them; --class-order does")


def _published(count: int, num_keypoints: int) -> tuple[ClassInfo, ...]:
    if num_keypoints:
        return PERSON if (count, num_keypoints) == (1, len(_KEYPOINTS)) else ()
    return next((known for known in (*LISTS.values(), COCO_SLOTS) if len(known) == count), ())


def _counted(names: Sequence[str], count: int, what: str) -> Sequence[str]:
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{what} has {len(set(names))} different names, the weights have {count} classes: name each")
    return names


def _infos(names: Sequence[str], published: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The classes of these names, with the published ids where all are known."""
    known = {info.name: info for info in published}
    if all(name in known for name in names):
        return tuple(known[name] for name in names)
    return tuple(ClassInfo(label, name) for label, name in enumerate(names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


class Choice(NamedTuple):
    """New classes, and for each the label of the source it comes from (None: new weights)."""

    classes: tuple[ClassInfo, ...]
    sources: tuple[int | None, ...]


def choose(wanted: Sequence[str], classes: Sequence[ClassInfo]) -> Choice:
    """Classes for new heads.

    Args:
        wanted: a published list's name; or for each class its name or id in the source, `NEW=SOURCE`, or a new name.
        classes: those of the source.

    Raises:
        ValueError: an unknown source, a name twice, or nothing that the source has.
    """
    if len(wanted) == 1 and wanted[0] in LISTS:
        infos = LISTS[wanted[0]]
        labels = {info.name: label for label, info in enumerate(classes)}
        found = Choice(infos, tuple(labels.get(info.name) for info in infos))
    else:
        pairs = [_one(text, classes) for text in wanted]
        infos = tuple(info for info, _ in pairs)
        if not all(info in classes for info in infos):  # ids of another list mean nothing beside new names
            infos = tuple(ClassInfo(label, info.name, info.keypoints) for label, info in enumerate(infos))
        found = Choice(infos, tuple(label for _, label in pairs))
    names = [info.name for info in found.classes]
    if len(set(names)) != len(names):
        raise ValueError(
            f"--classes names a class twice: {_listed(sorted(set(n for n in names if names.count(n) > 1)))}"
        )
    if all(source is None for source in found.sources):
        raise ValueError(
            f"none of --classes ({_listed(names)}) is among the source's ({_listed([info.name for info in classes])}): "
            "name at least one of them, or NEW=SOURCE"
        )
    return found


def _one(text: str, classes: Sequence[ClassInfo]) -> tuple[ClassInfo, int | None]:
    new, is_renamed, source = text.partition("=")
    wanted = source if is_renamed else new
    if not new or (is_renamed and not source):
        raise ValueError(f"--classes holds {text!r}, wanted NAME, ID or NEW=SOURCE")
    for label, info in enumerate(classes):
        if wanted in (info.name, str(info.id)):
            return (ClassInfo(info.id, new, info.keypoints) if is_renamed else info), label
    if is_renamed or wanted.isdigit():
        raise ValueError(
            f"--classes takes {wanted!r} from the source, which has {_listed([info.name for info in classes])}: "
            "use one of these names, or the id of one"
        )
    return ClassInfo(-1, new), None
