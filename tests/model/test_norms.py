"""Normalisation: batch norm of padded batches against torch's on the real entries, and two workers against one."""

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from model.config import Norm
from model.norms import ConvNorm, FixedBatchNorm, FrozenBatchNorm, MaskedBatchNorm, build_norm

CHANNELS = 3
VALID = torch.tensor([True, False, True, True, False, True])


def entries(seed=0, count=6):
    """Maps [count, 3, 4, 5] of channels with other means and spreads."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.5, 2.0, 7.0])[:, None, None]
    return torch.randn(count, CHANNELS, 4, 5, generator=generator) * spread + 3 * spread


def pair():
    """Our norm and torch's with the same affine parts and statistics, none of them 1 or 0."""
    torch.manual_seed(1)
    ours, peer = MaskedBatchNorm(CHANNELS, 1e-3, sync=False), nn.BatchNorm2d(CHANNELS, eps=1e-3)
    for value in ours.state_dict().values():
        if value.ndim:
            value.copy_(torch.rand(CHANNELS) + 0.5)
    peer.load_state_dict(ours.state_dict())
    return ours, peer


def assert_same_state(ours, peer):
    for name, value in peer.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("valid", [VALID, torch.ones(6, dtype=torch.bool), VALID & (torch.arange(6) == 2)])
def test_real_entries_are_normalised_as_torch_does_without_the_padding(valid):
    ours, peer = pair()
    x, other = entries().requires_grad_(), entries().requires_grad_()
    found, wanted = ours(x, valid), peer(other[valid])
    torch.testing.assert_close(found[valid], wanted)
    assert_same_state(ours, peer)
    cotangent = entries(5)
    (found * cotangent)[valid].sum().backward()
    (wanted * cotangent[valid]).sum().backward()
    torch.testing.assert_close(x.grad[valid], other.grad[valid], rtol=1e-4, atol=1e-5)
    assert not x.grad[~valid].any()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(peer.named_parameters())[name].grad, rtol=1e-3, atol=1e-4)


def test_what_the_padding_holds_and_how_much_there_is_changes_nothing():
    x, results = entries(), []
    for padding in (entries(7, 2), 1e4 * entries(8, 9), torch.zeros(0, CHANNELS, 4, 5)):
        ours, _ = pair()
        valid = torch.arange(len(x) + len(padding)) < len(x)
        results.append((ours(torch.cat([x, padding]), valid)[valid], ours.state_dict()))
    for found, state in results[1:]:
        torch.testing.assert_close(found, results[0][0])
        for name, value in results[0][1].items():
            torch.testing.assert_close(state[name], value)


def test_a_batch_of_padding_alone_moves_no_statistics_and_stays_finite():
    ours, peer = pair()
    x = entries().requires_grad_()
    out = ours(x, torch.zeros(6, dtype=torch.bool))
    (0 * out).sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert_same_state(ours, peer)


@pytest.mark.parametrize("mask", [None, VALID])
def test_without_padding_or_training_it_is_torch_s_own(mask):
    ours, peer = pair()
    x = entries()
    if mask is None:
        assert torch.equal(ours(x), peer(x))
    assert torch.equal(ours.eval()(x, mask), peer.eval()(x) if mask is None else pair()[1].eval()(x))
    assert ours.num_batches_tracked.item() == (mask is None)


def test_half_precision_is_summed_in_single():
    ours, _ = pair()
    x = entries().to(torch.bfloat16)
    found = ours(x, VALID)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[VALID].float(), pair()[1](x.float()[VALID]), rtol=0.02, atol=0.02)


def share_of(rank):
    """A worker's part of the batch: four entries or two, with padding."""
    part = slice(0, 4) if rank == 0 else slice(4, 6)
    return part, VALID[part]


def shared_step(rank, folder):
    """One of two workers: its output, gradients and statistics, written to a file."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ours, _ = pair()
    ours.sync = True
    part, valid = share_of(rank)
    x = entries()[part].requires_grad_()
    found = ours(x, valid)
    (found * entries(5)[part])[valid].sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    torch.save((found.detach(), x.grad, gradients, ours.state_dict()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_workers_have_the_statistics_and_gradients_of_one(tmp_path):
    other = mp.get_context("spawn").Process(target=shared_step, args=(1, str(tmp_path)))
    other.start()
    shared_step(0, str(tmp_path))  # this process is the other worker, which saves one start
    other.join()
    assert other.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    alone, _ = pair()
    x = entries().requires_grad_()
    wanted = alone(x, VALID)
    (wanted * entries(5))[VALID].sum().backward()
    found, gradient = (torch.cat([part[i] for part in parts]) for i in range(2))
    torch.testing.assert_close(found[VALID], wanted[VALID].detach())
    torch.testing.assert_close(gradient, x.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in alone.named_parameters():  # a data-parallel wrapper adds the workers' up
        torch.testing.assert_close(parts[0][2][name] + parts[1][2][name], parameter.grad, rtol=1e-4, atol=1e-5)
    for _, _, _, state in parts:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(state[name], value)


def test_fixed_statistics_never_move_while_the_affine_part_learns():
    norm = FixedBatchNorm(CHANNELS)
    norm.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25, 9.0]))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    whole = nn.Sequential(norm).train()
    x = entries()
    statistics = norm.running_mean, norm.running_var
    torch.testing.assert_close(whole(x), F.batch_norm(x, *statistics, norm.weight, norm.bias, eps=norm.eps))
    whole(x).square().sum().backward()
    assert norm.weight.grad.all()
    assert norm.bias.grad.all()
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


KINDS = {
    Norm.FROZEN: FrozenBatchNorm,
    Norm.FIXED: FixedBatchNorm,
    Norm.BATCH: MaskedBatchNorm,
    Norm.SYNC: MaskedBatchNorm,
    Norm.GROUP: nn.GroupNorm,
}


@pytest.mark.parametrize("norm", Norm)
def test_each_kind_has_its_layer(norm):
    layer = build_norm(norm, 64, 3e-4)
    if norm is Norm.NONE:
        assert layer is None
        return
    assert type(layer) is KINDS[norm]
    assert layer.eps == 3e-4
    assert getattr(layer, "sync", False) == (norm is Norm.SYNC)
    assert {p.requires_grad for p in layer.parameters()} == (set() if norm is Norm.FROZEN else {True})


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 32), (8, 8), (1, 1)])
def test_group_norm_has_32_groups_or_one_a_channel(channels, groups):
    assert build_norm(Norm.GROUP, channels).num_groups == groups


def test_channels_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match=r"^group norm divides channels into 32 groups, got 48 channels: choose"):
        build_norm(Norm.GROUP, 48)


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_has_a_bias_or_a_norm(norm, kernel):
    torch.manual_seed(0)
    layer = ConvNorm(CHANNELS, 8, kernel, norm)
    x = entries()
    out = layer(x, VALID)
    plain = F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2)
    assert (layer.bias is None) == (norm is not Norm.NONE)
    if norm is Norm.NONE:
        torch.testing.assert_close(out, plain)
    elif norm in (Norm.BATCH, Norm.SYNC):
        torch.testing.assert_close(out[VALID], F.batch_norm(plain[VALID], None, None, training=True))
    else:
        torch.testing.assert_close(out, layer.norm(plain))
