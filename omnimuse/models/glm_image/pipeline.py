"""GLM-Image as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (GlmImagePipeline). S tokens, D width of their features.
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
from omnimuse.diffusion.schedules import root_mu
from omnimuse.models.glm_image import reading
from omnimuse.models.glm_image.reading import Pieces, codes, finer, seen_by_the_model
from omnimuse.models.glm_image.spec import COARSE, PATCH, SPEC, GlmImageParams
from omnimuse.models.glm_image.transformer import GlmImageInputs, GlmImageStatic, GlmImageTransformer, Size
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.encode import ShowPictures, to_pixels
from omnimuse.pipeline.latents import InitLatents, cells, latent_shape, packed_tokens
from omnimuse.pipeline.picture_codes import Brief, ReadBrief, ReadPictures, WriteCodes
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


def size_of(configs: Configs, rows: int, columns: int) -> Size:
    """The size of a picture with so many rows and columns of latents."""
    pixels = factor(configs["vae"])
    return Size((rows * pixels, columns * pixels), (rows // PATCH, columns // PATCH))


def prepare(configs: Configs, request: Request, picture: Picture) -> Tensor:
    """A picture as it is shown, [3, H, W]: in the size in which the language model sees it, whose every token is of
    `COARSE` patches a side, else in its own in whole patches.
    """
    step = PATCH * factor(configs["vae"])
    if seen_by_the_model(configs, request):
        rows, columns = Pieces.told(configs).grid(picture)
        return to_pixels(picture, columns * COARSE * step, rows * COARSE * step)
    return to_pixels(picture, *(max(side // step, 1) * step for side in (picture.width, picture.height)))


def conditions(ctx: Context, state: State, network: str, branch: str) -> GlmImageStatic:
    """The quoted words of a branch, and for what is wanted the prior and the pictures: the same at every step."""
    transformer, extra = ctx.network(network), state.request.extra
    assert isinstance(transformer, GlmImageTransformer)
    assert isinstance(extra, GlmImageParams)
    size = size_of(ctx.configs, *cells(ctx.configs, state.request))
    if branch != POSITIVE:
        return transformer.prepare(state[f"{branch}_embeds"], None, size)
    shown, sources = state["shown"], state["sources"]
    sizes = [size_of(ctx.configs, *latents.shape[1:]) for latents in shown]
    if sources is None:
        priors = given_of_pictures(ctx, sizes, extra.prior_token_image_ids)
    else:
        priors = [finer(found) for found in sources]
    known = [transformer.look(*each) for each in zip(shown, priors, sizes, strict=True)]
    return transformer.prepare(state[f"{branch}_embeds"], state["prior"], size, known)


def given_of_pictures(ctx: Context, sizes: Sequence[Size], ids: tuple[int, ...]) -> Sequence[Tensor]:
    """The tokens that were given of the patches of pictures of `sizes`, of each its own."""
    name, counts = "prior_token_image_ids", [math.prod(size.patches) for size in sizes]
    if len(ids) != sum(counts):
        raise RequestError(
            f"extra.{name} has {len(ids)} tokens, but the pictures have {counts} patches; give one token for each, in "
            "the order of the pictures, row by row, as this model's own language model makes them",
            f"extra.{name}",
        )
    return codes(ctx, name, ids).split(counts) if counts else ()


def inputs(ctx: Context, static: GlmImageStatic, latents: Tensor, timestep: Tensor) -> GlmImageInputs:
    """One row: the network counts timesteps from 999 (noise) to 0."""
    return GlmImageInputs(latents, timestep - 1.0, static)


class GlmImage(Pipeline):
    """Text, and perhaps pictures, to what is in a picture, and that, with the quoted words, to the picture."""

    spec = SPEC
    records = (Brief,)
    stages = (
        ReadPictures(Pieces.told, seen_by_the_model),
        ReadBrief(reading.given, reading.wanted_grids, reading.brief_text),
        WriteCodes(reading.sampling, reading.most_codes, finer, reading.prior_given),
        *for_both_branches(EncodeGlyphs()),
        ShowPictures(prepare),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            spacing="whole",
            mu=root_mu,
            given=("shown", "sources", "prior"),
        ),
        DecodeImage(),
    )


PIPELINE = GlmImage
