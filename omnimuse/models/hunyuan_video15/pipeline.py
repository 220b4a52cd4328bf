"""HunyuanVideo-1.5 as a pipeline, from text or a picture to video: the declaration, and what is really its own.

Source: the reference pipelines of diffusers (HunyuanVideo15Pipeline, HunyuanVideo15ImageToVideoPipeline).

Letters: C latent channels, f h w latent frames, height, width; H W those of the video.
"""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.media.picture import pixels_of
from omnimuse.models.hunyuan_video15.spec import MAX_GLYPHS, MAX_SEQUENCE_LENGTH, SPEC
from omnimuse.models.hunyuan_video15.transformer import (
    HunyuanVideoInputs,
    HunyuanVideoStatic,
    HunyuanVideoTransformer,
)
from omnimuse.pipeline.clips import first_latents
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.derive import EncodeGiven
from omnimuse.pipeline.encode import pixels_in
from omnimuse.pipeline.latents import InitLatents, channels_of, clip_cells, clip_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenState, for_both_branches
from omnimuse.pipeline.video import DecodeClip, preview_middle_alone
from omnimuse.pipeline.vision import SeePictures

SYSTEM = "        ".join(
    [
        "You are a helpful assistant. Describe the video by detailing the following aspects: ",
        "1. The main content and theme of the video. ",
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects. ",
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects. ",
        "4. background environment, light, style and atmosphere. ",
        "5. camera angles, movements, and transitions used in the video.",
    ]
)
"""What the language model is told to do, with the spaces that it was trained with."""
DROPPED = 108
"""The tokens of that, and of what is around it, whose features the transformer never sees."""
QUOTED = re.compile(r'"(.*?)"|“(.*?)”')


def described(tokenizer: Any, prompt: str) -> str:
    """The prompt in the chat that the model was trained with; nothing is a blank."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt or " "}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def glyphs(prompt: str) -> str | None:
    """The texts in quotes, each once, which a video is to show; None where there are none."""
    texts = dict.fromkeys(straight or curved for straight, curved in QUOTED.findall(prompt))
    return ". ".join(f'Text "{text}"' for text in texts) + ". " if texts else None


def filled(configs: Configs, request: Request, picture: Picture) -> Image.Image:
    """The middle of `picture` in the size of the video."""
    image, (width, height) = Image.fromarray(pixels_of(picture)), request.size
    assert width and height
    taller = width / height > image.width / image.height
    wide = width if taller else image.width * height // image.height
    high = image.height * width // image.width if taller else height
    resized = image.resize((wide, high), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", (width, height))
    whole.paste(resized, (width // 2 - wide // 2, height // 2 - high // 2))
    return whole


def latent_shape(configs: Configs, request: Request) -> tuple[int, ...]:
    """[C, f, h, w] of the noise of one video."""
    return channels_of(configs), *clip_cells(configs, request)


def encode_first(ctx: Context, request: Request) -> Tensor:
    """What the network is told of the first frame, float32 [C + 1, f, h, w]: latents that begin with those of the
    picture, and a mask that says so.
    """
    first = first_latents(ctx, pixels_in(filled(ctx.configs, request, request.images[0])), exact=False)
    known = first.new_zeros(len(first) + 1, *clip_cells(ctx.configs, request))
    known[:-1, :1], known[-1, 0] = first, 1.0
    return known


def conditions(ctx: Context, state: State, network: str, branch: str) -> HunyuanVideoStatic:
    """The texts of a branch, the picture and the positions: the same at every step."""
    transformer = ctx.network(network)
    assert isinstance(transformer, HunyuanVideoTransformer)
    size = clip_cells(ctx.configs, state.request)
    texts = state[f"{branch}_embeds"], state[f"{branch}_glyphs"]
    static = transformer.prepare(*texts, state["seen"], size, state["known"])
    told = transformer.config.use_meanflow and state["known"] is not None  # from text the reference tells it nothing
    return replace(static, times=state.working["timesteps"]) if told else static


def inputs(ctx: Context, static: HunyuanVideoStatic, latents: Tensor, timestep: Tensor) -> HunyuanVideoInputs:
    """One row: time runs from 1000 (noise) to 0 (video), rounded to the computing dtype as in the reference.

    A step ends where the next one begins, the last one at 0.
    """
    if static.times is not None:
        end = torch.where(static.times < timestep, static.times, 0.0).max()
        static = replace(static, end=end.to(ctx.dtype))
    return HunyuanVideoInputs(latents, timestep.to(ctx.dtype), static)


class HunyuanVideo(Pipeline):
    """Text, and perhaps the first frame, to video."""

    spec = SPEC
    stages = (
        *for_both_branches(
            EncodeText(template=described, take=HiddenState(-3), drop=DROPPED, length=MAX_SEQUENCE_LENGTH),
            EncodeText(text="glyphs", of=glyphs, encoder="text_encoder_2", tokenizer="tokenizer_2", length=MAX_GLYPHS),
        ),
        SeePictures(fit=filled, processor="feature_extractor"),
        EncodeGiven("known", encode_first, "encode picture"),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=clip_tokens,
            preview=preview_middle_alone,
            spacing="linear64",
            texts=("embeds", "glyphs"),
            given=("seen", "known"),
        ),
        DecodeClip(),
    )
    results = MappingProxyType({"video": "video"})


PIPELINE = HunyuanVideo
