"""FLUX.2 Klein as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipelines of diffusers (Flux2KleinPipeline, Flux2KleinInpaintPipeline, Flux2Pipeline). C
latent channels, h w latent sides, S text tokens. The autoencoder patches latents, so that C is four times its own.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.schedules import FlowSchedule
from omnimuse.models.flux2.spec import LAYERS, SPEC, multiple, shrunk
from omnimuse.models.flux2.transformer import Flux2Static, Flux2Transformer
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import DenoiseBlended
from omnimuse.pipeline.encode import KeepPicture, ShowPictures, pixels_in
from omnimuse.pipeline.latents import InitLatents
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.region import seen
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenStates, for_both_branches
from omnimuse.pipeline.two_streams import two_stream_inputs


def chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as the one user message of a chat, the answer opened and its thoughts closed."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, h, w] of the noise of one picture."""
    channels, step, (width, height) = configs["transformer"]["in_channels"], multiple(configs), request.size
    assert isinstance(channels, int)
    return channels, height // step, width // step


def image_tokens(configs: Configs, request: Request) -> int:
    """Cells of latents."""
    _, h, w = latent_shape(configs, request)
    return h * w


def empirical_mu(schedule: FlowSchedule, tokens: int, steps: int) -> float:
    """The authors' fit of the shift, by size and, for pictures that are not large, by steps."""
    at_200, at_10 = 0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333
    if tokens > 4300:
        return at_200
    slope = (at_200 - at_10) / 190.0
    return slope * steps + (at_200 - 200.0 * slope)


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """The middle of a picture with its margins, which is shrunk if it is large, in whole tokens: [3, H, W]."""
    image, step = seen(request, picture), multiple(configs)
    if (size := shrunk(image.size)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    width, height = (side // step * step for side in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return pixels_in(image.crop((left, top, left + width, top + height)))


def conditions(ctx: Context, state: State, network: str, branch: str) -> Flux2Static:
    """The text of a branch, the pictures and the positions: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, Flux2Transformer)
    _, h, w = latent_shape(ctx.configs, state.request)
    scale = float(state.request.params.guidance_scale or 0.0)
    return transformer.prepare(state[f"{branch}_embeds"], scale, h, w, state["shown"])


class Flux2Klein(Pipeline):
    """Text, and perhaps pictures, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(take=HiddenStates(LAYERS), template=chat, pad=True)),
        ShowPictures(prepare),
        KeepPicture(),
        InitLatents(latent_shape),
        DenoiseBlended(
            conditions=conditions,
            inputs=two_stream_inputs,
            token_count=image_tokens,
            preview=preview_by_decoding,
            spacing="linear64",
            mu=empirical_mu,
            given=("shown",),
            start="image_latents",
        ),
        DecodeImage(),
    )


PIPELINE = Flux2Klein
