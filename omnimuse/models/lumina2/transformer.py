"""The Lumina 2 transformer (arXiv 2503.21758): one stream of caption tokens followed by image tokens.

The arithmetic is that of diffusers' `Lumina2Transformer2DModel`; the blocks are those of `components/one_stream.py`.
What does not depend on the step, the refined caption and the rotary tables, is computed once per request by
`LuminaTransformer.prepare`. Rows of any size and caption length share a forward: their tokens are laid end to end.

Letters: R rows, S tokens, D width, H head dim, M width of the time's vector; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.components.one_stream import Blocks, Head, OneStreamBlock, OneStreamCond, block_plan
from omnimuse.components.patches import PATCH, patchify, unpatchify
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Cutting
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.network import Network
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table
from omnimuse.layers.stack import BlockStack, Memory
from omnimuse.loader.facts import read_facts

THETA = 10_000.0
TIME_WIDTH = 1024  # at most


@dataclass(frozen=True)
class LuminaConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 2.6B model."""

    in_channels: int = 16
    hidden_size: int = 2304
    num_layers: int = 26
    num_refiner_layers: int = 2
    num_attention_heads: int = 24
    num_kv_heads: int = 8
    multiple_of: int = 256
    ffn_dim_multiplier: float = 1.0
    norm_eps: float = 1e-5
    axes_dim_rope: tuple[int, ...] = (32, 32, 32)
    axes_lens: tuple[int, ...] = (300, 512, 512)
    cap_feat_dim: int = 2304

    def __post_init__(self) -> None:
        three_axes = len(self.axes_dim_rope) == len(self.axes_lens) == 3
        if not three_axes or self.hidden_size != self.num_attention_heads * sum(self.axes_dim_rope):
            raise ModelError(
                f"transformer/config.json: hidden_size={self.hidden_size}, "
                f"num_attention_heads={self.num_attention_heads}, axes_dim_rope={self.axes_dim_rope}, "
                f"axes_lens={self.axes_lens}; there must be three axes, and hidden_size = heads * sum(axes_dim_rope)"
            )
        if self.num_kv_heads < 1 or self.num_attention_heads % self.num_kv_heads:
            raise ModelError(
                f"transformer/config.json: num_kv_heads={self.num_kv_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def blocks(self) -> Blocks:
        """What the blocks are."""
        inner = int(self.ffn_dim_multiplier * 4 * self.hidden_size)
        return Blocks(
            self.hidden_size,
            self.num_attention_heads,
            self.num_kv_heads,
            hidden=-(-inner // self.multiple_of) * self.multiple_of,
            modulation=min(self.hidden_size, TIME_WIDTH),
            eps=self.norm_eps,
        )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LuminaConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = config.get("in_channels", cls.in_channels)
        fixed = {"patch_size": (PATCH,), "out_channels": (None, channels), "scaling_factor": (1.0,)}
        return read_facts(cls, config, "transformer/config.json", fixed, {"sample_size"})


@dataclass(frozen=True)
class LuminaStatic:
    """What stays the same over all steps of one image: the refined caption and all tokens' positions."""

    caption: Tensor  # [S_caption, D]
    rope: Tensor  # [S_caption + S_image, 2, H/2, 2], float32

    @property
    def text_tokens(self) -> int:
        """How many tokens are not the image's."""
        return len(self.caption)


@dataclass(frozen=True)
class LuminaInputs:
    """One row: noisy latents [c, h, w], the scalar t = 1 - sigma, and what `prepare` made."""

    latents: Tensor
    t: Tensor
    static: LuminaStatic


class LuminaTransformer(Network):
    """Predicts the velocity from noise to image, one tensor [c, h, w] per row. The pipeline negates it."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: LuminaConfig) -> None:
        super().__init__()
        self.config = config
        blocks, patch_dim = config.blocks, PATCH * PATCH * config.in_channels
        self.image_embedder = nn.Linear(patch_dim, blocks.dim)
        self.caption_norm = RMSNorm(config.cap_feat_dim, config.norm_eps)
        self.caption_embedder = nn.Linear(config.cap_feat_dim, blocks.dim)
        self.time_embedder = TimestepEmbedding(blocks.modulation, blocks.modulation)
        self.activation = nn.SiLU()
        refiners, layers = range(config.num_refiner_layers), range(config.num_layers)
        self.noise_refiner = BlockStack(OneStreamBlock(blocks, "self") for _ in refiners)
        self.context_refiner = BlockStack(OneStreamBlock(blocks, "self", timed=False) for _ in refiners)
        self.layers = BlockStack(OneStreamBlock(blocks, "joint") for _ in layers)
        self.head = Head(blocks, patch_dim, active=True)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LuminaTransformer:
        return cls(LuminaConfig.from_dict(config))

    def stacks(self) -> dict[str, BlockStack]:
        return {"noise_refiner": self.noise_refiner, "layers": self.layers}

    def plan(self) -> Mapping[str, Cutting]:
        return block_plan({"context_refiner": self.context_refiner, **self.stacks()})

    def prepare(self, features: Tensor, height: int, width: int) -> LuminaStatic:
        """Text features [S, cap_feat_dim] and the latent size -> what all steps share."""
        rope = self._rope(len(features), height // PATCH, width // PATCH)
        embedded = self.caption_embedder(self.caption_norm(features.to(self.caption_embedder.weight)))  # [S, D]
        layout = Layout((len(embedded),))
        cond = OneStreamCond(layout, layout.pack([rope[: len(embedded)]]))
        return LuminaStatic(layout.unpack(self.context_refiner(layout.pack([embedded]), cond))[0], rope)

    def forward(self, rows: Sequence[LuminaInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        time = self.activation(self.time_embedder(torch.stack([row.t for row in rows])))  # [R, M]
        images = self._refined(rows, time, memories)  # [S_image, D] each
        streams = [torch.cat([row.static.caption, image]) for row, image in zip(rows, images, strict=True)]
        layout = Layout(tuple(len(stream) for stream in streams))
        cond = OneStreamCond(layout, layout.pack([row.static.rope for row in rows]), time)
        hidden = self.head(self.layers(layout.pack(streams), cond, memories), cond)  # packed, width c * PATCH * PATCH
        outputs = zip(rows, layout.unpack(hidden), strict=True)
        return [unpatchify(x[row.static.text_tokens :], row.latents.shape, last=True) for row, x in outputs]

    def _refined(
        self, rows: Sequence[LuminaInputs], time: Tensor, memories: Sequence[Memory] | None
    ) -> Sequence[Tensor]:
        """The tokens of every row's image, which have not seen the caption yet."""
        patches = [patchify(row.latents.to(self.image_embedder.weight.dtype), last=True) for row in rows]
        layout = Layout(tuple(len(patch) for patch in patches))
        embedded = self.image_embedder(torch.cat(patches)).split(layout.lengths)
        rope = layout.pack([row.static.rope[row.static.text_tokens :] for row in rows])
        return layout.unpack(self.noise_refiner(layout.pack(embedded), OneStreamCond(layout, rope, time), memories))

    def _rope(self, caption: int, rows: int, columns: int) -> Tensor:
        """The caption goes along the first axis; the image stands at its end and spreads over the other two."""
        device = self.caption_embedder.weight.device
        words = F.pad(torch.arange(caption, device=device)[:, None], (0, 2))  # [S_caption, 3]
        axes = (range(caption, caption + 1), range(rows), range(columns))
        image = torch.cartesian_prod(*(torch.arange(a.start, a.stop, device=device) for a in axes))  # [S_image, 3]
        return rotary_table(torch.cat([words, image]), self.config.axes_dim_rope, THETA, exact=True)
