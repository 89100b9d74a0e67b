"""The generated data set: COCO's layout, true annotations, the same bytes for the same config."""

import contextlib
import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipelines.shapes import CATEGORIES, ShapesConfig, generate, render

SMALL = ShapesConfig(train=24, val=6, unlabelled=5, classes=5, empty=0.15, crowds=0.3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "coco"
    generate(SMALL, out)
    return out


def load(root, name):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(root / "annotations" / f"{name}.json"))


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_layout_and_counts(root):
    for split, count in {"train": 24, "val": 6, "unlabeled": 5}.items():
        assert len(list((root / f"{split}2017").glob("*.jpg"))) == count
    assert {path.name for path in (root / "annotations").iterdir()} == {
        "instances_train2017.json",
        "instances_val2017.json",
        "image_info_unlabeled2017.json",
        "hidden_unlabeled2017.json",
    }


@pytest.mark.parametrize("name", ["instances_train2017", "instances_val2017", "hidden_unlabeled2017"])
def test_every_picture_is_there_in_the_stated_size(root, name):
    coco = load(root, name)
    folder = root / f"{name.split('_')[1]}"
    assert {image["file_name"] for image in coco.imgs.values()} == {path.name for path in folder.iterdir()}
    for image in coco.imgs.values():
        with Image.open(folder / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_masks_areas_and_boxes_are_the_visible_truth(root):
    coco = load(root, "instances_train2017")
    overlaps = []
    for index, image_id in enumerate(coco.imgs):
        rows = coco.loadAnns(coco.getAnnIds(image_id))
        truth = render(SMALL, "train", index).objects
        assert len(rows) == len(truth)
        for row, (label, crowd, mask) in zip(rows, truth, strict=True):
            decoded = coco.annToMask(row)
            overlaps.append((decoded & mask).sum() / (decoded | mask).sum())
            assert row["category_id"] == CATEGORIES[label][0]
            assert row["iscrowd"] == int(crowd)
            assert row["area"] == mask.sum() >= SMALL.min_visible_px
            x, y, w, h = (int(v) for v in row["bbox"])
            assert mask[y : y + h, x : x + w].sum() == mask.sum()
            assert mask[y].any()
            assert mask[y + h - 1].any()
            assert mask[:, x].any()
            assert mask[:, x + w - 1].any()
    assert np.mean(overlaps) >= 0.999


def test_the_awkward_cases_are_all_there(root):
    coco = load(root, "instances_train2017")
    rows = list(coco.anns.values())
    assert any(row["iscrowd"] and isinstance(row["segmentation"], dict) for row in rows)
    assert any(not row["iscrowd"] and len(row["segmentation"]) > 1 for row in rows)
    assert any(not coco.getAnnIds(image_id) for image_id in coco.imgs)
    assert len({(image["height"], image["width"]) for image in coco.imgs.values()}) == 3
    assert sorted(coco.cats) == [number for number, _ in CATEGORIES]
    assert sorted(coco.cats) != list(range(1, 6))
    ids = sorted(coco.imgs)
    assert any(b - a > 1 for a, b in itertools.pairwise(ids))


def test_no_object_shares_a_pixel_with_another():
    for index in range(10):
        masks = [mask for _, _, mask in render(SMALL, "val", index).objects]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_splits_share_no_ids_and_no_pictures(root):
    names = ("instances_train2017", "instances_val2017", "hidden_unlabeled2017")
    ids = [set(load(root, name).imgs) for name in names]
    assert sum(map(len, ids)) == len(set.union(*ids))
    jpegs = [data for name, data in contents(root).items() if name.endswith(".jpg")]
    assert len(jpegs) == len(set(jpegs)) == 35


def test_the_unlabelled_pool_tells_nothing(root):
    bare = json.loads((root / "annotations/image_info_unlabeled2017.json").read_text())
    hidden = json.loads((root / "annotations/hidden_unlabeled2017.json").read_text())
    assert "annotations" not in bare
    assert bare["categories"]
    assert bare["images"] == hidden["images"]
    assert hidden["annotations"]


def test_the_same_config_gives_the_same_bytes(root, tmp_path):
    generate(SMALL, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(root)


def test_another_seed_gives_other_pictures(root, tmp_path):
    generate(replace(SMALL, seed=1), tmp_path / "other")
    assert not set(contents(root).values()) & set(contents(tmp_path / "other").values())


def test_a_larger_split_begins_with_the_smaller(root, tmp_path):
    generate(replace(SMALL, train=26, val=0, unlabelled=0), tmp_path / "more")
    smaller = {path.name: path.read_bytes() for path in (root / "train2017").iterdir()}
    larger = {path.name: path.read_bytes() for path in (tmp_path / "more" / "train2017").iterdir()}
    assert smaller.items() < larger.items()


def test_a_finished_folder_is_kept_and_a_stopped_one_completed(tmp_path):
    config = ShapesConfig(train=2, val=1, unlabelled=1)
    generate(config, tmp_path / "out")
    before = contents(tmp_path / "out")
    picture = next((tmp_path / "out" / "train2017").iterdir())
    picture.write_bytes(b"mine")
    generate(config, tmp_path / "out")
    assert picture.read_bytes() == b"mine"
    (tmp_path / "out/annotations/hidden_unlabeled2017.json").unlink()
    generate(config, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_another_data_set_is_left_alone(tmp_path):
    generate(ShapesConfig(train=1, val=1, unlabelled=1), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="holds shapes of another config: choose another folder"):
        generate(ShapesConfig(train=2, val=1, unlabelled=1), tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_a_strangers_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="was not made by this generator"):
        generate(SMALL, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 2}, "classes is 2, wanted 3 to 5"),
        ({"train": -1}, "train is -1, wanted 0 to inf"),
        ({"colour_cue": 1.5}, "colour_cue is 1.5, wanted 0 to 1"),
        ({"noise": float("nan")}, "noise is nan, wanted 0 to 1"),
        ({"size_px": 8}, "size_px is 8, wanted 48 to 4096"),
    ],
)
def test_values_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ShapesConfig(**change)


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="no split 'test' in the shapes: choose one of train, val"):
        render(SMALL, "test", 0)


def test_objects_may_carry_the_keypoints_of_persons(root, tmp_path):
    generate(replace(SMALL, keypoints=True), tmp_path / "k")
    coco, plain = load(tmp_path / "k", "instances_val2017"), load(root, "instances_val2017")
    assert {len(category["keypoints"]) for category in coco.cats.values()} == {17}
    for row in coco.anns.values():
        x, y, w, h = row["bbox"]
        points = np.reshape(row["keypoints"], (17, 3))
        assert row["num_keypoints"] == (0 if row["iscrowd"] else 17)
        if not row["iscrowd"]:
            assert ((points[:, 0] >= x) & (points[:, 0] < x + w) & (points[:, 1] >= y) & (points[:, 1] < y + h)).all()
            assert (points[:, 2] == 1 + coco.annToMask(row)[points[:, 1], points[:, 0]]).all()
    # All else is as without them.
    bare = {
        key: {name: value for name, value in row.items() if "keypoints" not in name} for key, row in coco.anns.items()
    }
    assert bare == plain.anns
    with pytest.raises(ValueError, match="holds shapes of another config"):
        generate(SMALL, tmp_path / "k")
