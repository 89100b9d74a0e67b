import hashlib
import io
import json
import os
import pickle
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines import decode

DATA = os.environ.get("MASKRAY_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="MASKRAY_TEST_DATA is not set")
EDGE = json.loads((Path(DATA) / "edge_images/MANIFEST.json").read_text())["files"] if DATA else []


def saved(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def gradient(height=5, width=7):
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_pictures_come_back_exactly(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(gradient()), kind, **options)
    np.testing.assert_array_equal(decode.decode_rgb(data), gradient())
    assert decode.read_header(data) == (kind, 5, 7, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(gradient())
    data = saved(picture, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode.decode_rgb(data), upright)
    header = decode.read_header(data)
    assert (header.height, header.width) == upright.shape[:2]


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = (np.arange(35, dtype=np.uint16) * 1800).reshape(5, 7)
    rgb = decode.decode_rgb(saved(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(rgb, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, 2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb(mode):
    picture = Image.fromarray(gradient()).convert(mode)
    want = np.asarray(picture.convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(decode.decode_rgb(saved(picture, "PNG")), want)


def test_cmyk_jpeg_becomes_rgb():
    data = saved(Image.fromarray(gradient()).convert("CMYK"), "JPEG")
    assert decode.decode_rgb(data).shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("data", "fault", "match"),
    [
        (b"", decode.DecodeFault.EMPTY, "no bytes"),
        (b"GIF89a....", decode.DecodeFault.UNSUPPORTED, "content is GIF"),
        (b"%!PS-Adobe", decode.DecodeFault.UNSUPPORTED, "EPS"),
        (b"<svg xmlns", decode.DecodeFault.UNSUPPORTED, "SVG"),
        (b"<html>", decode.DecodeFault.UNSUPPORTED, "HTML"),
        (pickle.dumps(list(range(1000))), decode.DecodeFault.UNSUPPORTED, "pickle"),
        (b"\xff\xd8\xff\xe0 nothing", decode.DecodeFault.CORRUPT, "JPEG header"),
    ],
)
def test_what_is_no_picture_is_named(data, fault, match):
    with pytest.raises(decode.DecodeError, match=match) as caught:
        decode.decode_rgb(data)
    assert caught.value.fault is fault
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.fault, str(again)) == (fault, str(caught.value))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_every_truncation_is_an_error_or_a_whole_picture(kind):
    data = saved(Image.fromarray(gradient(40, 50)), kind)
    for cut in range(0, len(data), 7):
        try:
            pixels = decode.decode_rgb(data[:cut])
        except decode.DecodeError:
            continue
        assert pixels.shape == (40, 50, 3)


def png_claiming(height, width):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 10000), (18000, 10000), (65535, 65535), (10, 100_000_000)])
def test_bombs_are_refused_by_their_header(size):
    data = png_claiming(*size)
    started = time.perf_counter()
    with pytest.raises(decode.DecodeError, match="too_large"):
        decode.decode_rgb(data)
    assert time.perf_counter() - started < 0.1


def test_a_lower_limit_can_be_set():
    data = saved(Image.fromarray(gradient()), "PNG")
    with pytest.raises(decode.DecodeError, match="the limit is 34"):
        decode.read_header(data, max_pixels=34)


def test_mutated_pictures_never_crash():
    rng = np.random.default_rng(5)
    sources = [saved(Image.fromarray(gradient(30, 40)), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
    for number in range(400):
        data = bytearray(sources[number % 4])
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            pixels = decode.decode_rgb(bytes(data), max_pixels=10**6)
        except decode.DecodeError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@needs_data
@pytest.mark.filterwarnings("ignore")  # Pillow warns of broken EXIF; the pictures are odd on purpose
@pytest.mark.parametrize("entry", EDGE, ids=[e["file"] for e in EDGE])
def test_each_edge_image_decodes_as_noted_or_is_rejected_with_a_reason(entry):
    data = (Path(DATA) / "edge_images" / entry["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    usable = entry["pil"] == "ok" and entry["format"] in ("JPEG", "MPO", "PNG", "WEBP", "BMP")
    if not usable:
        with pytest.raises(decode.DecodeError, match=r"(empty|unsupported_format|too_large|corrupt): ."):
            decode.decode_rgb(data)
        return
    pixels = decode.decode_rgb(data)
    width, height = entry["size"]
    turned = entry["exif_orientation"] in (5, 6, 7, 8)
    assert pixels.shape == ((width, height, 3) if turned else (height, width, 3))
    header = decode.read_header(data)
    assert (header.height, header.width) == pixels.shape[:2]
    assert header.orientation == (entry["exif_orientation"] or 1)


def test_a_cut_png_is_an_error_after_its_header_was_read():
    data = saved(Image.fromarray(gradient(64, 64)), "PNG")
    cut = data[: len(data) // 2]
    assert decode.read_header(cut).height == 64
    with pytest.raises(decode.DecodeError, match="corrupt"):
        decode.decode_rgb(cut)
