"""Pictures as compressed bytes, for tests that look at pixels."""

import io

from PIL import Image

_ORIENTATION = 0x0112
# What a camera does to the upright picture before it writes the tag: the inverse of what a reader must do.
_STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def png(pixels, orientation=None):
    """Lossless bytes of uint8 [H, W, 3]; with an orientation they are stored turned and tagged so."""
    picture, stream, options = Image.fromarray(pixels), io.BytesIO(), {}
    if orientation is not None:
        picture = picture.transpose(_STORED_AS[orientation]) if orientation in _STORED_AS else picture
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        options["exif"] = exif
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def grey_png(values):
    """A PNG of one 8-bit channel of uint8 [H, W]."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()
