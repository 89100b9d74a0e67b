"""Pictures from strangers' bytes to RGB: sniff, read the header, judge its size, and only then touch pixels.

JPEG (with MPO's first picture), PNG, WebP and BMP are decoded, by Pillow; for training, sound JPEGs go straight
through libjpeg-turbo. No decoder known to crash is used: torchvision's PNG reader is one. GIF and TIFF are refused: no
supported data set uses them, and each more decoder is one more that strangers' bytes can reach. An animation gives its
first frame; alpha is dropped; 16-bit samples keep their high byte; CMYK and YCCK are converted without colour
profiles, as the frameworks of origin do.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

MAX_PIXELS = 2**26
"""Largest picture decoded by default, 8192 x 8192: 192 MiB as RGB."""

UNKNOWN_CLASS = 255
"""The value of a semantic map where the class is not known."""

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_OF_ARRAYS: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}
_PLAIN_COLOURS = frozenset({"YCbCr", "RGB", "Gray"})
_JPEG_START = b"\xff\xd8\xff"
_JPEG_START_OF_SCAN, _JPEG_APP1 = 0xDA, 0xE1
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_LEAST_BYTES = {b"JFIF": 7, b"Adobe": 7, b"ICC_PROFILE\0": 14}  # of segments that begin so; Pillow refuses shorter
_JPEG_SEGMENTS = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xFF)})  # those that say how long they are
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
_KNOWN_BUT_REFUSED = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%!PS": "EPS",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xm": "XML",
    b"<!DO": "HTML",
    b"<htm": "HTML",
    b"\x80\x04\x95": "pickle",
}


class DecodeFault(Enum):
    """Why bytes are not a usable picture."""

    EMPTY = "empty"
    UNSUPPORTED = "unsupported_format"
    TOO_LARGE = "too_large"
    CORRUPT = "corrupt"


class DecodeError(ValueError):
    """Bytes that are not a usable picture.

    Attributes:
        fault: which kind of fault.
    """

    def __init__(self, fault: DecodeFault, detail: str) -> None:
        """Keep the fault beside the message."""
        super().__init__(f"{fault.value}: {detail}")
        self.fault = fault

    def __reduce__(self) -> tuple[type[DecodeError], tuple[DecodeFault, str]]:
        """Pickle by both arguments, since Ray carries errors between processes."""
        return DecodeError, (self.fault, str(self).split(": ", 1)[1])


class Header(NamedTuple):
    """What a picture says of itself before any pixel is decoded.

    Attributes:
        format: "JPEG", "PNG", "WEBP" or "BMP".
        height: pixels, after EXIF orientation.
        width: pixels, after EXIF orientation.
        orientation: EXIF value 1..8; 1 where absent or unreadable.
    """

    format: str
    height: int
    width: int
    orientation: int


def sniff(data: bytes) -> str:
    """The allowed format that the first bytes name; the file's name is never asked.

    Raises:
        DecodeError: no bytes, or none of the allowed formats.
    """
    if not data:
        raise DecodeError(DecodeFault.EMPTY, "the file has no bytes")
    if data.startswith(_JPEG_START):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM"):
        return "BMP"
    named = next((name for magic, name in _KNOWN_BUT_REFUSED.items() if data.startswith(magic)), None)
    got = named or f"bytes {data[:4]!r}"
    raise DecodeError(DecodeFault.UNSUPPORTED, f"content is {got}, wanted JPEG, PNG, WebP or BMP")


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Size and orientation without decoding.

    Args:
        data: the whole compressed file.
        max_pixels: refuse larger pictures.

    Raises:
        DecodeError: not an allowed format, a broken header, or too large.
    """
    return _plain_jpeg(data, max_pixels) or _open(data, max_pixels)[1]


def decode_rgb(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode a picture upright.

    Args:
        data: the whole compressed file.
        max_pixels: refuse larger pictures, judged by the header alone.

    Returns:
        uint8 [H, W, 3], red first, 0..255, after EXIF orientation; writable.

    Raises:
        DecodeError: not an allowed format, too large, truncated or corrupt.
    """
    picture, header = _open(data, max_pixels)
    try:
        picture.load()
        upright = picture.transpose(_TURNS[header.orientation]) if header.orientation in _TURNS else picture
        pixels = _to_rgb(upright)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on broken data
        raise DecodeError(DecodeFault.CORRUPT, _reason(error)) from error
    if pixels.shape != (header.height, header.width, 3):
        raise DecodeError(DecodeFault.CORRUPT, f"decoded to {pixels.shape}, header says {header.height}x{header.width}")
    return pixels


def decode_rgb_fast(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """As `decode_rgb`, with JPEGs through libjpeg-turbo directly, which takes three quarters of the time.

    The pixels are the same: what is not plainly a sound JPEG of one to three colours goes through `decode_rgb`.

    Raises:
        DecodeError: see `decode_rgb`.
    """
    if not data.startswith(_JPEG_START):
        return decode_rgb(data, max_pixels)
    header = _plain_jpeg(data, max_pixels)
    if header is None:
        picture, header = _open(data, max_pixels)
        if picture.mode not in ("RGB", "L"):
            return decode_rgb(data, max_pixels)
    try:
        pixels = np.asarray(simplejpeg.decode_jpeg(data, strict=True))
    except ValueError:  # also for mere warnings: Pillow's verdict is the one that counts
        return decode_rgb(data, max_pixels)
    turn = _TURNS_OF_ARRAYS.get(header.orientation)
    pixels = np.ascontiguousarray(turn(pixels)) if turn else pixels
    return pixels if pixels.shape == (header.height, header.width, 3) else decode_rgb(data, max_pixels)


def _plain_jpeg(data: bytes, max_pixels: int) -> Header | None:
    """The header of a sound JPEG of one to three colours that is not turned, in a tenth of Pillow's time."""
    if not data.startswith(_JPEG_START) or not _is_plain(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError:
        return None
    # Pillow has a limit of its own, well above the default one.
    is_usual = colours in _PLAIN_COLOURS and 0 < height * width <= min(max_pixels, MAX_PIXELS)
    return Header("JPEG", height, width, 1) if is_usual else None


def _is_plain(jpeg: bytes) -> bool:
    """Whether nothing before a JPEG's data needs Pillow's eyes: no orientation (EXIF, XMP), nothing that it refuses."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == _JPEG_START_OF_SCAN:
            return True
        if marker == _JPEG_APP1 or marker not in _JPEG_SEGMENTS:
            return False
        if marker in _JPEG_FRAMES and jpeg[at + 4 : at + 5] != b"\x08":  # bits a sample
            return False
        body = jpeg[at + 4 : min(end, at + 20)]
        if any(body.startswith(name) and len(body) < least for name, least in _JPEG_LEAST_BYTES.items()):
            return False
        at = end
    return False


def decode_map(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode a PNG whose 8-bit values are classes, grey or by palette; a palette's colours are not looked at.

    Args:
        data: the whole compressed file.
        max_pixels: refuse larger maps, judged by the header alone.

    Returns:
        uint8 [H, W], as stored; writable.

    Raises:
        DecodeError: not a PNG of one 8-bit channel, too large, truncated or corrupt.
    """
    picture, header = _open(data, max_pixels)
    if header.format != "PNG" or picture.mode not in ("L", "P"):
        raise DecodeError(
            DecodeFault.UNSUPPORTED,
            f"a map is {header.format} of mode {picture.mode}, wanted an 8-bit grey or palette PNG",
        )
    try:
        return np.array(picture, dtype=np.uint8)
    except Exception as error:  # as for pictures
        raise DecodeError(DecodeFault.CORRUPT, _reason(error)) from error


def _open(data: bytes, max_pixels: int) -> tuple[Image.Image, Header]:
    name = sniff(data)
    try:
        picture = Image.open(io.BytesIO(data), formats=(name,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(DecodeFault.TOO_LARGE, _reason(error)) from error
    except Exception as error:  # as above: header parsers too
        raise DecodeError(DecodeFault.CORRUPT, f"{name} header: {_reason(error)}") from error
    width, height = picture.size
    if width < 1 or height < 1:
        raise DecodeError(DecodeFault.CORRUPT, f"header says {height}x{width} pixels")
    if width * height > max_pixels:
        raise DecodeError(DecodeFault.TOO_LARGE, f"header says {height}x{width} pixels, the limit is {max_pixels}")
    orientation = _orientation(picture)
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    return picture, Header(name, height, width, orientation)


def _orientation(picture: Image.Image) -> int:
    try:
        # The base class's method on purpose: PngImageFile.getexif() decodes the pixels, and an error of
        # theirs, caught here, would leave a half-decoded picture that no later load() complains of.
        value = Image.Image.getexif(picture).get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF is common and harmless: the picture is shown as stored
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _to_rgb(picture: Image.Image) -> npt.NDArray[np.uint8]:
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips instead of scaling
        high = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")  # straight to RGB would warn and mis-read a table of alphas
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"), dtype=np.uint8)


def _reason(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    # "cannot identify image file <_io.BytesIO object at 0x7f..>": an address would differ on every run
    text = text.split("<_io", 1)[0].strip()
    return f"{type(error).__name__}: {text}"[:200]
