"""Classes of weights: published orders, the file's own list, and the choice for new heads."""

import pytest

from pipelines.class_lists import COCO, COCO_SLOTS, LISTS, PERSON, choose, order, own_list
from pipelines.datasets import nuimages
from pipelines.manifest import ClassInfo

NUIMAGES = tuple(info.name for info in nuimages.CLASSES)
CITYSCAPES = tuple(info.name for info in LISTS["cityscapes"])


def test_coco_has_its_ids():
    by_id = {info.id: info.name for info in COCO}
    assert len(COCO) == 80
    assert len(COCO_SLOTS) == 90
    assert (by_id[1], by_id[13], by_id[44], by_id[90]) == ("person", "stop sign", "bottle", "toothbrush")
    unused = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert [info.id for info in COCO_SLOTS if info not in COCO] == unused
    assert not set(unused) & set(by_id)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"meta": {"CLASSES": ["a", "b"]}}, ("a", "b")),
        ({"meta": {"dataset_meta": {"classes": ("a",)}, "CLASSES": ("b",)}}, ("a",)),
        ({"meta": {"dataset_meta": {"CLASSES": ("a",)}}}, ("a",)),
        ({"meta": {"CLASSES": None}}, ()),
        ({"meta": {"CLASSES": [1, 2]}}, ()),
        ({"meta": "text"}, ()),
        ({}, ()),
    ],
)
def test_the_files_own_list(metadata, names):
    assert own_list(metadata) == names


@pytest.mark.parametrize(
    ("count", "keypoints", "wanted"),
    [(80, 0, COCO), (90, 0, COCO_SLOTS), (8, 0, LISTS["cityscapes"]), (10, 0, nuimages.CLASSES), (1, 17, PERSON)],
)
def test_published_orders_are_assumed_by_their_number_and_it_is_said(count, keypoints, wanted):
    classes, why = order(count, (), (), keypoints)
    assert classes == wanted
    assert why.startswith("assumed")


def test_unknown_classes_are_numbered():
    classes, why = order(2, (), (), 0)
    assert [info.name for info in classes] == ["class 0", "class 1"]
    assert "does not name them" in why
    assert order(1, (), (), 5).classes[0].name == "class 0"


def test_the_files_list_counts():
    assert order(10, (), NUIMAGES, 0) == (nuimages.CLASSES, "the file's own list")
    names = tuple("abcdefghij")
    assert [info.name for info in order(10, (), names, 0).classes] == list(names)


def test_nuimages_in_another_order_needs_a_word():
    other = NUIMAGES[::-1]
    with pytest.raises(ValueError, match=r"lists its classes as barrier, .* published order is car, .* --class-order"):
        order(10, (), other, 0)
    classes, why = order(10, other, other, 0)
    assert [info.name for info in classes] == list(other)
    assert {info.id for info in classes} == set(range(10))
    assert why == "--class-order"
    with pytest.raises(ValueError, match=r"--class-order is car, .*, the file's own list barrier, .*: they must agree"):
        order(10, ("nuimages",), other, 0)


def test_an_order_has_every_class_once():
    with pytest.raises(ValueError, match="--class-order has 2 different names, the weights have 3 classes"):
        order(3, ("a", "b"), (), 0)
    with pytest.raises(ValueError, match="--class-order has 2 different names, the weights have 3 classes"):
        order(3, ("a", "b", "b"), (), 0)
    with pytest.raises(ValueError, match="the file's own list has 1 different names, the weights have 3 classes"):
        order(3, (), ("a",), 0)
    assert [info.name for info in order(80, ("coco",), (), 0).classes] == [info.name for info in COCO]


def test_the_papers_mapping_copies_seven_classes_and_makes_riders():
    found = choose(["cityscapes"], COCO)
    assert found.classes == LISTS["cityscapes"]
    sources = {info.name: label for info, label in zip(*found, strict=True)}
    assert sources.pop("rider") is None
    assert {name: COCO[label].name for name, label in sources.items()} == {name: name for name in sources}
    assert len(sources) == 7


def test_coco_of_torchvisions_slots():
    found = choose(["coco"], COCO_SLOTS)
    assert found.classes == COCO
    assert [COCO_SLOTS[label].id for label in found.sources] == [info.id for info in COCO]


def test_names_ids_copies_and_new_classes():
    found = choose(["dog", "18", "truck"], [info for info in COCO if info.name != "dog"] + [ClassInfo(18, "hound")])
    assert [info.name for info in found.classes] == ["dog", "hound", "truck"]
    assert [info.id for info in found.classes] == [0, 1, 2]
    assert found.sources[0] is None
    kept = choose(["3", "person"], COCO)
    assert kept.classes == (COCO[2], COCO[0])
    assert kept.sources == (2, 0)
    copied = choose(["rider=person", "person"], COCO)
    assert copied.sources == (0, 0)
    assert [info.name for info in copied.classes] == ["rider", "person"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["cat", "cat"], "--classes names a class twice: cat"),
        (["unicorn"], r"none of --classes \(unicorn\) is among the source's \(person, "),
        (["rider=unicorn"], "--classes takes 'unicorn' from the source, which has person, "),
        (["cat", "12"], "--classes takes '12' from the source"),
        (["=cat"], "--classes holds '=cat', wanted NAME, ID or NEW=SOURCE"),
        (["cat", "x="], "--classes holds 'x=', wanted"),
        (["nuimages"], None),
    ],
)
def test_wrong_choices_are_refused(wanted, message):
    if message is None:  # four of nuImages' ten are COCO's too
        assert sum(label is not None for label in choose(wanted, COCO).sources) == 5
        return
    with pytest.raises(ValueError, match=message):
        choose(wanted, COCO)
