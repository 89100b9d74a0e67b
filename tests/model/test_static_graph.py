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
    for name in loss_names(DetectorConfig()):
        torch.testing.assert_close(found[0][name], wanted[0][name], rtol=1e-4, atol=1e-6, msg=name)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
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
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
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
