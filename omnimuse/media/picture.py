"""Pictures that people give: opened, turned upright, made RGB, and kept as a PNG file of our own.

Called by the Python API, the command line, and the process that decodes what strangers send. Reads what Pillow reads;
files from strangers must not be opened here in a process that matters (see `sandbox.py`).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from omnimuse.core.errors import RequestError
from omnimuse.core.request import Picture


def picture_of(image: Image.Image) -> Picture:
    """`image` upright as its EXIF says, over white where it is transparent, in RGB with 8 bits."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    plain = upright.convert("RGB")
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(plain)).save(buffer, "PNG", compress_level=1)  # nothing but the pixels
    return Picture(plain.width, plain.height, buffer.getvalue())


def open_picture(given: Any) -> Picture:
    """A picture from a Pillow image, a file's name, or a `Picture`; RequestError says what cannot be one."""
    if isinstance(given, Picture):
        return given
    if not isinstance(given, Image.Image | str | Path):
        raise RequestError(f"a picture is a Pillow image or a file's name, got {type(given).__name__}", "images")
    try:
        if isinstance(given, Image.Image):
            return picture_of(given)  # one that was opened from a file is read only now
        with Image.open(given) as image:
            return picture_of(image)
    except FileNotFoundError:
        raise RequestError(f"there is no picture {given}; give the name of a file that exists", "images") from None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RequestError(f"cannot read {given} as a picture: {error}", "images") from None


def pixels_of(picture: Picture) -> np.ndarray:
    """The pixels of `picture`: uint8 [h, w, 3]."""
    with Image.open(io.BytesIO(picture.png), formats=("PNG",)) as image:
        return np.array(image)
