"""One step: what clipping, averages, parts of a batch, half precision and values that are no numbers do to it."""

import copy

import pytest
import torch

from model.config import Norm
from model.settings import override
from pipelines import checkpoints, loop, train_feed
from pipelines.config import Precision
from pipelines.optim import Algorithm
from pipelines.train_state import Part, TrainState
from tests.pipelines import tiny_run, tiny_shards
from tests.pipelines.tiny_run import CPU


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_run.dataset(tmp_path_factory.mktemp("data"))


def made(data, norm=Norm.BATCH, optim=None, **changes):
    config = tiny_run.config(data, "unused", norm, optim, **changes)
    torch.manual_seed(0)
    detector = tiny_run.build(norm).train()
    return TrainState(detector, config), train_feed.build_batches(config, CPU)


def part(batches, step=0):
    return Part(batches[step].images, batches[step].targets, 1.0)


def weights(state):
    return {name: value.clone() for name, value in state.detector.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_gradients_are_clipped_to_the_norm(data):
    state, batches = made(data, optim={"clip_norm": 0.5, "momentum": 0.0, "learning_rate": 1.0, "weight_decay": 0.0})
    before = {name: value.detach().clone() for name, value in state.detector.named_parameters()}
    outcome = state.step(state.detector, [part(batches)])
    moved = sum((p.detach() - before[name]).double().square().sum() for name, p in state.detector.named_parameters())
    assert float(moved) ** 0.5 == pytest.approx(0.5, rel=1e-3)
    assert float(outcome.norm) > 0.5


@pytest.mark.parametrize(("precision", "kind"), [(Precision.BF16, torch.bfloat16), (Precision.FP16, torch.float16)])
def test_half_precision_keeps_parameters_and_losses_in_float32(data, precision, kind):
    state, batches = made(data, precision=precision)
    batch = batches[0]
    with torch.no_grad():
        exact = copy.deepcopy(state.detector)(batch.images, batch.targets)
    seen = []
    state.detector.pyramid.lateral[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    outcome = state.step(state.detector, [part(batches)])
    assert seen == [kind]
    assert {value.dtype for value in outcome.losses.values()} == {torch.float32}
    assert {value.dtype for value in state.detector.parameters()} == {torch.float32}
    assert float(outcome.losses["rpn_cls"]) == pytest.approx(float(exact["rpn_cls"]), rel=0.02)
    assert not bool(outcome.skipped)


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("first", [True, False])
def test_a_batch_with_a_number_that_is_none_changes_nothing(data, algorithm, first):
    """Neither weights nor the statistics of norms, which the forward pass has changed by then."""
    state, batches = made(data, optim={"algorithm": algorithm})
    if not first:
        state.step(state.detector, [part(batches)])
    before, slots = weights(state), copy.deepcopy(state.optimiser.state_dict()["state"])
    outcome = state.step(state.detector, [tiny_run.poisoned_part(part(batches, 1))])
    assert (bool(outcome.lost), bool(outcome.skipped)) == (True, True)
    assert same(before, weights(state))
    if not first:
        for number, held in state.optimiser.state_dict()["state"].items():
            assert all(torch.equal(value, slots[number][name]) for name, value in held.items())
    assert state.is_finite()
    outcome = state.step(state.detector, [part(batches, 2)])
    assert not bool(outcome.skipped)
    assert state.is_finite()
    assert not same(before, weights(state))


def test_a_step_left_out_leaves_the_rest_of_the_run_alone(data):
    """The steps around it give the weights they give without it."""
    runs = []
    for poison in (True, False):
        state, batches = made(data)
        state.step(state.detector, [part(batches)])
        if poison:
            state.step(state.detector, [tiny_run.poisoned_part(part(batches, 1))])
        state.step(state.detector, [part(batches, 2)])
        runs.append(weights(state))
    assert same(*runs)


def test_parts_of_a_batch_are_the_batch(tmp_path):
    """Every picture gives the same number of samples here, so that a mean of means is the mean."""
    data = tiny_run.dataset(tmp_path / "data", stride=3)
    whole = tiny_run.config(data, "unused", Norm.FROZEN, {"batch": 4})
    whole = override(override(whole, "detector.box.samples", 8), "detector.box.positive_share", 0.125)
    gradients = []
    for parts in (1, 2, 4):
        config = override(whole, "execution.accumulate", parts)
        torch.manual_seed(0)
        state = TrainState(tiny_run.build_from(config.detector).train(), config)
        feed = train_feed.Feed(config, CPU, 0)
        outcome = state.step(state.detector, feed.parts())
        assert sorted(feed.image_ids) == sorted(train_feed.build_batches(whole, CPU)[0].image_ids.tolist())
        gradients.append((outcome, [p.grad.clone() for p in state.detector.parameters()]))
    for outcome, found in gradients[1:]:
        for name, value in gradients[0][0].losses.items():
            assert float(outcome.losses[name]) == pytest.approx(float(value), rel=2e-3), name
        assert float(outcome.norm) == pytest.approx(float(gradients[0][0].norm), rel=5e-3)
        assert all(torch.allclose(a, b, rtol=0.05, atol=1e-3) for a, b in zip(found, gradients[0][1], strict=True))


@pytest.mark.parametrize(("world", "parts", "batch"), [(1, 3, 7), (2, 1, 5), (3, 2, 8), (4, 1, 4)])
def test_workers_and_parts_share_a_batch_whatever_their_number(data, world, parts, batch):
    config = tiny_run.config(data, "unused", optim={"batch": batch}, execution={"accumulate": parts})
    for step in (0, 3):
        wanted = train_feed.build_batches(override(config, "execution.accumulate", 1), CPU).positions(step)
        found, weight = [], 0.0
        for rank in range(world):
            feed = train_feed.Feed(config, train_feed.Place(rank, world, torch.device("cpu")), step)
            weight += sum(piece.weight for piece in feed.parts())
            batches = train_feed.build_batches(config, train_feed.Place(rank, world, torch.device("cpu")))
            found += [place for k in range(parts) for place in batches.positions(step * parts + k)]
        assert sorted(found, key=repr) == sorted(wanted, key=repr)
        assert weight == pytest.approx(world)


def test_the_average_follows_the_weights(data):
    state, batches = made(data, optim={"ema_decay": 0.5})
    wanted = {name: p.detach().clone() for name, p in state.detector.named_parameters()}
    for step in range(3):
        state.step(state.detector, [part(batches, step)])
        decay = min(0.5, (2 + step) / (11 + step))
        for name, p in state.detector.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * p.detach()
    average = state.extra()["average"]
    assert average.keys() == state.detector.state_dict().keys()
    for name, value in wanted.items():
        torch.testing.assert_close(average[name], value)


def test_the_average_is_what_a_checkpoint_predicts_with(data, tmp_path):
    state, batches = made(data, optim={"ema_decay": 0.9})
    for step in range(2):
        state.step(state.detector, [part(batches, step)])
    held = checkpoints.snapshot(2, state.detector, state.optimiser, tiny_shards.CLASSES, state.extra())
    found = checkpoints.load_detector(checkpoints.write(str(tmp_path), held)).state_dict()
    assert same(found, state.extra()["average"])
    assert not same(found, weights(state))


def test_the_loss_scale_halves_on_overflow_and_doubles_after_a_while(data, monkeypatch):
    monkeypatch.setattr("pipelines.train_state._GROW_AFTER", 3)
    state, batches = made(data, Norm.FROZEN, precision=Precision.FP16)
    scale = state._scale
    before = weights(state)
    first = 2.0**8
    state._scale.value = torch.tensor(1e38)  # any gradient overflows
    outcome = state.step(state.detector, [part(batches)])
    assert not bool(outcome.skipped)  # the scale's business, not the network's
    assert float(scale.value) == pytest.approx(2.0**24)  # half of it is still above the largest scale
    assert same(before, weights(state))
    scale.value = torch.tensor(first)
    values = []
    for step in range(7):
        state.step(state.detector, [part(batches, step)])
        values.append(float(scale.value))
    assert values == [first, first, 2 * first, 2 * first, 2 * first, 4 * first, 4 * first]


def test_float16_gradients_are_those_without_a_scale(data):
    norms = []
    for scale in (1.0, 2.0**12):
        state, batches = made(data, Norm.FROZEN, precision=Precision.FP16, optim={"clip_norm": 0.0})
        state._scale.value = torch.tensor(scale)
        norms.append(float(state.step(state.detector, [part(batches)]).norm))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_the_fingerprint_sees_one_bit(data):
    state, _ = made(data)
    before = int(state.fingerprint())
    assert int(state.fingerprint()) == before
    weight = state.detector.rpn.head.convs[0].weight
    with torch.no_grad():
        weight[1, 2, 0, 1] *= 1 + 2**-23
    assert int(state.fingerprint()) != before


GPU_SETTINGS = [
    {},
    {"precision": Precision.BF16},
    {"precision": Precision.FP16, "optim": {"ema_decay": 0.9, "clip_norm": 0.5, "algorithm": Algorithm.ADAMW}},
]


@pytest.mark.gpu
@pytest.mark.parametrize("settings", GPU_SETTINGS, ids=["fp32", "bf16", "fp16-ema-adamw"])
def test_a_whole_step_on_a_gpu_never_waits_for_it(data, settings):
    """From the batch on the device to the updated weights: losses, gradients, clipping, optimiser, average, scale."""
    config = tiny_run.config(data, "unused", **settings)
    gpu = torch.device("cuda")
    state = TrainState(tiny_run.build().to(gpu).train(), config)
    batches = train_feed.build_batches(config, CPU)
    parts = [train_feed.to_device(part(batches, step), gpu) for step in range(3)]
    state.step(state.detector, parts[:1])  # the first step chooses algorithms and reserves memory
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes = [state.step(state.detector, [one]) for one in parts[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(bool(outcome.lost) for outcome in outcomes)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_two_deterministic_runs_on_a_gpu_are_one(data, tmp_path, monkeypatch, precision):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    hashes = set()
    for name in ("a", "b"):
        config = tiny_run.config(data, tmp_path / name, precision=precision, deterministic=True)
        loop.fit(tiny_run.job(config), train_feed.Place(0, 1, torch.device("cuda")), lambda row: None)
        hashes.add(checkpoints.load(config.out).hash)
    assert len(hashes) == 1
