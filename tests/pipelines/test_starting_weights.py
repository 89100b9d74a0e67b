"""Checkpoints of weights alone: written once, read as any other, with their remainder."""

import pytest
import torch

from pipelines import checkpoints, starting_weights
from pipelines.checkpoints import CheckpointError
from pipelines.manifest import ClassInfo
from pipelines.optim import OptimConfig, build_optimiser
from tests.pipelines import tiny_run

CLASSES = (ClassInfo(3, "circle"), ClassInfo(7, "square"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_alone_and_their_remainder(tmp_path):
    detector = tiny_run.build()
    uri, rest = str(tmp_path / "one"), {"unused": torch.arange(3.0)}
    made = starting_weights.save(uri, detector, CLASSES, rest)
    assert (made.step, made.classes) == (0, CLASSES)
    assert checkpoints.load(uri) == made == starting_weights.save(uri, detector, CLASSES, rest)
    assert same(checkpoints.load_detector(made).state_dict(), detector.state_dict())
    assert same(starting_weights.load_remainder(made), rest)
    bare = starting_weights.save(str(tmp_path / "two"), detector, CLASSES, {})
    assert starting_weights.load_remainder(bare) == {}


def test_another_checkpoint_is_left_alone(tmp_path):
    uri = str(tmp_path / "one")
    made = starting_weights.save(uri, tiny_run.build(), CLASSES, {})
    for detector, classes, rest in (
        (tiny_run.build(seed=1), CLASSES, {}),
        (tiny_run.build(), CLASSES[::-1], {}),
        (tiny_run.build(), CLASSES, {"unused": torch.ones(1)}),
    ):
        with pytest.raises(CheckpointError, match="holds another checkpoint, which was left alone: choose another"):
            starting_weights.save(uri, detector, classes, rest)
    assert checkpoints.load(uri) == made


def test_it_has_no_optimiser_and_a_damaged_remainder_is_found(tmp_path):
    detector = tiny_run.build()
    made = starting_weights.save(str(tmp_path), detector, CLASSES, {"unused": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"lacks optimizer\.safetensors"):
        checkpoints.restore(made, detector, build_optimiser(detector, OptimConfig()))
    (remainder,) = tmp_path.glob("remainder-*.safetensors")
    remainder.write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not match the sha256"):
        starting_weights.load_remainder(made)
