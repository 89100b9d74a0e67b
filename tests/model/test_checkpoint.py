"""Weights to bytes and back; loading that says what does not fit."""

import io
import pickle

import pytest
import torch
from torch import nn

from model.checkpoint import from_bytes, load_strict, to_bytes

STATE = {
    "float": torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)),
    "bfloat": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "half": torch.tensor([65504.0], dtype=torch.float16),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "long": torch.tensor(2**62),
    "bool": torch.tensor([True, False]),
    "none": torch.zeros(0, 7),
    "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
}


def same(one, other):
    """Equal to the bit, NaN too."""
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def test_a_state_comes_back_as_it_was():
    loaded = from_bytes(to_bytes(STATE))
    assert loaded.keys() == STATE.keys()
    for name, value in STATE.items():
        if value.dtype == torch.bfloat16:
            assert torch.equal(loaded[name], value)
        else:
            assert same(loaded[name], value), name
    assert from_bytes(to_bytes({})) == {}


def test_any_memory_order_and_parameters_can_be_stored():
    value = STATE["float"]
    loaded = from_bytes(
        to_bytes({
            "channels last": value.contiguous(memory_format=torch.channels_last),
            "transposed": value.transpose(0, 3),
            "slice": value[:, 1:2],
            "parameter": nn.Parameter(value.clone()),
        })
    )  # fmt: skip
    assert torch.equal(loaded["channels last"], value)
    assert torch.equal(loaded["transposed"], value.transpose(0, 3))
    assert torch.equal(loaded["slice"], value[:, 1:2])
    assert torch.equal(loaded["parameter"], value)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in loaded.values())


def torch_file():
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    return buffer.getvalue()


DAMAGED = {
    "nothing": b"",
    "short": b"\0" * 7,
    "zeros": b"\0" * 64,
    "huge-header": b"\xff" * 64,
    "pickle": pickle.dumps({"weight": 1}),
    "torch-file": torch_file(),
    "text": b"<html>404 not found</html>" * 10,
    "longer": to_bytes(STATE) + b"\0",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"not a safetensors file .* damaged or of another format"):
        from_bytes(data)


def test_a_file_cut_anywhere_is_refused():
    data = to_bytes(STATE)
    for length in range(0, len(data), 13):
        with pytest.raises(ValueError, match="not a safetensors file"):
            from_bytes(data[:length])


def module():
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def test_a_state_that_fits_is_loaded():
    torch.manual_seed(0)
    source, other = module(), module()
    source[1].running_mean.fill_(3)
    load_strict(other, from_bytes(to_bytes(source.state_dict())), "x")
    for name, value in source.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


PROBLEMS = {
    "missing": (lambda s: without(s, "0.weight"), r"run.safetensors does not fit .*\(1 missing: 0\.weight\): build it"),
    "unknown": (lambda s: {**s, "0.scale": s["0.bias"]}, r"\(1 unknown: 0\.scale\)"),
    "shape": (lambda s: {**s, "0.bias": torch.zeros(4)}, r"\(1 of another shape: 0\.bias \(4,\) instead of \(3,\)\)"),
    "renamed": (
        lambda s: {**without(s, "0.bias"), "0.b": s["0.bias"]},
        r"\(1 missing: 0\.bias; 1 unknown: 0\.b\)",
    ),
    "all-three": (
        lambda s: {**without(s, "0.bias"), "1.bias": torch.zeros(()), "a": torch.zeros(1), "b": torch.zeros(1)},
        r"\(1 missing: 0\.bias; 2 unknown: a, b; 1 of another shape: 1\.bias \(\) instead of \(3,\)\)",
    ),
    "only-four-are-named": (lambda s: {}, r"\(7 missing: 0\.bias, 0\.weight, 1\.bias, 1\.num_batches_tracked\)"),
}


@pytest.mark.parametrize(("change", "match"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, match):
    target = module()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    with pytest.raises(ValueError, match=match) as error:
        load_strict(target, change(state), "run.safetensors")
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
