"""nuImages: the tables give what nuScenes' own development kit reads from them."""

import json

import numpy as np
import pytest

from pipelines import decode, masks, prepare
from pipelines.datasets import nuimages
from pipelines.inspect import InspectConfig, run
from pipelines.prepare_config import PrepareNuimages
from pipelines.rejections import Reason
from tests.pipelines import tiny_nuimages
from tests.pipelines.plain_prepare import prepared

VERSION = "v1.0-mini"
NAMES = ("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian",
         "traffic_cone", "barrier")  # fmt: skip
# The mapping once more, the other way round, so that a slip in one is seen.
OF_CLASS = {
    "car": ["vehicle.car"], "truck": ["vehicle.truck"], "trailer": ["vehicle.trailer"],
    "bus": ["vehicle.bus.bendy", "vehicle.bus.rigid"], "construction_vehicle": ["vehicle.construction"],
    "bicycle": ["vehicle.bicycle"], "motorcycle": ["vehicle.motorcycle"],
    "pedestrian": [f"human.pedestrian.{who}" for who in ("adult", "child", "construction_worker", "police_officer")],
    "traffic_cone": ["movable_object.trafficcone"], "barrier": ["movable_object.barrier"],
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuimages")
    tiny_nuimages.write(folder)
    tiny_nuimages.write(folder, "v1.0-test", 1)
    return folder


def config(root, out, **changes):
    settings = {"root": str(root), "out": str(out), "version": VERSION, "rows_per_shard": 2, "max_rejected": 1.0}
    return PrepareNuimages(**settings | changes)


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    return prepared(config(root, tmp_path_factory.mktemp("data")))


def test_key_frames_alone_with_the_ten_classes(data):
    assert (data.manifest.names, len(data)) == (NAMES, 3)
    assert [info.id for info in data.manifest.classes] == list(range(10))
    assert all(data.record(index).file_name.startswith("samples/CAM_FRONT/") for index in range(3))
    assert data.manifest.instances_in == 3 * sum(map(len, OF_CLASS.values()))
    assert run(InspectConfig(data.uri, verify=True)).problems == ()


def test_every_object_is_what_its_table_says(root, data):
    tables = {name: json.loads((root / VERSION / f"{name}.json").read_text()) for name in ("category", "object_ann")}
    names = {row["token"]: row["name"] for row in tables["category"]}
    class_of = {category: name for name, listed in OF_CLASS.items() for category in listed}
    wanted = {
        tuple(map(float, ann["bbox"])): class_of[names[ann["category_token"]]]
        for ann in tables["object_ann"]
        if ann["mask"] and names[ann["category_token"]] in class_of
    }
    found = {i.box_xyxy: i for index in range(3) for i in data.record(index).instances}
    assert {box: NAMES[i.label] for box, i in found.items()} == wanted
    for (x1, y1, x2, y2), instance in found.items():
        assert instance.area == (x2 - x1) * (y2 - y1)  # as the published results count it
        bitmap = masks.rasterise(instance.rle, 90, 160)
        np.testing.assert_array_equal(bitmap, tiny_nuimages.ellipse((90, 160), (x1, y1, x2, y2)))


def test_an_object_without_a_mask_is_set_aside_and_counted(data):
    lost = data.rejections()
    assert {r.reason for r in lost} == {Reason.NO_MASK}
    assert data.manifest.instances_rejected == len(lost) > 0


def test_the_development_kit_agrees(root, data):
    kit = pytest.importorskip("nuimages", reason="needs pip install maskray[nuimages]")
    reader = kit.NuImages(dataroot=str(root), version=VERSION, lazy=False, verbose=False)
    by_name = {data.record(index).file_name: data.record(index) for index in range(3)}
    for sample in reader.sample:
        frame = reader.get("sample_data", sample["key_camera_token"])
        record = by_name[frame["filename"]]
        semantic, objects = reader.get_segmentation(frame["token"])
        np.testing.assert_array_equal(decode.decode_map(record.semantic), semantic)
        assert {24, 31, 0} < set(np.unique(semantic).tolist())
        assert objects.max() > 0
        for instance in record.instances:
            ann = next(a for a in reader.object_ann if tuple(a["bbox"]) == instance.box_xyxy)
            theirs = kit.nuimages.mask_decode(ann["mask"])
            np.testing.assert_array_equal(masks.rasterise(instance.rle, 90, 160), theirs)


def test_the_development_kits_own_table_tests_pass_on_the_copy(root, monkeypatch):
    monkeypatch.setenv("NUIMAGES", str(root))
    checks = pytest.importorskip("nuimages.tests.test_foreign_keys", reason="needs pip install maskray[nuimages]")
    checks.TestForeignKeys(version=VERSION, dataroot=str(root)).test_foreign_keys()


def test_maps_can_be_left_out_and_the_test_version_has_no_labels(root, tmp_path):
    plain = prepared(config(root, tmp_path / "plain", semantic=False))
    assert (plain.record(0).semantic, plain.manifest.semantic_classes) == (None, 0)
    test = prepared(config(root, tmp_path / "test", version="v1.0-test"))
    assert (len(test), test.manifest.labelled_images, test.record(0).semantic) == (1, 0, None)


@pytest.mark.ray
def test_the_command_makes_the_same(root, data, tmp_path):
    made = prepare.run(config(root, tmp_path / "out", num_cpus=1))
    assert (made.instances_in, made.semantic_classes) == (data.manifest.instances_in, 32)
    assert [s.instances for s in made.shards] == [s.instances for s in data.manifest.shards]


def broken(tmp_path, change):
    tables = tiny_nuimages.write(tmp_path / "raw", frames=2)
    change(tables)
    tiny_nuimages.dump(tmp_path / "raw", VERSION, tables)
    return prepared(config(tmp_path / "raw", tmp_path / "out"))


def test_what_belongs_to_nothing_is_set_aside_and_counted(tmp_path):
    def change(tables):
        tables["object_ann"][0]["sample_data_token"] = "nowhere"
        tables["object_ann"][0]["category_token"] = tiny_nuimages.token("category", "vehicle.car")
        tables["object_ann"][1]["category_token"] = "nothing"
        tables["surface_ann"][0]["sample_data_token"] = tables["sample_data"][1]["token"]  # a sweep
        tables["sample"].append({**tables["sample"][0]})
        tables["sample"].append({**tables["sample"][0], "key_camera_token": "gone"})

    made = broken(tmp_path, change)
    assert (made.manifest.rows_in, made.manifest.rows_written) == (4, 2)
    found = [(r.reason, r.is_row, r.instances) for r in made.rejections() if r.reason is not Reason.NO_MASK]
    assert sorted(found, key=str) == sorted(
        [
            (Reason.UNKNOWN_IMAGE_ID, False, 1), (Reason.UNKNOWN_CATEGORY, False, 1),
            (Reason.UNKNOWN_IMAGE_ID, False, 0), (Reason.DUPLICATE_IMAGE_ID, True, 0),
            (Reason.MISSING_PICTURE, True, 0),
        ], key=str,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("bbox", None, Reason.BAD_BOX),
        ("bbox", [1, 2, 3], Reason.BAD_BOX),
        ("bbox", [5, 5, 5, 9], Reason.BAD_BOX),
        ("bbox", ["1", 2, 3, 4], Reason.BAD_BOX),
        ("mask", {"size": [90, 160], "counts": "%%%"}, Reason.BAD_SEGMENTATION),
        ("mask", {"size": [90, 160], "counts": "AAAA"}, Reason.BAD_SEGMENTATION),
        ("mask", {"size": [160, 90], "counts": ""}, Reason.BAD_SEGMENTATION),
        ("mask", {"size": [90, 160]}, Reason.BAD_SEGMENTATION),
        ("mask", "text", Reason.BAD_SEGMENTATION),
    ],
)
def test_a_bad_object_is_set_aside_alone(tmp_path, field, value, reason):
    def change(tables):
        car = next(
            a for a in tables["object_ann"]
            if a["category_token"] == tiny_nuimages.token("category", "vehicle.car") and a["mask"]
        )  # fmt: skip
        car[field] = value

    made = broken(tmp_path, change)
    found = [r for r in made.rejections() if r.reason is reason]
    assert [r.instances for r in found] == [1]
    assert made.manifest.rows_written == 2
    lost_layers = [r for r in made.rejections() if r.reason is Reason.BAD_MAP]
    assert len(lost_layers) == (field == "mask")


@pytest.mark.parametrize(
    ("table", "text", "match"),
    [
        ("category", "{}", "holds a dict, wanted a list"),
        ("sample", "[", "is not JSON"),
        ("sample_data", "[" * 10**5, "is not JSON"),
        ("object_ann", "[5]", "token is 5, wanted text"),
        ("surface_ann", '[{"token": "a", "sample_data_token": 3}]', "sample_data_token is 3, wanted text"),
    ],
)
def test_tables_of_another_form_are_told(tmp_path, table, text, match):
    tiny_nuimages.write(tmp_path, frames=1)
    (tmp_path / VERSION / f"{table}.json").write_text(text)
    with pytest.raises(nuimages.NuimagesError, match=match):
        nuimages.read_index(str(tmp_path), VERSION, True)


def test_a_folder_that_is_no_nuimages_is_told(tmp_path):
    with pytest.raises(nuimages.NuimagesError, match=r"there is no table .*category\.json: give the folder that holds"):
        nuimages.read_index(str(tmp_path), VERSION, True)
    with pytest.raises(nuimages.NuimagesError, match=r"has no version 'v2\.0': choose one of v1\.0-mini"):
        nuimages.read_index(str(tmp_path), "v2.0", True)
    tables = tiny_nuimages.write(tmp_path, frames=1)
    tables["category"].append({"token": "x", "name": "vehicle.tank"})
    tiny_nuimages.dump(tmp_path, VERSION, tables)
    with pytest.raises(nuimages.NuimagesError, match="has 24 besides the surfaces, wanted at most 23"):
        nuimages.read_index(str(tmp_path), VERSION, True)
