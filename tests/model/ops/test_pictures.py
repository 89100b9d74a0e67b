"""Pictures of bytes are resized to OpenCV's very bytes, in place, whatever the machine."""

import cv2
import numpy as np
import pytest
import torch

from model.ops.pictures import resize_bytes


def drawn(rng, *size_hw):
    return rng.integers(0, 256, (*size_hw, 3), np.uint8)


def peer(picture, size_hw, mirrored):
    turned = np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture
    return cv2.resize(turned, size_hw[::-1], interpolation=cv2.INTER_LINEAR).reshape(*size_hw, 3)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_sizes_give_opencvs_bytes(seed, mirrored):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        size, wanted = rng.integers(1, 200, 2).tolist(), rng.integers(1, 300, 2).tolist()
        if size == [2 * side for side in wanted]:
            continue
        picture = drawn(rng, *size)
        batch = np.full((wanted[0] + 1, wanted[1] + 3, 3), 77, np.uint8)
        window = torch.from_numpy(batch)[: wanted[0], : wanted[1]]
        resize_bytes(torch.from_numpy(picture), window, mirrored=mirrored)
        np.testing.assert_array_equal(window.numpy(), peer(picture, wanted, mirrored))
        assert (batch[wanted[0] :] == 77).all()
        assert (batch[:, wanted[1] :] == 77).all()


@pytest.mark.parametrize(
    ("size", "wanted"), [((480, 640), (800, 1066)), ((1080, 1920), (750, 1333)), ((3, 5), (3, 5)), ((1, 1), (9, 33))]
)
def test_usual_sizes_give_opencvs_bytes_in_every_variant(size, wanted, use_simd):
    picture = drawn(np.random.default_rng(0), *size)
    for variant in range(torch.ops.maskray.simd_variants()):
        use_simd(variant)
        for mirrored in (False, True):
            out = torch.empty(*wanted, 3, dtype=torch.uint8)
            resize_bytes(torch.from_numpy(picture), out, mirrored=mirrored)
            np.testing.assert_array_equal(out.numpy(), peer(picture, wanted, mirrored))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_window_is_that_part_of_the_whole(mirrored):
    rng = np.random.default_rng(0)
    for _ in range(100):
        size, whole = rng.integers(1, 90, 2).tolist(), rng.integers(1, 150, 2).tolist()
        picture = torch.from_numpy(drawn(rng, *size))
        wanted = torch.empty(*whole, 3, dtype=torch.uint8)
        resize_bytes(picture, wanted, mirrored=mirrored)
        (top, bottom), (left, right) = (
            (int(a), int(rng.integers(a + 1, n + 1))) for n in whole for a in [rng.integers(n)]
        )
        window = torch.empty(bottom - top, right - left, 3, dtype=torch.uint8)
        resize_bytes(picture, window, tuple(whole), (top, left), mirrored=mirrored)
        assert torch.equal(window, wanted[top:bottom, left:right])


def test_the_inputs_may_be_views():
    whole = torch.from_numpy(drawn(np.random.default_rng(0), 40, 60))
    turned = whole.permute(1, 0, 2)
    out = torch.empty(90, 70, 3, dtype=torch.uint8)
    resize_bytes(turned, out)
    np.testing.assert_array_equal(out.numpy(), peer(np.ascontiguousarray(turned.numpy()), (90, 70), False))


def test_a_resize_passes_opcheck():
    picture, out = torch.zeros(5, 6, 3, dtype=torch.uint8), torch.zeros(9, 8, 3, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.maskray.resize_bytes.default, (picture, out, 20, 30, 11, 22, True))


PICTURE = torch.zeros(5, 6, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((PICTURE.float(), PICTURE), r"a picture of torch.float32 \[5, 6, 3\]"),
        ((PICTURE[..., :1], PICTURE), r"a picture of torch.uint8 \[5, 6, 1\]"),
        ((PICTURE, PICTURE[0]), r"a place of torch.uint8 \[6, 3\] on cpu, wanted uint8 \[H, W, 3\]"),
        ((PICTURE, PICTURE.permute(1, 0, 2)), r"a place with strides \[3, 18, 1\], wanted 3 and 1"),
        ((PICTURE[:0], PICTURE), "a picture of 0 x 6 and a place of 5 x 6"),
        ((PICTURE, PICTURE[:, :0]), "a place of 5 x 0, wanted at least a pixel"),
        ((PICTURE, PICTURE, (5, 7), (0, 2)), r"a window of 5 x 6 at \(0, 2\) of 5 x 7, wanted it inside"),
        ((PICTURE, PICTURE, (9, 9), (-1, 0)), r"at \(-1, 0\) of 9 x 9"),
        ((PICTURE, PICTURE, (2**28, 9)), "to 268435456 x 9, wanted sides below"),
        ((PICTURE, PICTURE, (-(2**63), 10), (1, 0)), r"at \(1, 0\) of -9223372036854775808 x 10, wanted it inside"),
    ],
)
def test_wrong_input_is_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        resize_bytes(*arguments)
