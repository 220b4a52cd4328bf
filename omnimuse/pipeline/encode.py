"""Stock stages: pictures that came with the prompt become latents.

Image-to-image in its classical form: the latents of a picture stand in for what the first steps would have drawn. Or
the network is shown pictures beside what it draws. Uses an image VAE with the contract of `decode.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.output import PicturesShown
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.noise import draw
from omnimuse.pipeline.region import canvas, margins
from omnimuse.pipeline.scaling import scaled
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeImage(Stage):
    """Writes `image_moments`: what the VAE makes of the first picture of `images`, with the margins that it is to get,
    in the size that was asked for.

    Float32 [2C, h, w]: means of the latents, then logarithms of their variances; None without a picture. Equal pictures
    are encoded once, for all outputs.
    """

    name: str = "encode image"
    reads: tuple[str, ...] = ("images", "region")
    writes: tuple[str, ...] = ("image_moments",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params = state.request.params
        pad = None if state["region"] is None else state["region"].pad  # where the mask lies changes nothing here
        return (params.width, params.height, pad, *(picture.digest for picture in state["images"][:1]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            images, size = state["images"], state.request.size
            pixels = pixels_in(resized(canvas(images[0], state["region"]), size)) if images else None
            state["image_moments"] = None if pixels is None else encode(ctx, pixels)


@dataclass(frozen=True)
class DrawImageLatents(Stage):
    """Writes `image_latents`: scaled latents [C, h, w] drawn from `image_moments`; None where there are none.

    By the state's own generator, before the noise is.
    """

    name: str = "draw image latents"
    reads: tuple[str, ...] = ("image_moments",)
    writes: tuple[str, ...] = ("image_latents",)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            moments = state["image_moments"]
            state["image_latents"] = None if moments is None else scaled_by(ctx, drawn(moments, state.generator))


@dataclass(frozen=True)
class KeepPicture(Stage):
    """Writes `image_latents`: the means of the scaled latents [C, h, w] of the first picture, with its margins, in the
    size that was asked for.

    For networks that are shown the picture besides: only where a part of it is kept, or first steps are left out; else
    None, and all is drawn from noise. Equal pictures are encoded once, for all outputs.
    """

    name: str = "encode kept picture"
    reads: tuple[str, ...] = ("images", "region")
    writes: tuple[str, ...] = ("image_latents",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params, request = state.request.params, state.request
        kept = request.region is not None or request.skipped_steps > 0
        pictures = [picture.digest for picture in state["images"][:1]] if kept else []
        return (self, params.width, params.height, *margins(request), *pictures)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            request, latents = state.request, None
            if state["images"] and (state["region"] is not None or request.skipped_steps):
                whole = canvas(state["images"][0], state["region"])
                moments = encode(ctx, pixels_in(resized(whole, request.size)))
                latents = scaled_by(ctx, moments.chunk(2)[0])
            state["image_latents"] = latents


Prepare = Callable[[Configs, Request, Picture], Tensor]
"""A picture as the autoencoder is shown it: float32 [3, H, W] in [-1, 1]."""


@dataclass(frozen=True)
class ShowPictures(Stage):
    """Writes `shown`: the means of the scaled latents [C, h, w] of every picture of `images`, in order, in float32.

    `prepare` gives a picture the size that the network is to see. Equal pictures are encoded once, for all outputs.
    """

    prepare: Prepare
    name: str = "encode pictures"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("shown",)
    uses: tuple[str, ...] = ("vae",)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params = state.request.params
        choices = params.width, params.height, state.request.extra  # all that `prepare` may ask, and
        return (self, *choices, *margins(state.request), *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            pictures = [self.prepare(ctx.configs, state.request, picture) for picture in state["images"]]
            state["shown"] = tuple(scaled_by(ctx, encode(ctx, pixels).chunk(2)[0]) for pixels in pictures)
            if pictures:
                state.notes[self.name] = PicturesShown(tuple((each.shape[2], each.shape[1]) for each in pictures))


def to_pixels(picture: Picture, width: int, height: int) -> Tensor:
    """`picture` as float32 [3, height, width] in [-1, 1], resized by Lanczos' filter, as the reference does."""
    return pixels_in(resized(canvas(picture, None), (width, height)))


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` in another width and height, by Lanczos' filter."""
    return image.resize(size, Image.Resampling.LANCZOS)


def pixels_in(image: Image.Image) -> Tensor:
    """A picture of 8 bits as float32 [3, height, width] in [-1, 1]."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return values.permute(2, 0, 1).float() / 255 * 2 - 1  # [3, H, W]


def encode(ctx: Context, pixels: Tensor) -> Tensor:
    """Float32 moments [2C, h, w] that the VAE makes of `pixels` [3, H, W] in [-1, 1]."""
    network = ctx.network("vae")
    moments = network.encode(pixels[None].to(ctx.device, next(network.parameters()).dtype))  # type: ignore[operator]
    return moments[0].float()


def scaled_by(ctx: Context, latents: Tensor) -> Tensor:
    """`latents` as the VAE makes them, scaled; it need not be on the device for that."""
    return scaled(ctx.components.wherever("vae"), ctx.configs["vae"], latents)


def drawn(moments: Tensor, generator: torch.Generator) -> Tensor:
    """Latents [C, h, w], as the VAE makes them, drawn from the distribution with `moments` [2C, h, w]."""
    mean, spread = moments.chunk(2)  # [C, h, w]
    deviation = (0.5 * spread.clamp(-30.0, 20.0)).exp()
    return mean + deviation * draw((1, *mean.shape), generator, torch.float32, mean.device)[0]
