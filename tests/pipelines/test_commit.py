import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs as pafs

from pipelines import commit, storage
from tests.pipelines.faulty_store import FaultyStore

LOCAL = pafs.LocalFileSystem()


class Raise:
    def __init__(self, point):
        self.point, self.seen = point, []

    def reach(self, point):
        self.seen.append(point)
        if point == self.point:
            raise OSError(28, "No space left on device")


def test_the_points_are_reached_in_their_order(tmp_path):
    faults = Raise(None)
    commit.write_file(LOCAL, str(tmp_path / "a" / "x"), b"new", faults=faults)
    assert tuple(faults.seen) == commit.FAULT_POINTS
    assert (tmp_path / "a" / "x").read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]


@pytest.mark.parametrize("point", commit.FAULT_POINTS)
def test_a_fault_leaves_the_old_file_or_the_new_one(tmp_path, point):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        commit.write_file(LOCAL, str(target), b"new", faults=Raise(point))
    after_rename = commit.FAULT_POINTS.index(point) >= commit.FAULT_POINTS.index("after_rename")
    assert target.read_bytes() == (b"new" if after_rename else b"old")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


KILLED = """
import os, sys
from pyarrow import fs
from pipelines import commit
class Kill:
    def reach(self, point):
        if point == sys.argv[2]:
            os.kill(os.getpid(), 9)
commit.write_file(fs.LocalFileSystem(), sys.argv[1], b"new", faults=Kill())
"""


@pytest.mark.parametrize("point", commit.FAULT_POINTS)
def test_a_killed_writer_leaves_no_half_file_and_its_temp_is_swept(tmp_path, point):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    root = str(Path(commit.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(target), point],
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert done.returncode == -9
    assert target.read_bytes() in (b"old", b"new")
    commit.sweep_temps(LOCAL, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_live_writers_temp_stays(tmp_path):
    class Sweep:
        def reach(self, point):
            assert commit.sweep_temps(LOCAL, str(tmp_path)) == []

    commit.write_file(LOCAL, str(tmp_path / "x"), b"new", faults=Sweep())
    assert (tmp_path / "x").read_bytes() == b"new"


def test_a_day_old_temp_of_another_host_is_swept(tmp_path):
    old = tmp_path / ".x.tmp-elsewhere-12-0123456789ab"
    old.write_bytes(b"")
    assert commit.sweep_temps(LOCAL, str(tmp_path)) == []
    os.utime(old, (0, 0))
    assert commit.sweep_temps(LOCAL, str(tmp_path)) == [old.name]


def test_an_exclusive_write_never_replaces(tmp_path):
    commit.write_file(LOCAL, str(tmp_path / "x"), b"first", exclusive=True)
    with pytest.raises(commit.CommitConflictError, match="exists already: another run"):
        commit.write_file(LOCAL, str(tmp_path / "x"), b"second", exclusive=True)
    assert (tmp_path / "x").read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_store_that_is_not_local_gets_one_put(tmp_path):
    store = pafs.SubTreeFileSystem(str(tmp_path), LOCAL)
    assert not storage.is_local(store)
    commit.write_file(store, "a/x", b"new", exclusive=True)
    assert (tmp_path / "a" / "x").read_bytes() == b"new"
    with pytest.raises(commit.CommitConflictError, match="exists already"):
        commit.write_file(store, "a/x", b"other", exclusive=True)


class Interrupted(io.RawIOBase):
    """A file of an object store: there once closed, also when it is dropped. Ctrl-C comes with its first bytes."""

    def __init__(self, path):
        self.path, self.data = path, b""

    def writable(self):
        return True

    def write(self, data):
        if not self.data:
            time.sleep(0.1)  # till the main thread waits for this one
            os.kill(os.getpid(), signal.SIGINT)
        self.data += bytes(data)
        return len(data)

    def close(self):
        if not self.closed:
            self.path.write_bytes(self.data)
        super().close()


def test_an_interrupt_publishes_no_part_in_an_object_store(tmp_path):
    class Store(FaultyStore):
        def open_output_stream(self, path, metadata):
            return pa.PythonFile(Interrupted(tmp_path / path), "w")

    with pytest.raises(KeyboardInterrupt):
        commit.write_file(pafs.PyFileSystem(Store(tmp_path)), "x", b"whole", exclusive=True)
    assert (tmp_path / "x").read_bytes() == b"whole"


def test_sha256_of_nothing():
    assert commit.sha256_of(b"").startswith("e3b0c44298fc1c14")


def test_chunks_become_one_file_whole_or_not_at_all(tmp_path):
    filesystem, folder = storage.open_uri(str(tmp_path))
    digest = commit.Digest()
    commit.write_chunks(filesystem, f"{folder}/whole", digest.through(iter([b"ab", b"", b"cd"])))
    assert (tmp_path / "whole").read_bytes() == b"abcd"
    assert digest.hex == commit.sha256_of(b"abcd")

    def broken():
        yield b"ab"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        commit.write_chunks(filesystem, f"{folder}/half", broken())
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("size", [10, 3 * 2**20])
def test_chunks_that_fail_publish_nothing_in_an_object_store(tmp_path, monkeypatch, size):
    monkeypatch.setattr(commit, "_SPOOL_BYTES", 2**20)
    store = pafs.PyFileSystem(FaultyStore(tmp_path))

    def chunks(fails):
        yield b"a" * size
        if fails:
            raise ValueError("half way")
        yield b"b" * size

    with pytest.raises(ValueError, match="half way"):
        commit.write_chunks(store, "x", chunks(True))
    assert list(tmp_path.iterdir()) == []
    commit.write_chunks(store, "x", chunks(False))
    assert (tmp_path / "x").read_bytes() == b"a" * size + b"b" * size
