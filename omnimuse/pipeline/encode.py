"""Stock stage: a picture that came with the prompt becomes the latents that denoising starts from.

Image-to-image in its classical form: the latents of the picture stand in for what the first steps would have drawn.
Uses an image VAE with the contract of `decode.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.request import Picture
from omnimuse.diffusion.noise import draw
from omnimuse.media.picture import pixels_of
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class EncodeImage(Stage):
    """Writes `image_latents`: the first picture of `images` in the size that was asked for, as latents [C, h, w].

    They are drawn from the distribution that the VAE gives, by the state's own generator, before the noise is. None
    without a picture.
    """

    vae: str = "vae"
    name: str = "encode image"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("image_latents",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.vae,)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            images, params = state["images"], state.request.params
            assert params.width is not None
            assert params.height is not None
            pixels = to_pixels(images[0], params.width, params.height) if images else None
            state["image_latents"] = None if pixels is None else encode(ctx, self.vae, pixels, state.generator)


def to_pixels(picture: Picture, width: int, height: int) -> Tensor:
    """`picture` as float32 [3, height, width] in [-1, 1], resized by Lanczos' filter, as the reference does."""
    image = Image.fromarray(pixels_of(picture)).resize((width, height), Image.Resampling.LANCZOS)
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
    return values.permute(2, 0, 1).float() / 255 * 2 - 1  # [3, H, W]


def encode(ctx: Context, vae: str, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Scaled latents [C, h, w], float32, drawn from what the VAE `vae` makes of `pixels` [3, H, W] in [-1, 1]."""
    network, config = ctx.network(vae), ctx.configs[vae]
    scaling, shift = config["scaling_factor"], config.get("shift_factor")
    assert isinstance(scaling, float | int)
    dtype = next(network.parameters()).dtype
    moments = network.encode(pixels[None].to(ctx.device, dtype))  # type: ignore[operator]  # [1, 2C, h, w]
    mean, spread = moments[0].float().chunk(2)  # [C, h, w]
    deviation = (0.5 * spread.clamp(-30.0, 20.0)).exp()
    latents = mean + deviation * draw((1, *mean.shape), generator, torch.float32, ctx.device)[0]
    return (latents - (shift if isinstance(shift, float | int) else 0.0)) * scaling
