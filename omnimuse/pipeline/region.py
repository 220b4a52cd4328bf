"""A picture with the margins that were asked for, and which of its pixels, or of its latents, are drawn anew.

Called by the stages that encode pictures and by the denoising loop. The arithmetic is that of the reference's
inpainting pipelines: a mask is resized as the picture is, white from half brightness on, and a cell of latents goes by
its first pixel.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omnimuse.core.request import Picture, Region, Request
from omnimuse.core.sources import Clip, Pad
from omnimuse.media.picture import pixels_of

WHITE = 128
"""Of 255, from here on it is drawn anew."""


def canvas(picture: Picture, region: Region | None) -> Image.Image:
    """`picture` with its margins, which go on as its edges end: what is drawn over has its brightness at the least."""
    pixels = pixels_of(picture)  # [H, W, 3]
    return Image.fromarray(pixels if region is None else np.pad(pixels, _around(region.pad), mode="edge"))


def margins(request: Request) -> tuple[int, ...]:
    """Those that the first picture of `request` is to get."""
    return (0, 0, 0, 0) if request.region is None else request.region.pad


def seen_size(request: Request, picture: Picture) -> tuple[int, int]:
    """Width and height of `seen`."""
    if request.region is None or picture is not request.images[0]:
        return picture.width, picture.height
    return request.region.size_around(picture)


def seen(request: Request, picture: Picture) -> Image.Image:
    """`picture` as a network is shown it that draws a part of it anew: the first one has the margins it is to get."""
    return canvas(picture, request.region if picture is request.images[0] else None)


def anew(picture: Picture, region: Region) -> Image.Image:
    """White where `picture`, with its margins, is drawn anew."""
    shape = (picture.height, picture.width, 3)
    assert not isinstance(region.mask, Clip), "a mask over a picture is a picture"
    mask = np.zeros(shape, np.uint8) if region.mask is None else pixels_of(region.mask)
    return Image.fromarray(np.pad(mask, _around(region.pad), constant_values=255))


def pixels_anew(picture: Picture, region: Region, size: tuple[int, int]) -> Tensor:
    """Which pixels are drawn anew of a picture that is brought to `size`, width and height: bool [H, W]."""
    shades = np.array(anew(picture, region).resize(size, Image.Resampling.LANCZOS).convert("L"))
    return torch.from_numpy(shades >= WHITE)


def cells_anew(picture: Picture, region: Region, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The same for latents of `cells` rows and columns: bool [h, w]."""
    pixels = pixels_anew(picture, region, size)
    return F.interpolate(pixels[None, None].float(), size=cells, mode="nearest")[0, 0] > 0


def shares_anew(picture: Picture, region: Region, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """How much of each of these cells is drawn anew, by the pixels around its middle: float32 [h, w] in [0, 1]."""
    pixels = pixels_anew(picture, region, size)
    return F.interpolate(pixels[None, None].float(), size=cells, mode="bilinear")[0, 0]


def _around(pad: Pad) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    left, above, right, below = pad
    return (above, below), (left, right), (0, 0)
