"""Small copies of Cityscapes and nuImages: their own tools read them, and our records are what was drawn."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from pipelines import cli, decode, generate, masks, prepare_config, small_cityscapes, small_nuimages
from pipelines.inspect import InspectConfig, run
from pipelines.prepare_config import PrepareCityscapes, PrepareNuimages
from pipelines.shapes import ShapesConfig, render
from tests.pipelines import tiny_nuimages
from tests.pipelines.plain_prepare import prepared

SHAPES = ShapesConfig(train=12, val=2, unlabelled=2, size_px=96, classes=5, crowds=0.4, empty=0.1)
RING = 2


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pictures(**changes):
    return [render(dataclasses.replace(SHAPES, **changes), "train", index) for index in range(SHAPES.train)]


@pytest.fixture(scope="module")
def cityscapes_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes") / "raw"
    small_cityscapes.generate(SHAPES, root)
    return root


@pytest.fixture(scope="module")
def cityscapes(cityscapes_root, tmp_path_factory):
    return prepared(PrepareCityscapes(root=str(cityscapes_root), out=str(tmp_path_factory.mktemp("data"))))


@pytest.fixture(scope="module")
def nuimages_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuimages") / "raw"
    small_nuimages.generate(SHAPES, root)
    return root


@pytest.fixture(scope="module")
def nuimages(nuimages_root, tmp_path_factory):
    return prepared(PrepareNuimages(root=str(nuimages_root), out=str(tmp_path_factory.mktemp("data"))))


def by_name(data):
    """Records in the order in which they were drawn."""
    return sorted((data.record(i) for i in range(len(data))), key=lambda record: record.file_name)


def bitmap(instance, record):
    return masks.rasterise(instance.rle, record.height, record.width)


@pytest.mark.parametrize("data", ["cityscapes", "nuimages"])
def test_nothing_is_rejected_and_everything_is_sound(data, request):
    found = request.getfixturevalue(data)
    assert (len(found), found.manifest.instances_rejected) == (SHAPES.train, 0)
    assert sum(count > 0 for count in found.manifest.class_counts) == 5
    assert run(InspectConfig(found.uri, verify=True)).problems == ()


def test_objects_of_cityscapes_are_the_visible_shapes(cityscapes):
    compared = exact = groups = 0
    for record, picture in zip(by_name(cityscapes), pictures(), strict=True):
        np.testing.assert_array_equal(decode.decode_rgb(record.image), picture.rgb)
        names = [cityscapes.manifest.names[i.label] for i in record.instances if not i.ignore]
        drawn = [small_cityscapes.NAMES[label] for label, crowd, _ in picture.objects if not crowd]
        assert sorted(names) == sorted(drawn)
        groups += sum(i.ignore for i in record.instances)
        if any(label == RING for label, _, _ in picture.objects):
            continue  # what is seen through a ring is the ring's
        wanted = [mask for _, crowd, mask in picture.objects if not crowd]
        found = [bitmap(i, record) for i in record.instances if not i.ignore]
        overlaps = np.array([[(a & b).sum() / (a | b).sum() for a in found] for b in wanted])
        assert not wanted or overlaps.max(axis=1).min() > 0.95
        compared += len(wanted)
        exact += sum(any(np.array_equal(a, b) for a in found) for b in wanted)
    assert compared > 5
    assert exact >= 0.9 * compared  # the others lost a pixel at a tip
    assert groups > 2


def test_both_forms_of_cityscapes_and_its_own_tools_agree(cityscapes_root, cityscapes, tmp_path):
    polygons = prepared(PrepareCityscapes(root=str(cityscapes_root), out=str(tmp_path), polygons=True))
    for one, other in zip(by_name(cityscapes), by_name(polygons), strict=True):
        assert [(i.id, i.rle) for i in one.instances] == [(i.id, i.rle) for i in other.instances]
    instances = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg", reason="needs [cityscapes]")
    labels = pytest.importorskip("cityscapesscripts.preparation.json2labelImg", reason="needs [cityscapes]")
    reader = pytest.importorskip("cityscapesscripts.evaluation.instances2dict", reason="needs [cityscapes]")
    helper = pytest.importorskip("cityscapesscripts.helpers.annotation", reason="needs [cityscapes]")
    files = sorted(cityscapes_root.rglob("*_gtFine_polygons.json"))
    assert len(files) == SHAPES.train + SHAPES.val
    for file in files:
        annotation = helper.Annotation()
        annotation.fromJsonFile(str(file))
        for name, drawn in (
            ("instanceIds", instances.createInstanceImage(annotation, "ids")),
            ("labelIds", labels.createLabelImage(annotation, "ids")),
        ):
            kept = Image.open(str(file).replace("polygons.json", f"{name}.png"))
            np.testing.assert_array_equal(np.array(drawn), np.array(kept))
    for record in by_name(cityscapes):
        name = record.file_name.replace("_leftImg8bit.png", "_gtFine_instanceIds.png")
        (found,) = reader.instances2dict([str(cityscapes_root / "gtFine" / "train" / name)], verbose=False).values()
        theirs = {i["instID"]: (i["labelID"], i["pixelCount"]) for c in cityscapes.manifest.names for i in found[c]}
        assert theirs == {i.id: (cityscapes.manifest.classes[i.label].id, i.area) for i in record.instances}


def test_objects_of_nuimages_are_the_visible_shapes(nuimages):
    of_class = {"vehicle.car": "car", "human.pedestrian.adult": "pedestrian", "vehicle.bicycle": "bicycle",
                "vehicle.truck": "truck", "vehicle.motorcycle": "motorcycle"}  # fmt: skip
    for record, picture in zip(by_name(nuimages), pictures(crowds=0.0), strict=True):
        found = {(nuimages.manifest.names[i.label], bitmap(i, record).tobytes()) for i in record.instances}
        wanted = {(of_class[small_nuimages.NAMES[label]], mask.tobytes()) for label, _, mask in picture.objects}
        assert found == wanted
        for instance in record.instances:
            x1, y1, x2, y2 = map(int, instance.box_xyxy)
            assert bitmap(instance, record)[y1:y2, x1:x2].sum() == bitmap(instance, record).sum()
        assert (record.height, record.width) == picture.rgb.shape[:2]


def test_the_development_kit_agrees(nuimages_root, nuimages, monkeypatch):
    kit = pytest.importorskip("nuimages", reason="needs pip install maskray[nuimages]")
    checks = pytest.importorskip("nuimages.tests.test_foreign_keys", reason="needs pip install maskray[nuimages]")
    monkeypatch.setenv("NUIMAGES", str(nuimages_root))
    assert small_nuimages.CATEGORIES == tiny_nuimages.CATEGORIES
    for version, taken_for in (("train", "mini"), ("val", "mini"), ("test", "test")):
        links = checks.TestForeignKeys(version=f"v1.0-{version}", dataroot=str(nuimages_root))
        links.version = f"v1.0-{taken_for}"  # of the mini version it does not ask that every category occurs
        links.test_foreign_keys()
        links.test_prev_next()
    reader = kit.NuImages(dataroot=str(nuimages_root), version="v1.0-train", lazy=False, verbose=False)
    records = {record.file_name: record for record in by_name(nuimages)}
    for sample in reader.sample:
        frame = reader.get("sample_data", sample["key_camera_token"])
        record = records[frame["filename"]]
        semantic, objects = reader.get_segmentation(frame["token"])
        np.testing.assert_array_equal(decode.decode_map(record.semantic), semantic)
        assert (objects > 0).sum() == sum(bitmap(i, record).sum() for i in record.instances)
        assert 24 in semantic


@pytest.mark.parametrize("source", generate.SOURCES)
def test_the_command_gives_the_same_bytes_and_says_how_to_prepare_them(source, tmp_path, capsys):
    words = f"--train 3 --val 1 --unlabelled 2 --size-px 64 --out {tmp_path}/raw".split()
    before = {}
    for _ in range(2):
        cli.main(["generate", source, *words])
        said = capsys.readouterr().out.splitlines()
        assert said[0] == f"3 + 1 labelled and 2 unlabelled pictures: {tmp_path}/raw"
        assert before in ({}, contents(tmp_path / "raw"))
        before = contents(tmp_path / "raw")
    kinds = {"coco": prepare_config.PrepareCoco, "cityscapes": PrepareCityscapes, "nuimages": PrepareNuimages}
    command = said[1].removeprefix("then: maskray prepare ").split()
    assert command[0] == source
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    asked = kinds[source](**{name.removeprefix("--"): value for name, value in flags.items()})
    index = prepare_config.read_index(asked)
    assert (index.rows_in, index.labelled, len(index.rejections)) == (3, True, 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", source, *words, "--seed", "1"])
    assert ended.value.code == 2
    assert "holds shapes of another config: choose another folder" in capsys.readouterr().err
    assert contents(tmp_path / "raw") == before


@pytest.mark.parametrize(
    ("source", "changes", "match"),
    [
        ("cityscapes", {"keypoints": True}, "cityscapes has no keypoints: leave out --keypoints"),
        ("coco", {"out": "s3://bucket/raw"}, "generate writes to a local folder, got 's3://bucket/raw': give a path"),
        ("nuimages", {"classes": 9}, "classes is 9, wanted 3 to 5"),
    ],
)
def test_what_cannot_be_generated_is_told(source, changes, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        generate.run(source, generate.GenerateConfig(**{"out": str(tmp_path / "raw"), **changes}))


def test_a_folder_of_another_source_is_left_alone(cityscapes_root):
    before = contents(cityscapes_root)
    for source in ("coco", "nuimages"):
        with pytest.raises(ValueError, match="holds shapes of another config"):
            generate.SOURCES[source](SHAPES, cityscapes_root)
    assert contents(cityscapes_root) == before
    marker = json.loads((cityscapes_root / "generator.json").read_text())
    assert (marker["source"], marker["train"]) == ("cityscapes", SHAPES.train)
