"""Qwen-Image-Layered as a pipeline: that of Qwen-Image with a picture that is shown, and drawn again in layers.

Source: the reference pipeline of diffusers (QwenImageLayeredPipeline). The latents are those of a video, [C, F, h, w]:
the first frame is the whole picture once more, which nobody is given, the others are its layers. Pixels have a fourth
channel, what can be seen through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnimuse.components.two_streams import TwoStreamStatic
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.schedules import FlowSchedule
from omnimuse.models.qwen_image.pipeline import DROPPED, described
from omnimuse.models.qwen_image.transformer import QwenTransformer
from omnimuse.models.qwen_image_layered.spec import SPEC, LayeredParams
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import ShowPictures, to_pixels
from omnimuse.pipeline.latents import InitLatents, cells, packed_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches
from omnimuse.pipeline.two_streams import two_stream_inputs


def frames(request: Request) -> int:
    """The layers, and the whole picture before them."""
    assert isinstance(request.extra, LayeredParams)
    return 1 + request.extra.layers


def shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[F, C, h, w] of the noise, as the reference draws it."""
    return frames(request), *packed_shape(configs, request)


def shift(schedule: FlowSchedule, tokens: int, steps: int) -> float:
    """How far the levels move, by the patches of one frame: 1 for 256 of them."""
    return (tokens / 256) ** 0.5


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """A picture in the size of what is drawn, nothing of which can be seen through: [4, H, W]."""
    pixels = to_pixels(picture, *request.size)
    return torch.cat([pixels, torch.ones_like(pixels[:1])])


def conditions(ctx: Context, state: State, network: str, branch: str) -> TwoStreamStatic:
    """The text of a branch, the picture and the positions: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, QwenTransformer)
    size, shown = cells(ctx.configs, state.request), state["shown"]
    return transformer.prepare(state[f"{branch}_embeds"], *size, shown, frames=frames(state.request))


def preview(ctx: Context, latents: Tensor) -> Tensor:
    """A small picture of all layers together."""
    return preview_by_decoding(ctx, latents[:, 0])[:3]


@dataclass(frozen=True)
class DecodeLayers(DecodeImage):
    """From `latents` [C, F, h, w] to `image`: float32 [layers, 4, H, W] in [0, 1]; or the latents themselves."""

    def decode(self, ctx: Context, latents: Tensor) -> Tensor:
        return torch.stack([super(DecodeLayers, self).decode(ctx, each) for each in latents.unbind(1)[1:]])


class QwenImageLayered(Pipeline):
    """A picture, and what it shows in words, to layers of it."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(template=described, drop=DROPPED)),
        ShowPictures(prepare),
        InitLatents(shape, swapped=True),
        Denoise(
            conditions=conditions,
            inputs=two_stream_inputs,
            token_count=packed_tokens,
            preview=preview,
            spacing="linear64",
            mu=shift,
            given=("shown",),
        ),
        DecodeLayers(),
    )


PIPELINE = QwenImageLayered
