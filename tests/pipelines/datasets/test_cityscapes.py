"""Cityscapes: both forms of labels give the same objects, and Cityscapes' own tools agree with them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pipelines import careful, check, check_instance, decode, masks, prepare, storage
from pipelines.datasets import cityscapes
from pipelines.geometry import AugmentConfig
from pipelines.inspect import InspectConfig, run
from pipelines.loading import Source, TrainBatches
from pipelines.prepare_config import PrepareCityscapes
from pipelines.rejections import Reason
from tests.pipelines import tiny_cityscapes, tiny_run
from tests.pipelines.plain_prepare import prepared

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cityscapes")
    tiny_cityscapes.write(folder)
    tiny_cityscapes.write(folder, (("berlin", 1),), "test")
    return folder


def config(root, out, **changes):
    return PrepareCityscapes(root=str(root), out=str(out), rows_per_shard=2, **changes)


@pytest.fixture(scope="module")
def data(root, tmp_path_factory):
    return prepared(config(root, tmp_path_factory.mktemp("data")))


def true_image(root, record):
    name = record.file_name.removesuffix("_leftImg8bit.png")
    return np.array(Image.open(root / "gtFine" / "train" / f"{name}_gtFine_instanceIds.png"))


def test_records_hold_the_instance_images_pixel_by_pixel(root, data):
    assert data.manifest.names == CLASSES
    assert [info.id for info in data.manifest.classes] == [24, 25, 26, 27, 28, 31, 32, 33]
    for index in range(len(data)):
        record = data.record(index)
        ids = true_image(root, record)
        wanted = {v for v in np.unique(ids).tolist() if (v // 1000 or v) in {info.id for info in data.manifest.classes}}
        assert {i.id for i in record.instances} == wanted
        for instance in record.instances:
            mask = ids == instance.id
            np.testing.assert_array_equal(masks.rasterise(instance.rle, *ids.shape), mask)
            rows, columns = np.nonzero(mask)
            assert instance.box_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert instance.area == mask.sum()
            assert instance.ignore == (instance.id < 1000)
            assert data.manifest.classes[instance.label].id == (instance.id // 1000 or instance.id)
    assert run(InspectConfig(data.uri, verify=True)).problems == ()


def test_what_is_drawn_over_is_gone_and_numbers_are_the_official_ones(data):
    """The first car is hidden under a building: the second one is still 26001."""
    ids = [i.id for index in range(len(data)) for i in data.record(index).instances]
    assert 26000 not in ids
    assert 26001 in ids
    assert not any(i // 1000 in (29, 27) for i in ids)  # a class that is not evaluated, and a deleted polygon
    assert 26 in ids


def test_polygons_and_instance_images_give_the_same_records(root, data, tmp_path):
    other = prepared(config(root, tmp_path, polygons=True))
    assert data.manifest.source["form"] != other.manifest.source["form"]
    for index in range(len(data)):
        assert data.record(index) == other.record(index)


@pytest.mark.parametrize("polygons", [False, True])
def test_a_picture_without_objects_is_an_empty_one(tmp_path, polygons):
    (name,) = tiny_cityscapes.write(tmp_path / "raw", (("ulm", 1),))
    base = tmp_path / "raw" / "gtFine" / "train" / f"{name}_gtFine"
    body = json.loads(base.with_name(f"{base.name}_polygons.json").read_text())
    body["objects"] = [thing for thing in body["objects"] if thing["label"] in ("sky", "road", "building")]
    base.with_name(f"{base.name}_polygons.json").write_text(json.dumps(body))
    ids = Image.fromarray(tiny_cityscapes.instance_image(body))
    ids.save(base.with_name(f"{base.name}_instanceIds.png"))
    made = prepared(config(tmp_path / "raw", tmp_path / "data", polygons=polygons))
    assert (len(made), made.manifest.labelled_images, made.record(0).instances) == (1, 1, ())


def test_groups_are_no_objects_of_a_batch(data):
    picture = tiny_run.detector_config().picture
    batch = TrainBatches([Source(data, 3)], picture, AugmentConfig(flip=0.0), 0)[0]
    objects = sum(not i.ignore for index in range(3) for i in data.record(index).instances)
    assert 0 < int(batch.targets.valid.sum()) <= objects


def test_the_test_split_is_unlabelled(root, tmp_path):
    made = prepared(config(root, tmp_path, split="test"))
    assert (len(made), made.manifest.labelled_images, made.manifest.instances_in) == (1, 0, 0)


@pytest.mark.ray
def test_the_command_makes_the_same(root, data, tmp_path):
    made = prepare.run(config(root, tmp_path / "out", num_cpus=1))
    assert (made.rows_in, made.instances_in) == (3, made.instances_kept)
    assert [s.sha256 for s in made.shards] != []
    assert [s.instances for s in made.shards] == [s.instances for s in data.manifest.shards]
    assert prepare.run(config(root, tmp_path / "out", num_cpus=1)) == made


def broken(tmp_path, change):
    names = tiny_cityscapes.write(tmp_path / "raw", (("ulm", 2),))
    change(tmp_path / "raw" / "gtFine" / "train", names[0])
    return prepared(config(tmp_path / "raw", tmp_path / "out"))


def write_image(pixels, suffix="_gtFine_instanceIds.png"):
    return lambda folder, name: Image.fromarray(pixels).save(folder / f"{name}{suffix}")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f, n: (f / f"{n}_gtFine_instanceIds.png").unlink(), Reason.MISSING_LABELS),
        (lambda f, n: (f / f"{n}_gtFine_instanceIds.png").write_bytes(b"no PNG"), Reason.BAD_LABELS),
        (lambda f, n: (f / f"{n}_gtFine_instanceIds.png").write_bytes(b""), Reason.BAD_LABELS),
        (write_image(np.zeros((128, 256, 3), np.uint8)), Reason.BAD_LABELS),
        (write_image(np.full((64, 256), 26000, np.uint16)), Reason.SIZE_MISMATCH),
    ],
)
def test_a_picture_with_bad_labels_is_set_aside_and_counted(tmp_path, change, reason):
    made = broken(tmp_path, change)
    assert (made.manifest.rows_in, made.manifest.rows_written) == (2, 1)
    assert [r.reason for r in made.rejections()] == [reason]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"imgHeight": 0}, "wanted positive integers"),
        ({"imgWidth": 10**9}, "the limit is 67108864 pixels"),
        ({"imgHeight": "128"}, "wanted positive integers"),
        ({"objects": 5}, "not a polygon file"),
        ({"objects": [{"label": "spaceship", "polygon": [[0, 0], [1, 1], [2, 0]]}]}, "'spaceship'.*does not know"),
        ({"objects": [{"label": ["car"], "polygon": []}]}, "does not know"),
        ({"objects": [{"label": "car", "polygon": [[0, float("nan")], [1, 1], [2, 0]]}]}, "no coordinates"),
        ({"objects": [{"label": "car", "polygon": [[0, 1e9], [1, 1], [2, 0]]}]}, "no coordinates"),
        ({"objects": [{"label": "car", "polygon": [[0, "1"], [1, 1], [2, 0]]}]}, "no coordinates"),
        ({"objects": [{"label": "car", "polygon": [[0], [1, 1], [2, 0]]}]}, "not a polygon file"),
        ({"objects": [{"label": "car", "polygon": [[1, 1]] * 3}] * 1001}, "more than 1000 objects"),
    ],
)
def test_bad_polygons_are_told(changes, match):
    body = {**tiny_cityscapes.polygons(0, 128, 256), **changes}
    with pytest.raises(cityscapes.LabelsError, match=match):
        cityscapes.read_labels(json.dumps(body).encode(), "x_gtFine_polygons.json")


def test_other_bytes_are_told():
    for data in (b"", b"{", b"[" * 10**5, b"\xff", b"null"):
        with pytest.raises(cityscapes.LabelsError, match="not a polygon file"):
            cityscapes.read_labels(data, "x_gtFine_polygons.json")


def test_a_folder_that_is_no_cityscapes_is_told(tmp_path, root):
    with pytest.raises(cityscapes.CityscapesError, match=r"has no leftImg8bit/train/CITY/\*_leftImg8bit\.png"):
        cityscapes.read_index(str(tmp_path), "train", False)
    with pytest.raises(cityscapes.CityscapesError, match="has no split 'all': choose one of train, val"):
        cityscapes.read_index(str(root), "all", False)


def scripts(module):
    return pytest.importorskip(f"cityscapesscripts.{module}", reason="needs pip install maskray[cityscapes]")


def test_cityscapes_own_tool_draws_the_same(root):
    tool, helper = scripts("preparation.json2instanceImg"), scripts("helpers.annotation")
    for file in sorted(root.rglob("*_gtFine_polygons.json")):
        annotation = helper.Annotation()
        annotation.fromJsonFile(str(file))
        drawn = np.array(tool.createInstanceImage(annotation, "ids"))
        np.testing.assert_array_equal(
            drawn, np.array(Image.open(str(file).replace("polygons.json", "instanceIds.png")))
        )


def test_cityscapes_own_reader_finds_the_same_objects(root, data):
    reader = scripts("evaluation.instances2dict")
    for index in range(len(data)):
        record = data.record(index)
        name = record.file_name.replace("_leftImg8bit.png", "_gtFine_instanceIds.png")
        file = str(root / "gtFine" / "train" / name)
        (found,) = reader.instances2dict([file], verbose=False).values()
        theirs = {i["instID"]: (i["labelID"], i["pixelCount"]) for label in CLASSES for i in found[label]}
        ours = {i.id: (data.manifest.classes[i.label].id, i.area) for i in record.instances}
        assert ours == theirs
    assert decode.read_header(record.image).format == "PNG"


def test_labels_are_decoded_where_a_decoder_may_die(root):
    row = cityscapes.read_index(str(root), "train", polygons=False).rows[0]
    picture = root / "leftImg8bit" / "train" / row.file_name
    labels = root / "gtFine" / "train" / row.labels
    known = {info.id: number for number, info in enumerate(cityscapes.CLASSES)}
    rules = check.Rules(check_instance.Vocabulary(known, (0,) * len(known)), labelled=True)
    with careful.CarefulJudge() as judge:
        made = judge(row, picture.read_bytes(), rules, None, labels.read_bytes())
        assert made.record.instances
        lost = judge(row, picture.read_bytes(), rules, None, labels.read_bytes()[:-40])
    assert lost.reason is Reason.BAD_LABELS


@pytest.mark.parametrize("polygons", [False, True])
def test_labels_obey_the_limit_of_pixels(root, polygons):
    row = cityscapes.read_index(str(root), "train", polygons).rows[0]
    data = (root / "gtFine" / "train" / row.labels).read_bytes()
    height, width, objects = cityscapes.read_labels(data, row.labels)
    assert len(cityscapes.read_labels(data, row.labels, height * width).objects) == len(objects)
    with pytest.raises(cityscapes.LabelsError, match=f"the limit is {height * width - 1}"):
        cityscapes.read_labels(data, row.labels, height * width - 1)


def test_extra_pictures_have_no_fine_labels(tmp_path):
    tiny_cityscapes.write(tmp_path, (("bonn", 1),), "train_extra")
    shutil.rmtree(tmp_path / "gtFine")
    made = prepared(config(tmp_path, tmp_path / "out", split="train_extra"))
    assert (made.manifest.rows_written, made.manifest.labelled_images, made.manifest.instances_in) == (1, 0, 0)


def test_changed_pictures_and_labels_are_another_source(tmp_path):
    tiny_cityscapes.write(tmp_path)
    before = cityscapes.read_index(str(tmp_path), "train", polygons=False).identity
    assert cityscapes.read_index(str(tmp_path), "train", polygons=False).identity == before
    seen = {before}
    for pattern in ("leftImg8bit/train/*/*.png", "gtFine/train/*/*_instanceIds.png"):
        with next(tmp_path.glob(pattern)).open("ab") as file:
            file.write(b"x")
        seen.add(cityscapes.read_index(str(tmp_path), "train", polygons=False).identity)
    assert len(seen) == 3


def test_a_query_stays_at_the_end_of_the_folders(tmp_path, monkeypatch):
    tiny_cityscapes.write(tmp_path)
    plain = storage.open_uri
    monkeypatch.setattr(storage, "open_uri", lambda uri: plain(str(tmp_path)) if "?" in uri else plain(uri))
    index = cityscapes.read_index("s3://bucket/cityscapes/?region=eu", "train", polygons=True)
    assert index.images == "s3://bucket/cityscapes/leftImg8bit/train?region=eu"
    assert index.labels == index.source["labels"] == "s3://bucket/cityscapes/gtFine/train?region=eu"
