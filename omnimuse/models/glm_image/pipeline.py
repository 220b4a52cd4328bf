"""GLM-Image's diffusion as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (GlmImagePipeline), given the tokens of its language model. S tokens, D
width of their features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.core.autoencoder import factor
from omnimuse.core.errors import RequestError
from omnimuse.core.guidance import POSITIVE
from omnimuse.core.output import TextRead
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.models.glm_image.spec import PATCH, SHIFT, SPEC, GlmImageParams
from omnimuse.models.glm_image.transformer import GlmImageInputs, GlmImageStatic, GlmImageTransformer, Size
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import ShowPictures, to_pixels
from omnimuse.pipeline.latents import InitLatents, cells, latent_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, for_both_branches

PAD = 0  # as every T5 has it
QUOTED = (r"'([^']*)'", r"\u201c([^\u201c\u201d]*)\u201d", r'"([^"]*)"', r"「([^「」]*)」")


@dataclass(frozen=True)
class EncodeGlyphs(EncodeText):
    """What stands between quotation marks in a prompt, letter by letter: all that is read of it here."""

    def encode(self, ctx: Context, text: str, limit: int) -> tuple[Tensor, TextRead]:
        """Features of all quotations, one after the other, [S, D]; of a prompt without any those of an empty one."""
        tokenizer, encoder = ctx.components[self.tokenizer], ctx.network(self.encoder)
        quoted = [found for pattern in QUOTED for found in re.findall(pattern, text)] or [""]
        pads = 1 if len(quoted) % 2 == 0 else 0  # as the reference has it
        features, read, whole = [], 0, 0
        for words in quoted:
            ids = tokenizer(words).input_ids  # [1, S]
            cut = tokenizer(words, max_length=limit, truncation=True).input_ids
            read, whole = read + cut.shape[1], whole + ids.shape[1]
            ids = F.pad(cut, (pads, 0), value=PAD).to(ctx.device)
            features.append(self.take(encoder(ids, output_hidden_states=True)))
        return torch.cat(features), self.told(read, whole, limit)


def shift(tokens: int, steps: int) -> float:
    """How far the levels of a picture of so many patches move."""
    return math.sqrt(tokens / SHIFT["base_image_seq_len"]) * SHIFT["max_shift"] + SHIFT["base_shift"]


def size_of(configs: Configs, rows: int, columns: int) -> Size:
    """The size of a picture with so many rows and columns of latents."""
    pixels = factor(configs["vae"])
    return Size((rows * pixels, columns * pixels), (rows // PATCH, columns // PATCH))


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """A picture as it is shown, in its own size in whole patches: [3, H, W]."""
    step = PATCH * factor(configs["vae"])
    return to_pixels(picture, *(max(side // step, 1) * step for side in (picture.width, picture.height)))


def conditions(ctx: Context, state: State, network: str, branch: str) -> GlmImageStatic:
    """The quoted words of a branch, and for what is wanted the prior and the pictures: the same at every step."""
    transformer, extra = ctx.network(network), state.request.extra
    assert isinstance(transformer, GlmImageTransformer)
    assert isinstance(extra, GlmImageParams)
    size = size_of(ctx.configs, *cells(ctx.configs, state.request))
    if branch != POSITIVE:
        return transformer.prepare(state[f"{branch}_embeds"], None, size)
    prior = codes(ctx, transformer, "prior_token_ids", extra.prior_token_ids)
    known = pictures_seen(ctx, transformer, state["shown"], extra.prior_token_image_ids)
    return transformer.prepare(state[f"{branch}_embeds"], prior, size, known)


def pictures_seen(
    ctx: Context, transformer: GlmImageTransformer, shown: Sequence[Tensor], ids: tuple[int, ...]
) -> list[Tensor]:
    """What the network makes of latents [C, h, w] that it is shown, and the prior's tokens of their patches."""
    name, sizes = "prior_token_image_ids", [size_of(ctx.configs, *latents.shape[1:]) for latents in shown]
    counts = [math.prod(size.patches) for size in sizes]
    if len(ids) != sum(counts):
        raise RequestError(
            f"extra.{name} has {len(ids)} tokens, but the pictures have {counts} patches; give one token for each, in "
            "the order of the pictures, row by row, as this model's own language model makes them",
            f"extra.{name}",
        )
    priors = codes(ctx, transformer, name, ids).split(counts) if counts else ()
    return [transformer.look(*each) for each in zip(shown, priors, sizes, strict=True)]


def codes(ctx: Context, transformer: GlmImageTransformer, name: str, ids: tuple[int, ...]) -> Tensor:
    """The tokens of a prior, int64 [S]; RequestError for one that the checkpoint does not know."""
    most = transformer.config.codes
    if unknown := [token for token in ids if not 0 <= token < most]:
        raise RequestError(f"extra.{name} has {unknown[0]}; this checkpoint knows 0 to {most - 1}", f"extra.{name}")
    return torch.tensor(ids, dtype=torch.int64, device=ctx.device)


def inputs(ctx: Context, static: GlmImageStatic, latents: Tensor, timestep: Tensor) -> GlmImageInputs:
    """One row: the network counts timesteps from 999 (noise) to 0."""
    return GlmImageInputs(latents, timestep - 1.0, static)


class GlmImage(Pipeline):
    """What a language model says of a picture, quoted words, and perhaps pictures, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeGlyphs()),
        ShowPictures(prepare),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            spacing="whole",
            mu=shift,
            given=("shown",),
        ),
        DecodeImage(),
    )


PIPELINE = GlmImage
