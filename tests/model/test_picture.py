"""The picture pipeline: sizes and values against torchvision's transform, live; padding."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.config import PictureConfig, ResizeKernel, ResizeRounding
from model.picture import empty_batch, pad, padded_hw, place_bytes, resize, resized_hw, tight_hw

FLOOR = PictureConfig(rounding=ResizeRounding.FLOOR)
HALF_UP = PictureConfig(rounding=ResizeRounding.HALF_UP)


def peer(config):
    return GeneralizedRCNNTransform(config.short_edge_px, config.long_edge_px, [0.0] * 3, [1.0] * 3)


def peers_hw(height, width, config):
    """The size torchvision resizes to; on the meta device, so that no pixel is computed."""
    resized, _ = peer(config).eval().resize(torch.empty(3, height, width, device="meta"), None)
    return tuple(resized.shape[-2:])


def random_sizes(count):
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(30), np.log(4000), (count, 2))).astype(int)
    return [(height, width) for height, width in sizes.tolist() if max(height, width) < 100 * min(height, width)]


# Sizes whose scale is a hair too small in floating point, so that the short edge misses by one.
NEAR_MISSES = [
    (height, width) for height in range(300, 700) for width in (640,) if int(height * (800 / min(height, width))) == 799
]


def test_there_are_near_misses():
    assert len(NEAR_MISSES) >= 5
    assert all(
        799 in resized_hw(*size, 800, FLOOR) for size in NEAR_MISSES if size[0] < size[1] <= size[0] * 1333 / 800
    )


@pytest.mark.parametrize("config", [FLOOR, PictureConfig(128, 192, rounding=ResizeRounding.FLOOR)], ids=["800", "128"])
def test_floored_sizes_equal_torchvision_s(config):
    for height, width in [*random_sizes(60), *NEAR_MISSES, (480, 640), (640, 427), (800, 1333), (1333, 800), (1, 1)]:
        found = resized_hw(height, width, config.short_edge_px, config)
        assert found == peers_hw(height, width, config), (height, width)


def test_half_up_never_misses_the_short_edge_and_keeps_the_long_one():
    for height, width in [*random_sizes(2000), *NEAR_MISSES]:
        new = resized_hw(height, width, 800, HALF_UP)
        assert max(new) <= 1333
        assert min(new) == 800 or max(new) == 1333
        scale = min(800 / min(height, width), 1333 / max(height, width))
        assert abs(new[0] - height * scale) <= 0.5
        assert abs(new[1] - width * scale) <= 0.5
        assert resized_hw(width, height, 800, HALF_UP) == new[::-1]


def test_the_two_roundings_differ_by_a_pixel_at_most():
    sizes = random_sizes(500)
    pairs = [(resized_hw(*size, 800, FLOOR), resized_hw(*size, 800, HALF_UP)) for size in sizes]
    differences = {up - floor for one, other in pairs for floor, up in zip(one, other, strict=True)}
    assert differences == {0, 1}


@pytest.mark.parametrize("size", [(1, 3000), (9000, 3)], ids=str)
def test_a_picture_without_a_second_side_is_refused(size):
    with pytest.raises(ValueError, match=f"a picture of {size[1]} x {size[0]} px cannot be resized to .* 1333 px"):
        resized_hw(*size, 800, FLOOR)


@pytest.mark.parametrize("size", [(90, 130), (300, 201), (128, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resized_pixels_equal_torchvision_s(size, dtype):
    config = PictureConfig(128, 192, rounding=ResizeRounding.FLOOR)
    picture = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted, _ = peer(config).eval().resize(picture.float(), None)
    found = resize(picture.to(dtype), resized_hw(*size, 128, config), config.kernel)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_picture_of_the_right_size_keeps_its_values():
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize(picture, (20, 30), ResizeKernel.FLOAT_BILINEAR), picture.float())


SIZES = [((90, 131), (60, 87)), ((33, 50), (66, 100)), ((41, 7), (20, 3)), ((5, 5), (1, 1)), ((1, 9), (3, 4))]


def byte_picture(size):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def bilinear_at_centres(picture, size):
    """Bilinear without antialias at cells' centres, as loops, in single precision."""
    rows, columns = picture.shape[-2:]
    out = torch.zeros(3, *size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = max((i + 0.5) * rows / size[0] - 0.5, 0), max((j + 0.5) * columns / size[1] - 0.5, 0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            top = picture[:, y0, x0] * (1 - (x - x0)) + picture[:, y0, x1] * (x - x0)
            bottom = picture[:, y1, x0] * (1 - (x - x0)) + picture[:, y1, x1] * (x - x0)
            out[:, i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


@pytest.mark.parametrize(("size", "new"), SIZES, ids=str)
def test_pillow_s_kernel_is_pillow(size, new):
    picture = byte_picture(size)
    found = resize(picture, new, ResizeKernel.PIL_BILINEAR)
    whole = Image.new("RGB", size[::-1])
    whole.putdata([tuple(pixel) for pixel in picture.permute(1, 2, 0).reshape(-1, 3).tolist()])
    shrunk = whole.resize(new[::-1], Image.Resampling.BILINEAR)
    wanted = [shrunk.getpixel((x, y)) for y in range(new[0]) for x in range(new[1])]
    assert found.dtype == torch.uint8
    assert found.permute(1, 2, 0).reshape(-1, 3).tolist() == [list(pixel) for pixel in wanted]


@pytest.mark.parametrize(("size", "new"), SIZES, ids=str)
def test_opencv_s_kernel_is_bilinear_in_bytes_without_antialias(size, new):
    picture = byte_picture(size)
    found = resize(picture, new, ResizeKernel.CV2_BILINEAR)
    channels = [cv2.resize(c.numpy(), new[::-1], interpolation=cv2.INTER_LINEAR) for c in picture]
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(np.stack(channels)))
    if new[0] * 2 != size[0]:  # an exact half is an average of four in OpenCV
        assert (found - bilinear_at_centres(picture.float(), new)).abs().max() <= 1


@pytest.mark.parametrize(("size", "new"), SIZES, ids=str)
def test_the_float_kernel_equals_the_loop(size, new):
    found = resize(byte_picture(size), new, ResizeKernel.FLOAT_BILINEAR)
    torch.testing.assert_close(found, bilinear_at_centres(byte_picture(size).float(), new), rtol=0, atol=1e-2)


@pytest.mark.parametrize("kernel", [ResizeKernel.PIL_BILINEAR, ResizeKernel.CV2_BILINEAR])
def test_kernels_on_bytes_keep_a_picture_of_the_right_size_and_refuse_floats(kernel):
    picture = byte_picture((20, 30))
    assert torch.equal(resize(picture, (20, 30), kernel), picture)
    with pytest.raises(ValueError, match=rf"^{kernel.value} resizes bytes, got torch.float32: give the decoded"):
        resize(picture.float(), (10, 15), kernel)


def test_only_pillow_s_kernel_averages_what_it_shrinks():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::4] = 255
    means = {kernel: resize(stripes, (16, 16), kernel).float().std().item() for kernel in ResizeKernel}
    assert means[ResizeKernel.PIL_BILINEAR] < 30
    assert means[ResizeKernel.FLOAT_BILINEAR] == means[ResizeKernel.CV2_BILINEAR] == 0
    assert resize(stripes, (16, 16), ResizeKernel.CV2_BILINEAR).max() == 0


def fits(sizes, frame):
    return all(height <= frame[0] and width <= frame[1] for height, width in sizes)


@pytest.mark.parametrize("config", [HALF_UP, PictureConfig(128, 200, size_divisor=64)], ids=["800", "128"])
def test_padded_size_is_the_smallest_of_four_that_fits(config):
    short, long = config.short_edge_px, config.long_edge_px
    divisor = config.size_divisor
    frames = set(itertools.product([-(-side // divisor) * divisor for side in (short, long)], repeat=2))
    rng = np.random.default_rng(1)
    chosen = set()
    for _ in range(300):
        count = int(rng.integers(1, 4))
        sizes = [resized_hw(*(int(s) for s in rng.integers(100, 900, 2)), short, config) for _ in range(count)]
        found = padded_hw(sizes, short, config)
        assert found in frames
        assert fits(sizes, found)
        assert not any(fits(sizes, frame) and frame[0] * frame[1] < found[0] * found[1] for frame in frames)
        chosen.add(found)
    assert chosen | {min(frames)} == frames
    assert padded_hw([(short, short)], short, config) == min(frames)


def test_padded_sizes_by_name():
    cases = {
        ((800, 800),): (800, 800),
        ((800, 1333), (600, 800)): (800, 1344),
        ((1067, 800),): (1344, 800),
        ((800, 801), (801, 800)): (1344, 1344),
        ((100, 801),): (800, 1344),
    }
    for sizes, wanted in cases.items():
        assert padded_hw(sizes, 800, HALF_UP) == wanted


def test_tight_size_equals_torchvision_s_batch():
    sizes = [(70, 33), (64, 64), (1, 65)]
    theirs = peer(HALF_UP).batch_images([torch.zeros(3, *size) for size in sizes])
    assert tight_hw(sizes, HALF_UP) == tuple(theirs.shape[-2:]) == (96, 96)
    assert tight_hw([(64, 96)], HALF_UP) == (64, 96)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padding_is_zero_at_the_bottom_and_right(dtype):
    pictures = [torch.full((3, *size), value).to(dtype) for size, value in [((5, 8), 7), ((6, 3), 9)]]
    images = pad(pictures, (6, 9))
    assert images.pixels.shape == (2, 3, 6, 9)
    assert images.pixels.dtype == dtype
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.sizes_hw.dtype == torch.int64
    assert images.sizes_hw.tolist() == [[5, 8], [6, 3]]
    for b, picture in enumerate(pictures):
        height, width = picture.shape[1:]
        assert torch.equal(images.pixels[b, :, :height, :width], picture)
        assert images.pixels[b].sum() == picture.sum()


@pytest.mark.parametrize("size", [(90, 130), (300, 201), (480, 641)])
@pytest.mark.parametrize("kernel", list(ResizeKernel))
@pytest.mark.parametrize("mirrored", [False, True])
def test_bytes_are_placed_as_pictures_are_resized_to_whole_grey_levels(size, kernel, mirrored):
    picture = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    array = np.ascontiguousarray(picture.permute(1, 2, 0).numpy())
    picture = picture.flip(2) if mirrored else picture
    for wanted in ((128, 190), (400, 333), size, (size[0] // 2, size[1] // 2)):
        exact = resize(picture, wanted, kernel).permute(1, 2, 0).float().numpy()
        found = place_bytes(array, wanted, kernel, mirrored=mirrored)
        assert (found.dtype, found.shape) == (np.uint8, (*wanted, 3))
        difference = np.abs(found - exact)
        assert difference.max() <= (1.0 if kernel is ResizeKernel.FLOAT_BILINEAR else 0.0)
        assert difference.mean() <= 0.3  # rounding alone makes a quarter
        batch = np.full((wanted[0] + 3, wanted[1] + 5, 3), 77, np.uint8)
        window = batch[: wanted[0], : wanted[1]]
        assert place_bytes(array, wanted, kernel, mirrored=mirrored, out=window) is window
        np.testing.assert_array_equal(window, found)
        assert (batch[wanted[0] :] == 77).all()
        assert (batch[:, wanted[1] :] == 77).all()


def test_an_empty_batch_has_zeros_for_padding_only():
    images = empty_batch([(5, 8), (6, 3)], (8, 12), torch.uint8)
    assert images.pixels.shape == (2, 3, 8, 12)
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.sizes_hw.tolist() == [[5, 8], [6, 3]]
    for pixels, (height, width) in zip(images.pixels, images.sizes_hw.tolist(), strict=True):
        pixels[:, :height, :width] = 0
    assert not images.pixels.any()
