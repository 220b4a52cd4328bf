"""Pictures that people give: opened, turned upright, made RGB, and kept as a PNG file of our own.

Called by the Python API, the command line, and the process that decodes what strangers send. Of what Pillow reads only
the formats of pixels are read; files from strangers must not be opened here in a process that matters (see
`foreign.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omnimuse.core.errors import RequestError, reason
from omnimuse.core.request import Picture
from omnimuse.media.image import over_white

READ = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats that hold pixels. Others hold programs that something would have to run (EPS, WMF)."""

_RANGE_OF_I = ("PNG", "PPM")
"""Formats whose pictures of mode I are scaled to 16 bits by Pillow."""


def picture_of(image: Image.Image) -> Picture:
    """`image` upright as its EXIF says, over white where it is transparent, in RGB with 8 bits.

    RequestError for a picture of more bits whose range is not known.
    """
    upright = eight_bits(ImageOps.exif_transpose(image), image.format)
    return _kept(over_white(upright))


def mask_of(image: Image.Image) -> Picture:
    """What `image` says of another picture as a mask: white where that is drawn anew.

    One that is transparent anywhere says it by that, any other by its brightness.
    """
    upright = eight_bits(ImageOps.exif_transpose(image), image.format)
    if upright.has_transparency_data:
        opaque = upright.convert("RGBA").getchannel("A")
        if opaque.getextrema() != (255, 255):
            return _kept(ImageOps.invert(opaque))
    return _kept(upright)


def _kept(image: Image.Image) -> Picture:
    plain = image.convert("RGB")
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(plain)).save(buffer, "PNG", compress_level=1)  # nothing but the pixels
    return Picture(plain.width, plain.height, buffer.getvalue())


def eight_bits(image: Image.Image, format: str | None = None) -> Image.Image:
    """`image`; one of more than 8 bits a channel (grey of 16, or floats in [0, 1]) scaled down to 8 by its range.

    `format` is that of the file it came from. RequestError where the range is not known: 32 bits, other floats.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and format in _RANGE_OF_I):
        values = np.asarray(image)
        table = ((np.arange(2**16, dtype=np.uint32) + 128) // 257).astype(np.uint8)
        plain = Image.fromarray(table[values])
        clear = image.info.get("transparency")  # of grey, one value
        if clear is not None:
            plain.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
    elif image.mode == "F":
        numbers = np.asarray(image)
        if not (numbers.min() >= 0 and numbers.max() <= 1):
            raise RequestError(
                f"the picture has floats from {numbers.min():g} to {numbers.max():g}, and only the range 0 to 1 is "
                "known; scale it to that, or save it with 8 bits a channel",
                "images",
            )
        plain = Image.fromarray((numbers * 255).round().astype(np.uint8))
    elif image.mode == "I":
        low, high = image.getextrema()
        raise RequestError(
            f"the picture has integers of 32 bits (from {low} to {high}), which do not say what is white; save it with "
            "8 or 16 bits a channel",
            "images",
        )
    else:
        return image
    plain.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return plain


def open_picture(given: Any) -> Picture:
    """A picture from a Pillow image, a file's name, or a `Picture`; RequestError says what cannot be one."""
    return _opened(given, picture_of, "images")


def open_mask(given: Any) -> Picture:
    """A mask (`mask_of`) from the same; a `Picture` is one already."""
    return _opened(given, mask_of, "mask")


def _opened(given: Any, read: Callable[[Image.Image], Picture], param: str) -> Picture:
    if isinstance(given, Picture):
        return given
    if not isinstance(given, Image.Image | str | Path):
        raise RequestError(f"a picture is a Pillow image or a file's name, got {type(given).__name__}", param)
    try:
        if isinstance(given, Image.Image):
            return read(given)  # one that was opened from a file is read only now
        with Image.open(given) as image:
            if image.format not in READ:
                raise RequestError(
                    f"{given} is a file of {image.format}, which is not read; use one of {', '.join(READ)}", param
                )
            return read(image)
    except (FileNotFoundError, IsADirectoryError):
        raise RequestError(f"there is no picture {given}; give the name of a file that exists", param) from None
    except UnidentifiedImageError:
        kinds = ", ".join(READ)
        raise RequestError(f"cannot read {given} as a picture; use a file of one of {kinds}", param) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"cannot read {given} as a picture: {reason(error)}", param) from None


def pixels_of(picture: Picture) -> np.ndarray:
    """The pixels of `picture`: uint8 [h, w, 3]."""
    with Image.open(io.BytesIO(picture.png), formats=("PNG",)) as image:
        return np.array(image)
