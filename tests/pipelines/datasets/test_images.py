import os

import pytest

from pipelines.datasets import images
from pipelines.prepare_config import PrepareImages
from pipelines.rejections import Reason
from tests.pipelines import tiny_coco
from tests.pipelines.plain_prepare import prepared


@pytest.fixture
def pool(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "notes.md", "sub/d.gif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(index):
    return sorted(row.file_name for row in index.rows)


def test_a_folder_lists_pictures_of_every_depth(pool):
    index = images.read_index(str(pool))
    assert names(index) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/d.gif"]
    assert (index.labelled, index.classes, index.images) == (False, (), str(pool))


def test_a_glob(pool):
    index = images.read_index(f"{pool}/*.jpg")
    assert names(index) == ["b.jpg"]
    assert index.images == str(pool)


def test_a_list_names_pictures_beside_it_and_duplicates_are_rejected(pool):
    (pool / "list.txt").write_text("b.jpg\n\nsub/c.webp\nb.jpg\n../x.jpg\n")
    index = images.read_index(str(pool / "list.txt"))
    assert names(index) == ["../x.jpg", "b.jpg", "sub/c.webp"]
    assert index.rows_in == 4


def test_ids_stay_when_pictures_are_added(pool):
    before = {r.file_name: r.image_id for r in images.read_index(str(pool)).rows}
    (pool / "0.jpg").write_bytes(b"x")
    after = {r.file_name: r.image_id for r in images.read_index(str(pool)).rows}
    assert before.items() <= after.items()
    assert all(0 <= i < 2**53 for i in after.values())


@pytest.mark.parametrize("name", ["none", "*.tiff", "empty"])
def test_no_pictures(pool, name):
    (pool / "empty").mkdir()
    with pytest.raises(images.PicturesError, match="give a folder, a glob"):
        images.read_index(str(pool / name))


def test_another_file_uri(pool):
    index = images.read_index(f"file://{pool}/sub/*.webp")
    assert names(index) == ["c.webp"]
    assert index.images == f"file://{pool}/sub"


def test_another_size_is_another_source(pool):
    before = images.read_index(str(pool)).identity
    assert images.read_index(str(pool)).identity == before
    (pool / "b.jpg").write_bytes(b"other")
    assert images.read_index(str(pool)).identity != before


def test_a_name_that_is_no_text_costs_its_own_row(pool, tmp_path_factory):
    (pool / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"x")
    for name in ("a.PNG", "b.jpg", "sub/c.webp"):
        (pool / name).write_bytes(tiny_coco.jpeg())
    config = PrepareImages(images=str(pool), out=str(tmp_path_factory.mktemp("out") / "d"), max_rejected=1.0)
    made = prepared(config)
    reasons = {r.file_name: r.reason for r in made.rejections()}
    assert reasons == {r"'bad\udcff.jpg'": Reason.UNSAFE_FILE_NAME, "sub/d.gif": Reason.UNSUPPORTED_PICTURE}
    assert made.manifest.rows_in == 5
