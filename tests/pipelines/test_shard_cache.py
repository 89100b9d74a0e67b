"""The local copies of remote shards: shared, bounded, and never trusted more than the store."""

import os
import pickle
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from pipelines import storage
from pipelines.commit import sha256_of
from pipelines.dataset import Dataset, DatasetError
from pipelines.shard_cache import ShardCache, ShardCacheError
from tests.pipelines.tiny_shards import record, thing, write_dataset


def content(number, size=100):
    data = bytes([number]) * size
    return sha256_of(data), data


def read(cache, data, fetched):
    def fetch():
        fetched.append(data[0])
        return data

    return cache.read(sha256_of(data), len(data), fetch).to_pybytes()


def test_a_file_is_fetched_once_and_read_from_the_disk_afterwards(tmp_path):
    fetched = []
    for cache in (ShardCache(tmp_path / "c", 1000), ShardCache(tmp_path / "c", 1000)):
        for number in (1, 2, 1):
            assert read(cache, content(number)[1], fetched) == content(number)[1]
    assert fetched == [1, 2]
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


def test_the_longest_unused_makes_room(tmp_path):
    cache, fetched = ShardCache(tmp_path, 350), []
    for number in (1, 2, 3):
        read(cache, content(number)[1], fetched)
        os.utime(tmp_path / content(number)[0], ns=(number, number))
    read(cache, content(1)[1], fetched)  # used again: now the youngest
    read(cache, content(4)[1], fetched)
    assert {p.name for p in tmp_path.iterdir()} == {content(n)[0] for n in (1, 3, 4)}
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 350
    read(cache, content(5, 400)[1], fetched)  # larger than all of the cache: not kept, nothing deleted for it
    assert {p.name for p in tmp_path.iterdir()} == {content(n)[0] for n in (1, 3, 4)}
    assert fetched == [1, 2, 3, 4, 5]


def test_a_mapped_file_outlives_its_deletion(tmp_path):
    cache = ShardCache(tmp_path, 150)
    first = cache.read(*((content(1)[0], 100)), lambda: content(1)[1])
    cache.read(content(2)[0], 100, lambda: content(2)[1])
    assert [p.name for p in tmp_path.iterdir()] == [content(2)[0]]
    assert first.to_pybytes() == content(1)[1]


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache, fetched = ShardCache(tmp_path / "file" / "c", 1000), []
    assert read(cache, content(1)[1], fetched) == read(cache, content(1)[1], fetched)
    assert fetched == [1, 1]


def test_a_cut_copy_is_fetched_again(tmp_path):
    cache, fetched = ShardCache(tmp_path, 1000), []
    (tmp_path / content(1)[0]).write_bytes(b"cut")
    assert read(cache, content(1)[1], fetched) == content(1)[1]
    assert fetched == [1]


@pytest.mark.parametrize("value", ["much", "-1", "nan", "1e400"])
def test_a_limit_that_is_none_is_told(monkeypatch, value):
    monkeypatch.setenv("MASKRAY_CACHE_GB", value)
    with pytest.raises(ShardCacheError, match=r"MASKRAY_CACHE_GB is .*, wanted gigabytes such as 50; 0 keeps nothing"):
        ShardCache.from_environment()


class Remote:
    """A local folder that passes for a remote store and counts its reads."""

    def __init__(self, monkeypatch, tmp_path):
        self.reads = []
        plain = storage.read_bytes

        def counted(filesystem, path):
            self.reads.append(Path(path).name)
            return plain(filesystem, path)

        monkeypatch.setattr(storage, "is_local", lambda filesystem: not isinstance(filesystem, pafs.SubTreeFileSystem))
        monkeypatch.setattr(
            storage, "open_uri", lambda uri: (pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), uri.lstrip("/"))
        )
        monkeypatch.setattr(storage, "read_bytes", counted)
        monkeypatch.setenv("MASKRAY_CACHE", str(tmp_path / "cache"))


def test_a_remote_data_set_is_read_once_a_machine(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", [[record(n, [thing(n, (4, 6, 30, 28))])] for n in range(4)])
    remote = Remote(monkeypatch, tmp_path)
    data = Dataset(str(tmp_path / "data"))
    for _ in range(2):
        assert [data.record(n).image_id for n in range(4)] == [0, 1, 2, 3]
    assert len([name for name in remote.reads if name.startswith("shard-")]) == 4
    other = pickle.loads(pickle.dumps(data))  # another process
    assert [other.record(n).image_id for n in range(4)] == [0, 1, 2, 3]
    assert len([name for name in remote.reads if name.startswith("shard-")]) == 4


def test_a_damaged_copy_is_fetched_again_and_a_damaged_store_is_told(tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", [[record(1)]])
    remote = Remote(monkeypatch, tmp_path)
    data = Dataset(str(tmp_path / "data"))
    data.record(0)
    copy = tmp_path / "cache" / data.manifest.shards[0].sha256
    raw = bytearray(copy.read_bytes())
    raw[len(raw) // 2] ^= 1
    copy.write_bytes(raw)
    assert Dataset(str(tmp_path / "data")).record(0).image_id == 1
    assert remote.reads.count("shard-00000.arrow") == 2
    for file in (copy, tmp_path / "data" / "shard-00000.arrow"):
        file.write_bytes(raw)
    with pytest.raises(DatasetError, match="does not match its sha256"):
        Dataset(str(tmp_path / "data")).record(0)
