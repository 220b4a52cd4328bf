"""The FLUX.2 transformer: blocks with two streams, then many with one, all modulated alike and without biases.

The arithmetic is that of diffusers' `Flux2Transformer2DModel` without adapters and key caches; the blocks are those of
`components/two_streams.py`. A token is one cell of latents that the autoencoder has patched. What does not depend on
the step, the projected text, the guidance, pictures that are shown and the rotary tables, is computed once per request
by `Flux2Transformer.prepare`.

Letters: R rows, S tokens, D width, H head dim; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from omnimuse.components.two_streams import TIME_SCALE, Blocks, TwoStreamInputs, TwoStreamNetwork, TwoStreamStatic
from omnimuse.core.errors import ModelError
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.facts import read_facts

APART = 10
"""How far pictures that are shown stand from each other, and the first from what is drawn, on the axis of time."""


@dataclass(frozen=True)
class Flux2Config:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the reference."""

    in_channels: int = 128
    num_layers: int = 8
    num_single_layers: int = 48
    attention_head_dim: int = 128
    num_attention_heads: int = 48
    joint_attention_dim: int = 15360
    timestep_guidance_channels: int = 256
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 2000.0
    guidance_embeds: bool = True

    def __post_init__(self) -> None:
        if len(self.axes_dims_rope) != 4 or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ModelError(
                f"transformer/config.json: axes_dims_rope={self.axes_dims_rope}, "
                f"attention_head_dim={self.attention_head_dim}; there must be four axes whose sum is the head dim"
            )

    @property
    def blocks(self) -> Blocks:
        """What the network's blocks are."""
        return Blocks(
            dim=self.num_attention_heads * self.attention_head_dim,
            heads=self.num_attention_heads,
            double=self.num_layers,
            single=self.num_single_layers,
            mlp_ratio=self.mlp_ratio,
            gated="first",
            biased=False,
            shared=True,
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Flux2Config:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = config.get("in_channels", cls.in_channels)
        fixed = {"patch_size": (1,), "out_channels": (None, channels), "eps": (1e-6,)}
        return read_facts(cls, config, "transformer/config.json", fixed)


@dataclass(frozen=True)
class Flux2Static(TwoStreamStatic):
    """What stays the same over all steps of one image: its text, its guidance and all tokens' positions."""

    guidance: Tensor  # [D], zeros for a network that takes none


Flux2Inputs = TwoStreamInputs[Flux2Static]


class Flux2Transformer(TwoStreamNetwork[Flux2Static]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    patch: ClassVar[int] = 1

    def __init__(self, config: Flux2Config) -> None:
        blocks, waves = config.blocks, config.timestep_guidance_channels
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.time_embedder = TimestepEmbedding(blocks.dim, blocks.dim, waves, bias=False)
        self.activation = nn.SiLU()
        guided = config.guidance_embeds
        self.guidance_embedder = TimestepEmbedding(blocks.dim, blocks.dim, waves, bias=False) if guided else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Flux2Transformer:
        return cls(Flux2Config.from_dict(config))

    def prepare(
        self, features: Tensor, guidance: float, height: int, width: int, shown: Sequence[Tensor] = ()
    ) -> Flux2Static:
        """Text features [S, joint_attention_dim], the guidance scale, the latent size and the latents [c, h, w] of
        pictures, in order -> what all steps share. A network without guidance embedding makes nothing of the scale.
        """
        weight = self.text_embedder.weight
        text = self.text_embedder(features.to(weight))  # [S_text, D]
        guided = weight.new_zeros(len(weight))
        if self.guidance_embedder is not None:
            guided = self.guidance_embedder(weight.new_full((1,), guidance) * TIME_SCALE)[0]  # [D]
        rope = self._rope(len(text), [(height, width), *((x.shape[1], x.shape[2]) for x in shown)])
        return Flux2Static(text, rope, guided, shown=torch.cat(self.embed(shown)) if shown else None)

    def vector(self, rows: Sequence[Flux2Inputs]) -> Tensor:
        guidance = torch.stack([row.static.guidance for row in rows])  # [R, D]
        return self.activation(self.time_embedder(self.times(rows)) + guidance)

    def _rope(self, text: int, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Text tokens follow each other on the fourth axis; pictures spread over the second and third, and stand one
        behind the other on the first.
        """
        spans = [(range(1), range(1), range(1), range(text))]
        spans += [(range(APART * i, APART * i + 1), range(h), range(w), range(1)) for i, (h, w) in enumerate(sizes)]
        axes = [[torch.arange(span.start, span.stop, device=self._device) for span in one] for one in spans]
        positions = torch.cat([torch.cartesian_prod(*one) for one in axes])  # [S, 4]
        return rotary_table(positions, self.config.axes_dims_rope, self.config.rope_theta, exact=True)

    @property
    def _device(self) -> torch.device:
        return self.text_embedder.weight.device
