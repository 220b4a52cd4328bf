"""Pictures: tensors to Pillow and back, and files that carry the settings they were made with.

Called by the engine, the Python API and the command line. Settings travel as JSON: in a PNG as the text chunk
"omnimuse", in JPEG and WebP as the EXIF user comment. torch is imported only where a tensor is made.

Letters: b pictures, c channels (1 grey, 3 RGB, 4 RGBA), h w pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from omnimuse.core.amounts import told_bytes
from omnimuse.core.bounds import object_in
from omnimuse.core.errors import RequestError, reason
from omnimuse.media.destination import check_destination, write_whole
from omnimuse.media.formats import PICTURES as FORMATS

if TYPE_CHECKING:
    from torch import Tensor

SETTINGS_KEY = "omnimuse"
QUALITY = 95  # of JPEG and WEBP, unless somebody asks for another
FULL_COLOUR = 90  # from this quality on, a JPEG keeps the colour of every pixel
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_ASCII = b"ASCII\0\0\0"  # the EXIF user comment begins with the name of its character set
_EXIF_LIMIT = 65_000  # bytes: a JPEG holds EXIF in one segment of 64 KiB


def to_pixels(values: Tensor) -> np.ndarray:
    """Float [..., c, h, w] in [0, 1] (values outside are clipped) -> uint8 [..., h, w, c], rounded to nearest."""
    array = values.detach().float().cpu().numpy().clip(0.0, 1.0)
    return np.moveaxis((array * 255).round().astype(np.uint8), -3, -1)  # [..., h, w, c]


def to_image(values: Tensor) -> Image.Image:
    """Float [c, h, w] in [0, 1] -> a Pillow picture; c is 1, 3 or 4."""
    return from_pixels(to_pixels(values))


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """uint8 [h, w, c] -> a Pillow picture; c is 1, 3 or 4."""
    if pixels.ndim != 3 or pixels.shape[2] not in _MODES or pixels.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 [h, w, 1 | 3 | 4], got {pixels.dtype} {list(pixels.shape)}")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pillow pictures of one size -> float32 [b, 3, h, w] in [0, 1]."""
    import torch

    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise RequestError(f"the pictures have different sizes {sorted(sizes)}; give pictures of one size", "images")
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])  # [b, h, w, 3]
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()) / 255  # [b, 3, h, w]


def check_picture_destination(path: Path) -> None:
    """RequestError unless a picture can be written at `path`; to be asked before any work."""
    check_destination(path, FORMATS)


def save_image(image: Image.Image, path: Path, settings: Mapping[str, Any], *, replace: bool = True) -> None:
    """Write `image` in the format its suffix names, with `settings` inside; `path` is never half-written.

    RequestError for an unknown suffix, or settings too long for a JPEG; OSError when the disk refuses, FileExistsError
    where there is a file and it may not be replaced.
    """
    check_picture_destination(path)
    write_whole(path, encode_image(image, FORMATS[path.suffix.lower()], settings), replace=replace)


def encode_image(image: Image.Image, format: str, settings: Mapping[str, Any], quality: int | None = None) -> bytes:
    """The bytes of `image` as PNG, JPEG or WEBP, with `settings` inside; in a JPEG over white.

    `quality` is 1 to 100, 95 unless said; a PNG loses nothing and has none.
    """
    text = json.dumps(settings, ensure_ascii=format != "PNG", sort_keys=True)
    buffer = io.BytesIO()
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt(SETTINGS_KEY, text)
        image.save(buffer, format, pnginfo=info)
    else:
        quality = QUALITY if quality is None else quality
        sampling = {"subsampling": 0} if format == "JPEG" and quality >= FULL_COLOUR else {}
        kept = over_white(image) if format == "JPEG" else image
        kept.save(buffer, format, exif=_exif(text), quality=quality, **sampling)
    return buffer.getvalue()


def over_white(image: Image.Image) -> Image.Image:
    """`image` in RGB, over white where it is transparent."""
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return image.convert("RGB")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `save_image` wrote into the file; RequestError where there are none."""
    try:
        with Image.open(path) as image:
            text = image.info.get(SETTINGS_KEY) if image.format == "PNG" else _comment(image)
    except (OSError, UnidentifiedImageError) as error:
        raise RequestError(f"cannot read {path} as a picture: {reason(error)}", "path") from None
    settings = object_in(text or "")
    if settings is None:
        raise RequestError(f"{path} carries no settings; only pictures that omnimuse saved do", "path")
    return settings


def _exif(text: str) -> Image.Exif:
    if len(text) > _EXIF_LIMIT:
        raise RequestError(
            f"the settings take {told_bytes(len(text))} and a JPEG or WebP file holds {told_bytes(_EXIF_LIMIT)}; save "
            "a .png",
            "output",
        )
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = SETTINGS_KEY
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = _ASCII + text.encode("ascii")
    return exif


def _comment(image: Image.Image) -> str:
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if not isinstance(comment, bytes):
        return ""
    return comment.removeprefix(_ASCII).decode("ascii", "replace")
