"""The convolution against torch's in float64: values, gradients, odd sizes, refusals, and what it leaves to torch."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from model.ops import extension
from model.ops.conv import Conv2d, conv2d

ONE = (1, 1)
winograd = torch.ops.maskray.winograd_conv
filter_grad = torch.ops.maskray.winograd_filter_grad
pointwise = torch.ops.maskray.pointwise_conv


def inputs(images, channels, height, width, outputs, seed=0):
    """Values whose sums over channels and taps are of the order of one."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, height, width, generator=rng).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, 3, 3, generator=rng) / (9 * channels) ** 0.5
    return x, weight, torch.randn(outputs, generator=rng)


SIZES = [
    (1, 128, 23, 24, 128), (2, 128, 16, 17, 160), (3, 134, 13, 14, 129), (64, 128, 14, 14, 128), (1, 192, 1, 600, 128),
    (1, 128, 515, 1, 128), (16, 256, 7, 7, 128), (1, 550, 23, 24, 97), (1, 64, 30, 41, 64),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_those_of_the_convolution(size):
    x, weight, bias = (value.requires_grad_() for value in inputs(*size))
    found = conv2d(x, weight, bias, padding=ONE)
    assert "maskray" in found.grad_fn.name()
    assert found.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    exact = [value.detach().double().requires_grad_() for value in (x, weight, bias)]
    wanted = F.conv2d(*exact, padding=1)
    for one, other in zip(
        (found, *torch.autograd.grad(found, (x, weight, bias), grad)),
        (wanted, *torch.autograd.grad(wanted, exact, grad.double())),
        strict=True,
    ):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


@pytest.mark.parametrize(("height", "width"), [*itertools.product(range(1, 7), repeat=2)])
def test_every_remainder_of_a_tile(height, width):
    x, weight, bias = inputs(2, 5, height, width, 3, seed=height)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    torch.testing.assert_close(winograd(x, weight, bias, False).double(), wanted, atol=2e-5, rtol=0)
    back = F.conv_transpose2d(wanted, weight.double(), padding=1)
    found = winograd(wanted.float(), weight, None, True)
    torch.testing.assert_close(found.double(), back, atol=5e-5, rtol=0)


def test_a_single_one_gives_the_filter():
    x = torch.zeros(1, 3, 9, 9)
    x[0, 1, 4, 5] = 1
    weight = torch.arange(2 * 3 * 9, dtype=torch.float32).view(2, 3, 3, 3)
    found = winograd(x, weight, None, False)
    torch.testing.assert_close(found[0, :, 3:6, 4:7], weight[:, 1].flip(1, 2), atol=1e-5, rtol=1e-5)
    found[0, :, 3:6, 4:7] = 0
    assert found.abs().max() <= 1e-4


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_convolve(images):
    x, weight, bias = inputs(images, 64, 0 if images else 30, 30, 64)
    assert winograd(x, weight, bias, False).shape == (images, 64, 0 if images else 30, 30)
    assert not filter_grad(x, x).any()


def test_same_bits_again_and_on_every_instruction_set(use_simd):
    x, weight, bias = inputs(2, 67, 30, 31, 66)

    def bits():
        out = winograd(x, weight, bias, False)
        return out, filter_grad(x, out), winograd(out, weight, None, True)

    first = bits()
    for variant in range(torch.ops.maskray.simd_variants()):
        use_simd(variant)
        for _ in range(2):
            assert all(torch.equal(one, other) for one, other in zip(bits(), first, strict=True))


def test_same_bits_with_any_number_of_threads():
    x, weight, bias = inputs(3, 70, 61, 63, 90)

    def bits(threads):
        torch.set_num_threads(threads)
        out = winograd(x, weight, bias, False)
        return out, filter_grad(x, out), winograd(out, weight, None, True)

    before = torch.get_num_threads()
    try:
        first = bits(1)
        for threads in (2, 3, 7):
            assert all(torch.equal(one, other) for one, other in zip(bits(threads), first, strict=True))
    finally:
        torch.set_num_threads(before)


def test_not_a_number_stays_where_it_is():
    x, weight, bias = inputs(1, 128, 40, 40, 128)
    x[0, 0, 10, 10] = float("nan")
    found = conv2d(x, weight, bias, padding=ONE)
    assert found[0, :, 9:12, 9:12].isnan().all()
    assert not found[0, :, 20:].isnan().any()


def test_shapes_that_do_not_fit():
    x, weight, _ = inputs(1, 64, 40, 40, 64)
    with pytest.raises(ValueError, match="the map has 64 channels, the filters are for 32: give maps of that width"):
        extension.call(winograd, x, weight[:, :32], None, False)
    with pytest.raises(ValueError, match="the gradient is of 1 maps of 40 x 39, the input of 1 of 40 x 40"):
        extension.call(filter_grad, x, x[..., :39])


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"channels": 63}, {}),
        ({"outputs": 63}, {}),
        ({"height": 10, "width": 10}, {}),
        ({}, {"stride": (2, 2)}),
        ({}, {"dilation": (2, 2), "padding": (2, 2)}),
        ({}, {"padding": (0, 0)}),
    ],
)
def test_other_convolutions_are_torch_s(changes, settings):
    size = {"images": 2, "channels": 128, "height": 30, "width": 31, "outputs": 128} | changes
    x, weight, bias = (value.requires_grad_() for value in inputs(**size))
    settings = {"padding": ONE} | settings
    found, wanted = conv2d(x, weight, bias, **settings), F.conv2d(x, weight, bias, **settings)
    assert torch.equal(found, wanted)
    grad = torch.ones_like(found)
    for one, other in zip(*(torch.autograd.grad(out, (x, weight, bias), grad) for out in (found, wanted)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_groups_and_other_types_are_torch_s():
    x, weight, bias = inputs(2, 64, 30, 31, 64)
    grouped = weight[:, :2].clone().requires_grad_()
    found = conv2d(x, grouped, bias, padding=ONE, groups=32)
    found.sum().backward()
    assert torch.equal(found, F.conv2d(x, grouped, bias, padding=1, groups=32))
    half = conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), padding=ONE)
    assert torch.equal(half, F.conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), padding=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv2d(x, weight, bias, padding=ONE).dtype is torch.bfloat16


@pytest.mark.parametrize(
    "size", [(1, 64, 50, 41, 3), (2, 70, 31, 40, 97), (3, 300, 32, 33, 64), (1, 512, 48, 43, 33)], ids=str
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_filters_of_one_cell(size, has_bias):
    x, weight, bias = inputs(*size)
    weight, bias = weight[:, :, :1, :1].contiguous(), bias if has_bias else None
    leaves = [value.requires_grad_() for value in (x, weight, bias) if value is not None]
    found = conv2d(x, weight, bias)
    assert "pointwise" in found.grad_fn.name()
    assert found.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    exact = [value.detach().double().requires_grad_() for value in leaves]
    wanted = F.conv2d(*exact)
    for one, other in zip(
        (found, *torch.autograd.grad(found, leaves, grad)),
        (wanted, *torch.autograd.grad(wanted, exact, grad.double())),
        strict=True,
    ):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_filters_of_one_cell_have_the_same_bits_everywhere(use_simd):
    x, weight, bias = inputs(2, 290, 33, 32, 77)
    weight = weight[:, :, :1, :1]
    first = pointwise(x, weight, bias)
    for variant in range(torch.ops.maskray.simd_variants()):
        use_simd(variant)
        assert torch.equal(pointwise(x, weight, bias), first)
    assert torch.equal(pointwise(x.contiguous(), weight.contiguous(), bias), first)
    assert torch.equal(pointwise(x[1:, :, 7:9], weight, bias), first[1:, :, 7:9])
    assert pointwise(x[:0], weight, bias).shape == (0, 77, 33, 32)
    with pytest.raises(ValueError, match="the map has 290 channels, the filters are for 32: give maps of that width"):
        extension.call(pointwise, x, weight[:, :32], None)


def test_operators_keep_their_promises():
    x, weight, bias = (value.requires_grad_() for value in inputs(1, 64, 9, 10, 64))
    torch.library.opcheck(pointwise, (x, weight[:, :, :1, :1], bias))
    torch.library.opcheck(pointwise, (x, weight[:, :, :1, :1], None))


def test_winograd_s_operators_keep_their_promises():
    x, weight, bias = (value.requires_grad_() for value in inputs(1, 64, 9, 10, 64))
    torch.library.opcheck(winograd, (x, weight, bias, False))
    torch.library.opcheck(winograd, (x, weight, None, True))
    torch.library.opcheck(filter_grad, (x.detach(), x.detach()))


def test_in_a_compiled_graph():
    layer = Conv2d(128, 128, 3, padding=1)
    strided = Conv2d(128, 128, 3, stride=2, padding=1)
    x = inputs(1, 128, 30, 30, 128)[0]
    wanted = strided(layer(x))
    compiled = torch.compile(lambda x: strided(layer(x)), backend="aot_eager", fullgraph=True)
    found = compiled(x)
    torch.testing.assert_close(found, wanted)
    found.sum().backward()
    assert layer.weight.grad is not None
    assert strided.weight.grad is not None
