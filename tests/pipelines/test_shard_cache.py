"""The local copies of remote shards: shared, bounded, and never trusted more than the store."""

import hashlib
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from pipelines import dataset, shard_cache, storage
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

    return cache.read(sha256_of(data), len(data), fetch).buffer.to_pybytes()


def kept(folder):
    """Names of all files but the locks, which are empty."""
    assert all(p.stat().st_size == 0 for p in folder.iterdir() if p.name.startswith(".lock-"))
    return {p.name for p in folder.iterdir() if not p.name.startswith(".lock-")}


def used(path, at_ns):
    os.utime(path, ns=(at_ns, path.stat().st_mtime_ns))


def test_a_file_is_fetched_once_and_read_from_the_disk_afterwards(tmp_path):
    fetched = []
    for cache in (ShardCache(tmp_path / "c", 1000), ShardCache(tmp_path / "c", 1000)):
        for number in (1, 2, 1):
            assert read(cache, content(number)[1], fetched) == content(number)[1]
    assert fetched == [1, 2]
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0


def test_who_comes_while_a_file_is_fetched_waits_for_it(tmp_path):
    """Locks are of open files, so threads with caches of their own stand for processes."""
    fetched, data = [], content(1)[1]

    def slow():
        fetched.append(1)
        time.sleep(0.3)
        return data

    def one(_):
        return ShardCache(tmp_path, 1000).read(sha256_of(data), len(data), slow).buffer.to_pybytes()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == [data] * 6
    assert fetched == [1]


def test_a_fetch_that_fails_lets_the_next_one_try(tmp_path):
    sha256, data = content(1)
    with pytest.raises(ConnectionError):
        ShardCache(tmp_path, 1000).read(sha256, len(data), lambda: (_ for _ in ()).throw(ConnectionError("gone")))
    assert read(ShardCache(tmp_path, 1000), data, []) == data


def test_the_longest_unused_makes_room(tmp_path):
    cache, fetched = ShardCache(tmp_path, 350), []
    for number in (1, 2, 3):
        read(cache, content(number)[1], fetched)
        used(tmp_path / content(number)[0], number)
    read(cache, content(1)[1], fetched)  # used again: now the youngest
    read(cache, content(4)[1], fetched)
    assert kept(tmp_path) == {content(n)[0] for n in (1, 3, 4)}
    assert sum((tmp_path / name).stat().st_size for name in kept(tmp_path)) <= 350
    read(cache, content(5, 400)[1], fetched)  # larger than all of the cache: not kept, nothing deleted for it
    assert kept(tmp_path) == {content(n)[0] for n in (1, 3, 4)}
    assert fetched == [1, 2, 3, 4, 5]


def test_files_of_others_are_neither_counted_nor_deleted(tmp_path):
    others = {"thesis.tex": b"x" * 900, ".tmp-theirs": b"y" * 900, content(9)[0][:-1]: b"z" * 900, "A" * 64: b"z" * 900}
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    old, day_s = tmp_path / ".tmp-killed", 24 * 3600
    old.write_bytes(b"left")
    os.utime(old, (time.time() - 2 * day_s, time.time() - 2 * day_s))
    cache, fetched = ShardCache(tmp_path, 250), []
    for number in (1, 2, 1, 2, 3):
        read(cache, content(number)[1], fetched)
    assert fetched == [1, 2, 3]
    for name, data in others.items():
        assert (tmp_path / name).read_bytes() == data
    assert not old.exists()


def test_what_cannot_be_deleted_still_counts(tmp_path):
    cache, fetched = ShardCache(tmp_path, 150), []
    (tmp_path / content(1)[0] / "folder").mkdir(parents=True)  # a name of ours, and no file
    size = (tmp_path / content(1)[0]).stat().st_size
    cache = ShardCache(tmp_path, size + 50)
    assert read(cache, content(2)[1], fetched) == content(2)[1]
    assert not (tmp_path / content(2)[0]).exists()


def test_a_kept_file_is_hashed_once_a_machine(tmp_path, monkeypatch):
    cache, (name, data) = ShardCache(tmp_path, 1000), content(1)
    hashed = []
    plain = hashlib.sha256
    monkeypatch.setattr(shard_cache.hashlib, "sha256", lambda data: hashed.append(1) or plain(data))
    for _ in range(3):
        assert cache.read(name, 100, lambda: data).is_verified
        assert len(hashed) == 1
    (tmp_path / name).write_bytes(data)  # written again, so not known to be right
    assert [cache.read(name, 100, lambda: data).is_verified for _ in range(3)] == [True] * 3
    assert len(hashed) == 2


def test_the_window_is_what_fits_twice(tmp_path):
    cache = ShardCache(tmp_path, 1000)
    assert cache.window([[300, 300], [400]]) == 0
    assert cache.window([[100] * 20]) == 5
    assert cache.window([[100] * 20, [25] * 20]) == 4
    assert cache.window([[900, 900]]) == 1


def test_a_mapped_file_outlives_its_deletion(tmp_path):
    cache = ShardCache(tmp_path, 150)
    first = cache.read(*((content(1)[0], 100)), lambda: content(1)[1]).buffer
    cache.read(content(2)[0], 100, lambda: content(2)[1])
    assert kept(tmp_path) == {content(2)[0]}
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


@pytest.mark.parametrize("limit", [None, 0, 2.5])
def test_an_epoch_opens_each_remote_shard_once_where_there_is_room(tmp_path, monkeypatch, limit):
    count = 6
    data = write_dataset(tmp_path / "data", [[record(n), record(count + n)] for n in range(count)])
    size = data.manifest.shards[0].bytes
    if limit is not None:
        monkeypatch.setenv("MASKRAY_CACHE_GB", str(limit * size / 1e9))
    Remote(monkeypatch, tmp_path)
    opened = []
    plain = dataset.shards.open_ipc
    monkeypatch.setattr(dataset.shards, "open_ipc", lambda *given: opened.append(given[1]) or plain(*given))
    remote = Dataset(str(tmp_path / "data"))
    order = [shard * 2 + row for row in range(2) for shard in range(count)]  # a full shuffle: shards alternate
    for index in order:
        remote.record(index)
    assert len(opened) == (count if limit is None else 2 * count)
    # Room on the disk bounds what is held open too: a deleted file takes room as long as it is mapped.
    assert len(remote._opened) == (count if limit is None else 2)


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
