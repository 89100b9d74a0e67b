import os

import pytest
from pyarrow import fs as pafs

from pipelines import storage


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filesystem, path = storage.open_uri("a/b")
    assert isinstance(filesystem, pafs.LocalFileSystem)
    assert path == str(tmp_path / "a" / "b")
    assert storage.canonical_uri("a/b/") == path


def test_file_uris_are_local(tmp_path):
    filesystem, path = storage.open_uri(f"file://{tmp_path}/x/")
    assert storage.is_local(filesystem)
    assert path == f"{tmp_path}/x"


@pytest.mark.parametrize("uri", ["", "a\0b", "nonsense://a/b", "a/\udcff"])
def test_what_cannot_be_opened_says_so(uri):
    with pytest.raises(storage.StorageError, match=r"cannot open .*give a"):
        storage.open_uri(uri)


def test_files_are_listed_sorted_and_deleted(tmp_path):
    filesystem, folder = storage.open_uri(str(tmp_path))
    storage.make_folder(filesystem, storage.join(folder, "sub"))
    for name in ("b", "a", "sub/c"):
        (tmp_path / name).write_bytes(b"1")
    names = [info.base_name for info in storage.list_files(filesystem, folder, recursive=True)]
    assert names == ["a", "b", "c"]
    assert storage.is_file(filesystem, storage.join(folder, "a"))
    assert storage.is_folder(filesystem, folder)
    for _ in range(2):
        storage.delete_file(filesystem, storage.join(folder, "a"))
    assert not storage.is_file(filesystem, storage.join(folder, "a"))


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    filesystem, folder = storage.open_uri(str(tmp_path / "file" / "x"))
    with pytest.raises(storage.StorageError, match="cannot create the folder"):
        storage.make_folder(filesystem, folder)


def test_a_password_in_a_uri_is_refused_and_not_repeated():
    with pytest.raises(storage.StorageError, match="cannot open a URI of s3 with a password in it") as refused:
        storage.open_uri("s3://me:geheim@bucket/data")
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("/data/x?y", "/data/x?y/a/b"),
        ("/data/", "/data/a/b"),
        ("s3://bucket/x/?region=eu&endpoint_override=h:9000", "s3://bucket/x/a/b?region=eu&endpoint_override=h:9000"),
        ("s3://bucket", "s3://bucket/a/b"),
    ],
)
def test_the_query_of_a_uri_stays_last(uri, wanted):
    assert storage.child_uri(uri, "a", "b") == wanted


@pytest.mark.parametrize(
    ("uri", "wanted", "name"),
    [
        ("s3://bucket/my data/ü/?region=eu", "s3://bucket/my%20data/%C3%BC?region=eu", "ü"),
        ("s3://bucket/a+b=c%20d[1]", "s3://bucket/a+b=c%20d%5B1%5D", "a+b=c d[1]"),
        ("s3://bucket/", "s3://bucket", "bucket"),
        ("hdfs://[::1]:8020/x/", "hdfs://[::1]:8020/x", "x"),
        ("file:///", "file:///", ""),
        ("/data/a b?c/", "/data/a b?c", "a b?c"),
    ],
)
def test_one_place_is_written_one_way(uri, wanted, name):
    assert storage.canonical_uri(uri) == wanted == storage.canonical_uri(wanted)
    assert storage.name_of(uri) == storage.name_of(wanted) == name
    if name:
        assert storage.name_of(storage.child_uri(uri, "50%", "a #b")) == "a #b"


def test_folders_above_are_found_in_a_uri():
    uri = "s3://bucket/a b/c/*.jpg?region=eu"
    names = [storage.parent_uri(uri, levels) for levels in range(4)]
    places = ["bucket/a%20b/c/*.jpg", "bucket/a%20b/c", "bucket/a%20b", "bucket"]
    assert names == [f"s3://{place}?region=eu" for place in places]
    assert storage.parent_uri("file:///x.jpg", 1) == "file:///"


def test_a_file_uri_may_hold_what_only_people_write(tmp_path):
    assert storage.open_uri(f"file://{tmp_path}/my data/ü[1]")[1] == f"{tmp_path}/my data/ü[1]"


@pytest.mark.parametrize("uri", ["s3://bucket/a#b", "s3://bucket/50%", "file:///a%2"])
def test_what_would_name_another_place_is_refused(uri):
    with pytest.raises(storage.StorageError, match="in a URI a # begins another part and a % an escape; write %23"):
        storage.open_uri(uri)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("AWS Error NO_SUCH_BUCKET during PutObject", "create the bucket"),
        ("AWS Error INVALID_ACCESS_KEY_ID during ListObjectsV2", "check that AWS_ACCESS_KEY_ID"),
        ("AWS Error NETWORK_CONNECTION during HeadObject", "check the network"),
        ("No space left on device", ""),
    ],
)
def test_errors_of_a_store_come_with_advice(text, advice):
    assert storage.advice_on(OSError(text)).startswith(advice)
    assert bool(storage.advice_on(OSError(text))) == bool(advice)


def test_names_of_all_files_are_listed_also_those_that_are_no_text(tmp_path):
    filesystem, folder = storage.open_uri(str(tmp_path))
    (tmp_path / "sub").mkdir()
    for name in (b"a.jpg", b"sub/b\xff.jpg"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"12")
    (tmp_path / "link").symlink_to("sub")
    (tmp_path / "sub" / "back").symlink_to("..")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    names = ["a.jpg", "link/b\udcff.jpg", "sub/b\udcff.jpg"]
    assert storage.list_names(filesystem, folder) == [(name, 2) for name in names]
    (tmp_path / "sub" / os.fsdecode(b"b\xff.jpg")).unlink()
    (tmp_path / "sub" / "back").unlink()
    inner = pafs.SubTreeFileSystem("/", filesystem)  # a store that is not this machine's kernel
    assert ("a.jpg", 2) in storage.list_names(inner, folder.lstrip("/"))
    with pytest.raises(FileNotFoundError):
        storage.list_names(filesystem, folder + "/none")
