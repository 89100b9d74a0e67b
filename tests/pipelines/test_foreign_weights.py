"""Weight files of every kind, told apart by content; whatever is wrong with one is one line, and nothing runs."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from pipelines.foreign_weights import WeightsError, read

STATE = {"backbone.conv1.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(4)}


def torch_bytes(content, old=False):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


META = {"config": "model = dict(type='MaskRCNN')", "CLASSES": ("a", "b"), "epoch": 12}
CONTAINERS = {
    "flat": (torch_bytes(STATE), {}),
    "flat, before torch 1.6": (torch_bytes(STATE, old=True), {}),
    "ordered": (torch_bytes(collections.OrderedDict(STATE)), {}),
    "mmdetection": (torch_bytes({"state_dict": STATE, "meta": META}), {"meta": META}),
    "detectron2 .pth": (torch_bytes({"model": STATE, "iteration": 5}), {}),
    "detectron2 .pkl": (
        pickle.dumps({"model": arrays(STATE), "__author__": "Zoo"}, protocol=2),
        {"__author__": "Zoo"},
    ),
    "safetensors": (safetensors.torch.save(STATE, {"format": "pt"}), {"format": "pt"}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_weights(name, tmp_path):
    data, metadata = CONTAINERS[name]
    path = tmp_path / "weights.bin"  # the name tells nothing
    path.write_bytes(data)
    found = read(str(path))
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[key], value) for key, value in STATE.items())
    assert found.metadata == metadata
    assert found.notices == ()
    assert len(found.sha256) == 64
    assert read(path.as_uri()).sha256 == found.sha256


def test_prefixes_of_wrappers_go(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes({"module.model.a.weight": torch.ones(2), "b.bias": torch.zeros(1)}))
    found = read(str(path))
    assert set(found.state) == {"a.weight", "b.bias"}
    assert found.notices == ("names without their prefix module.model.",)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32_and_it_is_said(kind, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes({"a": torch.ones(2, dtype=kind)}))
    found = read(str(path))
    assert found.state["a"].dtype is torch.float32
    assert found.notices == (f"{str(kind).removeprefix('torch.')} became float32",)


def test_big_endian_arrays_are_read(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([1.5, 2.5], ">f4")}))
    assert read(str(path)).state["a"].tolist() == [1.5, 2.5]


def test_values_that_are_not_finite_are_told(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(torch_bytes({"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(1)}))
    assert read(str(path)).notices == ("a holds values that are not finite: the detector will not work",)


class Marker:
    """Makes a folder when it is unpickled by the standard reader."""

    def __reduce__(self):
        return os.mkdir, ("run",)


def archive(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return stream.getvalue()


def header(fields, data=b""):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def large_claim():
    """A torch file whose tensor says that it is far larger than its values."""
    return torch_bytes({"a": torch.zeros(1).expand(10**12)})


WRONG = {
    "code in .pth": (lambda: torch_bytes({"a": Marker()}), r"names posix\.mkdir: only tensors .* nothing was run"),
    "code in old .pth": (lambda: torch_bytes({"a": Marker()}, old=True), r"names posix\.mkdir: only tensors"),
    "code in .pkl": (lambda: pickle.dumps({"a": Marker()}, protocol=2), r"cannot be read: it names posix\.mkdir;"),
    "a whole model": (lambda: torch_bytes(torch.nn.Linear(2, 2)), r"names torch\.nn\.modules\.linear\.Linear: only"),
    "empty": (lambda: b"", "begins with nothing, which is no weight file"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(20), "begins with 89 50 4e 47, which is no weight file"),
    "truncated .pth": (lambda: torch_bytes(STATE)[:-200], "is a damaged archive"),
    "truncated old .pth": (lambda: torch_bytes(STATE, old=True)[:-30], "is damaged"),
    "truncated .pkl": (lambda: pickle.dumps(arrays(STATE))[:-9], "is a pickle that cannot be read"),
    "truncated safetensors": (lambda: safetensors.torch.save(STATE)[:-3], "not a safetensors file"),
    "another archive": (lambda: archive(a=b"text"), "is damaged"),
    "a zip bomb": (lambda: archive(a=bytes(10**6)), "unpacks from .* to 1000000 bytes"),
    "a huge header": (lambda: struct.pack("<Q", 2**40) + b"{}", "claims a header of 1099511627776 bytes and has 10"),
    "a nested header": (lambda: header(0) + b"", "."),
    "a list": (lambda: torch_bytes([torch.ones(2)]), "holds a list, wanted a state dict"),
    "a number": (lambda: torch_bytes({"a": 3}), "holds 'a' as a int, wanted arrays only"),
    "numbers as names": (lambda: torch_bytes({3: torch.ones(1)}), "names a parameter 3, wanted text"),
    "nothing": (lambda: torch_bytes({}), "holds no parameters"),
    "integers": (lambda: torch_bytes({"a": torch.ones(2, dtype=torch.int64)}), r"'a' as torch\.int64, wanted floating"),
    "complex": (lambda: torch_bytes({"a": torch.ones(2, dtype=torch.complex64)}), r"'a' as torch\.complex64"),
    "sparse": (lambda: torch_bytes({"a": torch.eye(2).to_sparse()}), r"torch\.sparse_coo, wanted plain"),
    "no values": (lambda: torch_bytes({"a": torch.ones(2, device="meta")}), r"'a' without values \(on meta\)"),
    "the same twice": (
        lambda: torch_bytes({"module.a": torch.ones(1), "a": torch.ones(1)}),
        "holds both 'module.a' and 'a', which mean the same",
    ),
    "more than it holds": (large_claim, r"claims \(1000000000000,\) values for 'a' and holds fewer"),
    "text in an array": (lambda: pickle.dumps({"a": np.array(["x"])}), "an array has the type 'U1', wanted numbers"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_end_in_one_line_and_run_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = WRONG[name]
    path = tmp_path / "weights"
    path.write_bytes(make())
    with pytest.raises(WeightsError, match=message) as caught:
        read(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_truncation_of_every_kind_is_refused(tmp_path):
    path = tmp_path / "weights"
    for name in ("flat", "flat, before torch 1.6", "detectron2 .pkl", "safetensors"):
        data = CONTAINERS[name][0]
        for length in range(0, len(data) - 1, 41):
            path.write_bytes(data[:length])
            with pytest.raises(WeightsError):
                read(str(path))


def test_random_damage_is_read_or_refused(tmp_path):
    path = tmp_path / "weights"
    generator = np.random.default_rng(0)
    for name in ("flat", "flat, before torch 1.6", "safetensors"):
        data = bytearray(CONTAINERS[name][0])
        refused = 0
        for _ in range(60):
            damaged = data.copy()
            for position in generator.integers(0, len(data), size=3):
                damaged[position] = generator.integers(256)
            path.write_bytes(damaged)
            try:
                read(str(path))
            except WeightsError:
                refused += 1
        assert refused > 5


def test_no_file_and_no_place(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no file .*none: give weights as"):
        read(str(tmp_path / "none"))
    with pytest.raises(WeightsError, match=r"cannot read "):
        read(str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot open 'https://x/y\.pth'"):
        read("https://x/y.pth")


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_a_header_of_any_length_is_read(tmp_path, padding):
    """The length comes first in a safetensors file: its lowest byte can be what a pickle begins with."""
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a.weight": torch.ones(2)}, path, metadata={"note": "x" * padding})
    assert read(str(path)).state["a.weight"].tolist() == [1, 1]
