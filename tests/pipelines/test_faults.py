"""Preparing data while stores fail, processes die and others write: nothing is lost, half there, or twice there.

The long forms run in `make soak`, a tenth of them every day.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs as pafs

from pipelines import commit, storage
from pipelines.dataset import Dataset, DatasetError
from pipelines.manifest import ManifestError
from pipelines.prepare_config import PrepareNuimages
from pipelines.records import SchemaError
from tests.pipelines import tiny_nuimages, tiny_shards
from tests.pipelines.faulty_store import FaultyStore
from tests.pipelines.plain_prepare import prepared
from tests.pipelines.tiny_pictures import grey_png

ROOT = str(Path(__file__).parents[2])


def soaked(few, many):
    """Every day a few, in `make soak` all."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.soak)])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuimages")
    tiny_nuimages.write(folder, frames=4)
    return folder


def config(raw, out):
    return PrepareNuimages(root=str(raw), version="v1.0-mini", out=str(out), rows_per_shard=2, max_rejected=1.0)


@pytest.fixture(scope="module")
def wanted(raw, tmp_path_factory):
    """The hashes of an undisturbed run."""
    return hashes(prepared(config(raw, tmp_path_factory.mktemp("whole"))))


def hashes(data):
    return [(shard.file, shard.sha256) for shard in data.manifest.shards]


def is_committed(folder):
    return (Path(folder) / "manifest.json").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_store_that_fails_at_any_operation_only_delays(raw, wanted, tmp_path, monkeypatch, error):
    """Every operation fails once; the same run again then makes the very same bytes."""
    plain = storage.open_uri
    store = FaultyStore(tmp_path, error=error)

    def open_uri(uri):
        if not uri.startswith("out-"):
            return plain(uri)
        return pafs.PyFileSystem(store), uri

    monkeypatch.setattr(storage, "open_uri", open_uri)
    monkeypatch.setattr(storage, "canonical_uri", lambda uri: uri)
    number = 0
    while True:
        out = f"out-{number}"
        store.fails_at, store.operations = number, 0
        try:
            made = prepared(config(raw, out))
        except (OSError, storage.StorageError):
            # The manifest may be there where the fault came after it: then the data set is whole.
            if is_committed(tmp_path / out):
                made = Dataset(out)
            else:
                with pytest.raises(ManifestError, match="it has no manifest"):
                    Dataset(out)
                store.fails_at = None
                made = prepared(config(raw, out))
            assert hashes(made) == wanted
        else:
            assert hashes(made) == wanted
            if store.operations <= number:
                break
        number += 1
    assert number > 20


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.pipelines.plain_prepare import prepared
from pipelines.prepare_config import PrepareNuimages
print("ready", flush=True)
sys.stdin.readline()
prepared(PrepareNuimages(root=sys.argv[2], version="v1.0-mini", out=sys.argv[3], rows_per_shard=2, max_rejected=1.0))
"""


@soaked(4, 60)
def test_a_process_killed_at_any_moment_leaves_nothing_half(raw, wanted, tmp_path, count):
    rng = random.Random(count)
    committed = 0
    for number in range(count):
        out = tmp_path / str(number)
        arguments = [sys.executable, "-c", KILLED, ROOT, str(raw), str(out)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(rng.uniform(0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
        if is_committed(out):
            committed += 1
            made = Dataset(str(out))
        else:
            made = prepared(config(raw, out))
        assert hashes(made) == wanted
        assert [made.record(index).image_id for index in range(4)]
    assert committed < count


@soaked(10, 100)
def test_of_writers_at_one_time_exactly_one_commits(tmp_path, count):
    filesystem = pafs.LocalFileSystem()
    for number in range(count):
        path, outcomes = str(tmp_path / f"{number}.json"), []
        writers = 2 + number % 7
        gate = threading.Barrier(writers)

        def write(writer, path=path, outcomes=outcomes, gate=gate):
            gate.wait()
            try:
                commit.write_file(filesystem, path, f"{writer}".encode() * 1000, exclusive=True)
                outcomes.append(writer)
            except commit.CommitConflictError:
                pass

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 1
        assert Path(path).read_bytes() == f"{outcomes[0]}".encode() * 1000


def read_all(folder):
    data = Dataset(str(folder))
    data.rejections()
    return data.record(0)


@soaked(100, 1000)
def test_every_flipped_bit_is_found_before_a_record_is_used(tmp_path, count):
    values = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64) % 9
    from_map = tiny_shards.record(0, [tiny_shards.thing(0, (4, 6, 30, 28))], semantic=grey_png(values))
    tiny_shards.write_dataset(tmp_path / "d", [[from_map, tiny_shards.record(1)]], semantic_classes=9)
    files = sorted(path for path in (tmp_path / "d").iterdir() if path.is_file())
    rng = random.Random(0)
    for _ in range(count):
        path = rng.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with pytest.raises((ManifestError, DatasetError, SchemaError)):
            read_all(tmp_path / "d")
        path.write_bytes(good)
    assert Dataset(str(tmp_path / "d")).record(0).semantic is not None


@soaked(20, 200)
def test_a_file_cut_anywhere_is_refused_by_name_and_length(tmp_path, count):
    tiny_shards.write_dataset(tmp_path, [[tiny_shards.record(0), tiny_shards.record(1)]])
    path = tmp_path / "shard-00000.arrow"
    whole = path.read_bytes()
    for cut in [*range(1, 65), *random.Random(0).sample(range(1, len(whole)), count)]:
        path.write_bytes(whole[:-cut])
        with pytest.raises(DatasetError, match=rf"shard-00000\.arrow has {len(whole) - cut} bytes, the manifest says"):
            Dataset(str(tmp_path)).record(0)
