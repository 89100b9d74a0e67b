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
