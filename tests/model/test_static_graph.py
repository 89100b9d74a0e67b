"""The training step is one graph of fixed shapes: it compiles whole, is not compiled again, and never waits."""

import pytest
import torch

from model.config import DetectorConfig
from model.detector import loss_names
from tests.model.tiny_batch import on_device, tiny_batch, tiny_detector

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)]  # minutes of C++ compiler

# Every switch the other way round than in the preset.
OTHER_RULES = {
    "backbone.norm": "frozen",
    "backbone.frozen_stages": 2,
    "anchors.rounded": True,
    "anchors.fitted": True,
    "rpn.reassign_best": True,
    "rpn.min_best_iou": 0.1,
    "rpn.smooth_l1_beta": 0.1,
    "pooler.aligned": False,
    "pooler.sampling_ratio": 0,
    "pooler.level_rule": "mmdetection",
    "mask.target": "soft",
    "picture.channel_order": "bgr",
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(losses_of, detector, batch):
    """The losses and all gradients of a step; backward is outside whatever was compiled."""
    detector.zero_grad(set_to_none=True)
    losses = losses_of(*batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


def assert_same_step(found, wanted):
    assert found[0].keys() == wanted[0].keys()
    for name, value in wanted[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_compiled_losses_equal_eager_and_are_compiled_once(backend):
    detector = tiny_detector()
    compiled = torch.compile(detector.losses, fullgraph=True, backend=backend, dynamic=False)
    # The same shapes; other pictures, sizes, numbers of objects and seeds.
    first, second, empty = tiny_batch(0), tiny_batch(1, counts=(1, 3)), tiny_batch(2, counts=(0, 0))
    assert_same_step(step(compiled, detector, first), step(detector.losses, detector, first))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (second, empty):
            assert_same_step(step(compiled, detector, batch), step(detector.losses, detector, batch))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_compiled_prediction_equals_eager_and_is_compiled_once(backend):
    detector = tiny_detector(**{"box.score_threshold": 0.0}).eval()
    compiled = torch.compile(detector.predict, fullgraph=True, backend=backend, dynamic=False)
    for seed, again in ((0, False), (1, True)):
        images, _ = tiny_batch(seed)
        with torch._dynamo.config.patch(error_on_recompile=again):
            found = compiled(images)
        wanted = detector.predict(images)
        assert wanted.valid.any()
        for one, other in zip(found[:-1], wanted[:-1], strict=True):  # no heat maps
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_other_rules_trace_as_one_graph_too():
    detector = tiny_detector(**OTHER_RULES)
    batch = tiny_batch(0)
    compiled = torch.compile(detector.losses, fullgraph=True, backend="eager", dynamic=False)
    assert_same_step(step(compiled, detector, batch), step(detector.losses, detector, batch))


def batch_with_all(seed, **given):
    """A batch with keypoints and a semantic map, for whatever looks at them."""
    images, targets = tiny_batch(seed, **given)
    generator = torch.Generator().manual_seed(seed)
    places = targets.boxes[:, :, None, :2] + 10 * torch.rand(*targets.valid.shape, 3, 2, generator=generator)
    semantic = torch.randint(0, 5, images.pixels[:, 0].shape, generator=generator).to(torch.uint8)
    keypoints = torch.cat([places, torch.full_like(places[..., :1], 2)], dim=-1)
    return images, targets._replace(keypoints=keypoints, semantic=semantic)


C4_HEAD = {"box.num_fcs": 0, "mask.num_convs": 0, "anchors.sizes_px": (16.0, 32.0), "backbone.norm": "frozen"}
ARCHITECTURES = {
    "keypoints": {"keypoint.enabled": True, "keypoint.flip_pairs": (), "keypoint.num_keypoints": 3,
                  "keypoint.num_convs": 1, "keypoint.channels": 8},
    "c4": {"features": "c4", **C4_HEAD},
    "cascade": {"roi": "cascade", "cascade.resample": False, "cascade.mask_each_stage": False,
                "cascade.feature_gradient": 1 / 3, "cascade.merge": "probabilities"},
    "htc": {"roi": "htc", "box.class_agnostic": True, "box.reassign_best": True, "rpn.border_px": 0,
            "rpn.own_padding_only": True, "rpn.divisor": "one_positive", "semantic.enabled": True,
            "semantic.num_classes": 5, "semantic.channels": 16, "semantic.num_convs": 1},
}  # fmt: skip


# Tracing shows that the losses are one graph; the backward pass of four architectures takes two minutes more.
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.soak)])
@pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_architecture_s_losses_are_one_graph_compiled_once(settings, backend):
    detector = tiny_detector(**settings)
    compiled = torch.compile(detector.losses, fullgraph=True, backend=backend, dynamic=False)
    first, second = batch_with_all(0), batch_with_all(1, counts=(1, 3))
    assert_same_step(step(compiled, detector, first), step(detector.losses, detector, first))
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same_step(step(compiled, detector, second), step(detector.losses, detector, second))


class NeverWaits:
    """Operations that would bring a number from the device to Python raise inside."""

    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("rules", [{}, OTHER_RULES], ids=["preset", "other-rules"])
def test_a_step_on_a_gpu_never_waits_for_it(rules):
    detector = tiny_detector(**rules).cuda()
    first, second = (on_device(tiny_batch(seed), "cuda") for seed in (0, 1))
    step(detector.losses, detector, first)  # the first step chooses algorithms and reserves memory
    with NeverWaits():
        losses, _ = step(detector.losses, detector, second)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.gpu
def test_a_prediction_on_a_gpu_never_waits_for_it():
    detector = tiny_detector(**{"box.score_threshold": 0.0}).cuda().eval()
    first, second = (on_device(tiny_batch(seed), "cuda")[0] for seed in (0, 1))
    detector.predict(first)
    with NeverWaits():
        found = detector.predict(second)
    assert found.valid.any()


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_compiled_losses_on_a_gpu_equal_eager_and_never_wait(backend):
    detector = tiny_detector().cuda()
    compiled = torch.compile(detector.losses, fullgraph=True, backend=backend, dynamic=False)
    first, second = (on_device(tiny_batch(seed), "cuda") for seed in (0, 1))
    assert_same_step(step(compiled, detector, first), step(detector.losses, detector, first))
    with NeverWaits(), torch._dynamo.config.patch(error_on_recompile=True):
        found = step(compiled, detector, second)
    assert_same_step(found, step(detector.losses, detector, second))


@pytest.mark.gpu
def test_a_step_on_a_gpu_equals_the_cpu_s():
    detector = tiny_detector()
    on_cpu = step(detector.losses, detector, tiny_batch(0))
    losses, _ = step(detector.cuda().losses, detector, on_device(tiny_batch(0), "cuda"))
    for name in loss_names(DetectorConfig()):
        torch.testing.assert_close(losses[name].cpu(), on_cpu[0][name], rtol=1e-2, atol=1e-3, msg=name)
