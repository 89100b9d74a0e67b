"""Pickles of arrays: what Detectron2 writes is read, and nothing else is, let alone run."""

import collections
import copyreg
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from pipelines.array_pickle import PickleError, loads

CONTENT = {
    "model": collections.OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3),
        b=np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        c=np.arange(3, dtype=">i4"),
        d=np.zeros((2, 0, 3), np.float16),
        e=np.array(5, np.int64),
    ),
    "__author__": "someone",
    "list": [1, 2.5, None, True, b"raw", ("x", -1), {}],
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_plain_values_are_read(protocol):
    found = loads(pickle.dumps(CONTENT, protocol=protocol))
    assert found["list"] == CONTENT["list"]
    assert found["__author__"] == "someone"
    assert list(found["model"]) == list(CONTENT["model"])
    for name, wanted in CONTENT["model"].items():
        assert found["model"][name].dtype == wanted.dtype
        np.testing.assert_array_equal(found["model"][name], wanted)


def test_numpy_numbers_are_read():
    assert loads(pickle.dumps({"scale": np.float32(2.5)}, protocol=2)) == {"scale": 2.5}


class Marker:
    """Leaves a file when it is unpickled by the standard reader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Plain:
    """An object of our own."""


def state_setter(path):
    """A pickle that sets the attributes of a class instead of an array's."""
    return b"\x80\x02ccollections\nOrderedDict\n(dX\x01\x00\x00\x00aK\x01s" + b"b."


HOSTILE = {
    "code": lambda path: pickle.dumps({"model": Marker(path)}, protocol=2),
    "code, newer": lambda path: pickle.dumps([Marker(path)], protocol=5),
    "an object": lambda path: pickle.dumps(Plain(), protocol=2),
    "an object, older": lambda path: b"\x80\x02(cos\nmkdir\no.",
    "an instance": lambda path: b"\x80\x02(ios\nmkdir\n.",
    "an extension": lambda path: b"\x80\x02\x82\x01.",
    "a persistent name": lambda path: b"\x80\x02X\x01\x00\x00\x00aQ.",
    "eval": lambda path: b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.",
    "getattr": lambda path: b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
    "a dotted name": lambda path: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile.x\x93.",
    "a copier": lambda path: pickle.dumps(copyreg.__newobj__, protocol=2),
    "the state of a class": state_setter,
    "the state of a function": lambda path: b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
    "a set": lambda path: pickle.dumps({1, 2}, protocol=4),
    "an object array": lambda path: pickle.dumps(np.array([{}], object), protocol=2),
    "text in an array": lambda path: pickle.dumps(np.array(["text"]), protocol=2),
    "a structured array": lambda path: pickle.dumps(np.zeros(2, [("a", "f4")]), protocol=2),
    "an array without values": lambda path: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.",
    "numpy itself": lambda path: b"\x80\x02cnumpy\nndarray\n.",
    "a number called": lambda path: b"\x80\x02K\x01)R.",
    "nothing": lambda path: b"\x80\x02",
    "a stack run dry": lambda path: b"\x80\x02R.",
    "an unknown opcode": lambda path: b"\x80\x02\xff.",
    "a protocol of the future": lambda path: b"\x80\x09N.",
    "an endless list": lambda path: b"\x80\x02]q\x00h\x00a.",
    "a list of lists of lists": lambda path: b"\x80\x02]q\x00" + doubled(40) + b".",
    "a tuple of tuples as a key": lambda path: b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
    "a great memory index": lambda path: b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"h\x05.",
    "great text": lambda path: b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "great bytes": lambda path: b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
}  # fmt: skip


def doubled(times):
    """Opcodes that wrap the list on the stack twice into a list, again and again."""
    return b"".join(b"q" + bytes([i]) + b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(1, times))


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_ends_in_one_line_and_runs_nothing(name, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(PickleError) as caught:
        loads(HOSTILE[name](path))
    text = str(caught.value)
    assert text.count("\n") == 0
    assert len(text) < 300
    assert not path.exists()


def test_what_it_wanted_to_run_is_named(tmp_path):
    with pytest.raises(PickleError, match=r"it names posix\.mkdir; only numpy arrays .* nothing was run"):
        loads(HOSTILE["code"](tmp_path / "run"))


def test_an_array_claims_no_more_than_it_has():
    data = pickle.dumps(np.zeros((2, 3), np.float32), protocol=2)
    wrong = data.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")
    assert wrong != data
    with pytest.raises(PickleError, match="an array of 8 values of type float32 has 24 bytes"):
        loads(wrong)


def test_every_truncation_is_refused():
    data = pickle.dumps(CONTENT, protocol=2)
    assert len(list(pickletools.genops(data))) > 50
    for length in range(len(data)):
        with pytest.raises(PickleError):
            loads(data[:length])


def test_random_damage_is_refused_or_read():
    data = bytearray(pickle.dumps(CONTENT, protocol=2))
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(2000):
        damaged = data.copy()
        for position in generator.integers(0, len(data), size=generator.integers(1, 4)):
            damaged[position] = generator.integers(256)
        try:
            loads(bytes(damaged))
            outcomes.add("read")
        except PickleError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
