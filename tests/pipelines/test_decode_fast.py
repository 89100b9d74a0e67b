"""The fast way through libjpeg-turbo gives what Pillow gives, on sound and on broken pictures."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from pipelines import decode
from tests.pipelines import real_data


def outcome(decoder, data):
    try:
        return decoder(data)
    except decode.DecodeError as error:
        return error.fault


def assert_same(data):
    slow, fast = outcome(decode.decode_rgb, data), outcome(decode.decode_rgb_fast, data)
    if isinstance(slow, decode.DecodeFault):
        assert fast is slow
    else:
        assert (fast.dtype, fast.flags.c_contiguous, fast.flags.writeable) == (np.uint8, True, True)
        np.testing.assert_array_equal(fast, slow)


def test_odd_and_broken_pictures_come_out_the_same():
    folder = real_data.test_data() / "edge_images"
    files = json.loads((folder / "MANIFEST.json").read_text())["files"]
    assert len(files) == 93
    for entry in files:
        assert_same((folder / entry["file"]).read_bytes())


def test_real_pictures_come_out_the_same():
    files = sorted((real_data.test_data() / "coco").glob("*2017/*.jpg"))
    assert len(files) == 51
    for file in files:
        assert_same(file.read_bytes())


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe0\x00\x06JFIF",
        b"\xff\xee\x00\x07Adobe",
        b"\xff\xe2\x00\x0eICC_PROFILE\0",
        b"\xff\xe1\x00\x0aExif\0\0xx",
        b"\xff\xff\xfe\x00\x04hi",
        b"\xff\xfe\x00\x04hi",
    ],
)
def test_odd_segments_have_pillows_verdict(segment):
    sound = jpeg(np.random.default_rng(0))
    for data in (sound[:2] + segment + sound[2:], sound[:20] + segment + sound[20:]):
        assert_same(data)
        assert header_of(decode.read_header, data) == header_of(lambda d: decode._open(d, decode.MAX_PIXELS)[1], data)


def test_jpegs_of_twelve_bits_are_refused_by_their_header():
    sound = bytearray(jpeg(np.random.default_rng(0)))
    sound[sound.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(decode.DecodeError):
        decode.read_header(bytes(sound))
    assert_same(bytes(sound))


def header_of(reader, data):
    try:
        return reader(data)
    except decode.DecodeError as error:
        return error.fault


def jpeg(rng, mode="RGB", **options):
    height, width = rng.integers(8, 60, 2)
    low = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(low).resize((int(width), int(height)), Image.Resampling.BICUBIC).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def mutated(data, rng):
    raw = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(raw)))
        kind = rng.integers(5)
        if kind == 0:
            raw[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            raw[at] = 0xFF
        elif kind == 2:
            del raw[at : at + int(rng.integers(1, 40))]
        elif kind == 3:
            raw[at:at] = rng.integers(0, 256, rng.integers(1, 30), dtype=np.uint8).tobytes()
        else:
            raw = raw[: max(at, 4)]
        if not raw:
            break
    return bytes(raw)


def fuzz(count, seed):
    rng = np.random.default_rng(seed)
    sound = [jpeg(rng, mode, progressive=bool(k % 2), quality=60 + k, subsampling=k % 3)
             for k, mode in enumerate(["RGB", "L", "CMYK", "RGB", "RGB"])]  # fmt: skip
    for kind in ("PNG", "WEBP", "BMP"):
        stream = io.BytesIO()
        Image.open(io.BytesIO(sound[0])).save(stream, kind)
        sound.append(stream.getvalue())
    for data in sound:
        assert_same(data)
    verdicts = set()
    for number in range(count):
        data = mutated(sound[number % len(sound)], rng)
        assert_same(data)
        verdicts.add(str(outcome(decode.decode_rgb, data))[:20])
    return verdicts


def test_mutated_pictures_come_out_the_same_or_are_refused_alike():
    assert len(fuzz(1000, 0)) > 3


@pytest.mark.soak
def test_ten_thousand_mutated_pictures():
    assert len(fuzz(10_000, 1)) > 3
