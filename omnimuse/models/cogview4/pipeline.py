"""CogView4 as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (CogView4Pipeline).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.components.joint_stream import JointStatic
from omnimuse.components.two_streams import TwoStreamInputs
from omnimuse.diffusion.schedules import root_mu
from omnimuse.models.cogview4.spec import SPEC, CogView4Params
from omnimuse.models.cogview4.transformer import CogView4Transformer
from omnimuse.pipeline.decode import DecodeImage, preview_by_decoding
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.latents import InitLatents, cells, latent_shape, packed_tokens
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenState, Tokens, for_both_branches

WHOLE = 16  # of so many tokens a text has a multiple


def tokens(tokenizer: Any, prompt: str, limit: int) -> Tokens:
    """At most `limit` tokens of a prompt, and before them pads, which are read and seen as all else."""
    ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=limit).input_ids  # [1, S]
    read = ids.shape[1]
    whole = tokenizer(prompt, return_tensors="pt", verbose=False).input_ids.shape[1] if read == limit else read
    ids = F.pad(ids, (-read % WHOLE, 0), value=tokenizer.pad)
    return Tokens(ids, torch.ones_like(ids), 0, ids.shape[1], read, whole)


def conditions(ctx: Context, state: State, network: str, branch: str) -> JointStatic:
    """The text of a branch, the positions and what is told of the picture: the same at every step."""
    transformer, extra = ctx.network(network), state.request.extra
    assert isinstance(transformer, CogView4Transformer)
    assert isinstance(extra, CogView4Params)
    width, height = state.request.size
    told = (*(extra.original_size or (height, width)), *extra.crops_coords_top_left, height, width)
    return transformer.prepare(state[f"{branch}_embeds"], *cells(ctx.configs, state.request), told)


def inputs(ctx: Context, static: JointStatic, latents: Tensor, timestep: Tensor) -> TwoStreamInputs[JointStatic]:
    """One row: the network is told whole timesteps, from 1000 (noise) to 1."""
    return TwoStreamInputs(latents, timestep, static)


class CogView4(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(take=HiddenState(-2), tokens=tokens)),
        InitLatents(latent_shape),
        Denoise(
            conditions=conditions,
            inputs=inputs,
            token_count=packed_tokens,
            preview=preview_by_decoding,
            spacing="whole_last",
            mu=root_mu,
        ),
        DecodeImage(),
    )


PIPELINE = CogView4
