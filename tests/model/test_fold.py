"""Folded norms: the same numbers, without the norms."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from model.build import build_detector
from model.config import FeatureKind, Norm
from model.fold import fold_norms
from model.norms import FrozenBatchNorm
from model.settings import override
from tests.model.tiny_batch import tiny_batch
from tests.pipelines import tiny_run


def detector_of(norm, **settings):
    """Random weights and statistics far from the identity, in evaluation mode."""
    config = tiny_run.detector_config(norm)
    for name, value in settings.items():
        config = override(config, name.replace("__", "."), value)
    torch.manual_seed(0)
    built = build_detector(config).eval()
    for part in built.modules():
        if isinstance(part, FrozenBatchNorm | nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_()
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 3.0)
    return built


def norms(module):
    return [part for part in module.modules() if isinstance(part, FrozenBatchNorm | nn.BatchNorm2d)]


CASES = {
    "frozen": (Norm.FROZEN, {}),
    "fixed": (Norm.FIXED, {}),
    "batch everywhere": (Norm.BATCH, {"fpn_norm": Norm.BATCH, "mask__norm": Norm.BATCH}),
    "bottlenecks": (Norm.FROZEN, {"backbone__depth": 50}),
    "non-local": (Norm.FROZEN, {"backbone__non_local": True}),
    "convolutional box head": (Norm.SYNC, {"box__num_convs": 2, "box__conv_channels": 16, "box__norm": Norm.SYNC}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_features_and_heads_are_the_same(name):
    norm, settings = CASES[name]
    detector = detector_of(norm, **settings)
    folded = copy.deepcopy(detector)
    fold_norms(folded)
    assert norms(detector)
    assert not norms(folded)
    images, _ = tiny_batch(0)
    with torch.no_grad():
        for one, other in zip(detector.features(images), folded.features(images), strict=True):
            scale = float(one.abs().max())
            torch.testing.assert_close(other / scale, one / scale, atol=1e-5, rtol=0)
            assert other.is_contiguous(memory_format=torch.channels_last)
        wanted, found = detector.predict(images), folded.predict(images)
    for one, other in zip(wanted[:5], found[:5], strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_folded_is_left():
    grouped = detector_of(Norm.GROUP, backbone__stem_channels=32, fpn_channels=32)
    before = dict(grouped.state_dict())
    fold_norms(grouped)
    assert all(torch.equal(value, before[name]) for name, value in grouped.state_dict().items())
    deformable = detector_of(Norm.FROZEN, backbone__depth=50, backbone__deformable_stages=(5,))
    count = len(norms(deformable))
    fold_norms(deformable)
    assert 0 < len(norms(deformable)) == 3 < count


def test_a_detector_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode: call eval"):
        fold_norms(detector_of(Norm.BATCH).train())


def test_single_maps_fold_too():
    config = dataclasses.replace(tiny_run.detector_config(Norm.FROZEN), features=FeatureKind.C5)
    config = override(config, "anchors.sizes_px", (32.0,))
    config = override(config, "pooler.box_size", 7)
    detector = build_detector(config).eval()
    fold_norms(detector)
    assert not norms(detector)
