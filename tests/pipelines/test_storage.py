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


@pytest.mark.parametrize("uri", ["", "a\0b", "nonsense://a/b"])
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
