"""The FLUX.1 transformer: blocks with two streams, text and image, that attend together, then blocks with one.

The arithmetic is that of diffusers' `FluxTransformer2DModel` without adapters. What does not depend on the step, the
projected text, its pooled vector, the guidance and the rotary tables, is computed once per request by
`FluxTransformer.prepare`. All blocks see one sequence per row, text tokens before image tokens; rows of any size share
a forward: their sequences are laid end to end.

Letters: R rows, S tokens, D width, N heads, H head dim; c h w latent channels, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.core.errors import ModelError
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.network import Network
from omnimuse.layers.norm import QueryKeyNorm
from omnimuse.layers.rotary import rotary_table, rotate
from omnimuse.layers.stack import Block, BlockStack, ChainedStack, Memory
from omnimuse.loader.facts import read_facts

PATCH = 2  # latent pixels per token side
THETA = 10_000.0
EPS = 1e-6
TIME_SCALE = 1000.0  # times and guidance scales are multiplied by this before they are embedded
MLP_RATIO = 4


@dataclass(frozen=True)
class FluxConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 12B models."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self) -> None:
        if len(self.axes_dims_rope) != 3 or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ModelError(
                f"transformer/config.json: axes_dims_rope={self.axes_dims_rope}, "
                f"attention_head_dim={self.attention_head_dim}; there must be three axes whose sum is the head dim"
            )

    @property
    def dim(self) -> int:
        """The width of the hidden states."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FluxConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = config.get("in_channels", cls.in_channels)
        return read_facts(
            cls, config, "transformer/config.json", {"patch_size": (1,), "out_channels": (None, channels)}
        )


@dataclass(frozen=True)
class FluxStatic:
    """What stays the same over all steps of one image: its text, its guidance and all tokens' positions."""

    text: Tensor  # [S_text, D]
    pooled: Tensor  # [D], the text again, as one vector
    guidance: Tensor  # [D], zeros for a network that takes none
    rope: Tensor  # [S_text + S_image, H/2, 2], float32

    @property
    def text_tokens(self) -> int:
        """How many tokens the blocks see beside those of the image."""
        return len(self.text)


@dataclass(frozen=True)
class FluxInputs:
    """One row: noisy latents [c, h, w], the scalar t in (0, 1] (1 is pure noise), and what `prepare` made."""

    latents: Tensor
    t: Tensor
    static: FluxStatic


@dataclass(frozen=True)
class FluxCond:
    """What every block receives beside the hidden states. A row is its text tokens, then its image tokens."""

    layout: Layout  # both
    text: Layout
    image: Layout
    rope: Tensor  # packed, [R, S, H/2, 2] or [1, T, H/2, 2]
    vector: Tensor  # [R, D]: silu(time + guidance + pooled text)

    @property
    def dense(self) -> bool:
        """Whether the texts are equally long, and the images, too."""
        return self.text.dense and self.image.dense

    def select(self, rows: Sequence[int]) -> FluxCond:
        layout, text, image = (part.select(rows) for part in (self.layout, self.text, self.image))
        vector = torch.stack([self.vector[row] for row in rows])
        return FluxCond(layout, text, image, self.layout.take(self.rope, rows), vector)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A tensor packed by `layout` -> its text packed by `text` and its image packed by `image`."""
        if self.dense:
            return x[:, : self.text.length], x[:, self.text.length :]
        lengths = zip(self.text.lengths, self.image.lengths, strict=True)
        rows = [row.split(pair) for row, pair in zip(self.layout.unpack(x), lengths, strict=True)]
        return self.text.pack([row[0] for row in rows]), self.image.pack([row[1] for row in rows])

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """The reverse of `split`."""
        if self.dense:
            return torch.cat([text, image], dim=1)
        rows = zip(self.text.unpack(text), self.image.unpack(image), strict=True)
        joined = torch.cat([part for row in rows for part in row])  # [T, *]
        return joined.unflatten(0, (-1, self.layout.lengths[0] if self.layout.dense else len(joined)))


class FluxTransformer(Network):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        dim, heads = config.dim, config.num_attention_heads
        self.image_embedder = nn.Linear(config.in_channels, dim)
        self.text_embedder = nn.Linear(config.joint_attention_dim, dim)
        self.time_embedder = TimestepEmbedding(dim, dim)
        self.activation = nn.SiLU()
        self.guidance_embedder = TimestepEmbedding(dim, dim) if config.guidance_embeds else None
        self.pooled_embedder = nn.Sequential(
            nn.Linear(config.pooled_projection_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.stack = ChainedStack(
            {
                "double_blocks": (DoubleBlock(dim, heads) for _ in range(config.num_layers)),
                "single_blocks": (SingleBlock(dim, heads) for _ in range(config.num_single_layers)),
            }
        )
        self.head = FluxHead(dim, config.in_channels)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FluxTransformer:
        return cls(FluxConfig.from_dict(config))

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.stack}

    def prepare(self, features: Tensor, pooled: Tensor, guidance: float, height: int, width: int) -> FluxStatic:
        """Text features [S, joint_attention_dim], a pooled text [pooled_projection_dim], the guidance scale and the
        latent size -> what all steps share. A network without guidance embedding makes nothing of the scale.
        """
        weight = self.text_embedder.weight
        text = self.text_embedder(features.to(weight))  # [S_text, D]
        vector = self.pooled_embedder(pooled.to(weight))  # [D]
        guided = torch.zeros_like(vector)
        if self.guidance_embedder is not None:
            guided = self.guidance_embedder(weight.new_full((1,), guidance) * TIME_SCALE)[0]  # [D]
        return FluxStatic(text, vector, guided, self._rope(len(text), height // PATCH, width // PATCH))

    def forward(self, rows: Sequence[FluxInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        images = self._embed_images(rows)  # [S_image, D] each
        cond = self._condition(rows, Layout(tuple(len(image) for image in images)))
        text = cond.text.pack([row.static.text for row in rows])
        hidden = self.stack(cond.join(text, cond.image.pack(images)), cond, memories)  # packed, width D
        _, image = cond.split(hidden)
        patches = cond.image.unpack(self.head(image, cond))  # [S_image, 4c] each
        return [_unpatchify(x, row.latents.shape) for row, x in zip(rows, patches, strict=True)]

    def _rope(self, text: int, rows: int, columns: int) -> Tensor:
        """All text tokens stand at the origin; the image spreads over the second and third axis."""
        axes = (torch.arange(length, device=self.text_embedder.weight.device) for length in (1, rows, columns))
        image = torch.cartesian_prod(*axes)  # [S_image, 3]
        positions = torch.cat([image.new_zeros(text, 3), image])  # [S_text + S_image, 3]
        return rotary_table(positions, self.config.axes_dims_rope, THETA, exact=True)

    def _condition(self, rows: Sequence[FluxInputs], image: Layout) -> FluxCond:
        text = Layout(tuple(len(row.static.text) for row in rows))
        layout = Layout(tuple(len(row.static.rope) for row in rows))
        return FluxCond(layout, text, image, layout.pack([row.static.rope for row in rows]), self._vector(rows))

    def _vector(self, rows: Sequence[FluxInputs]) -> Tensor:
        """What modulates every block: [R, D]."""
        weight = self.text_embedder.weight
        t = torch.stack([row.t for row in rows]).to(weight.dtype)  # [R]
        pooled = torch.stack([row.static.pooled for row in rows])  # [R, D]
        guidance = torch.stack([row.static.guidance for row in rows])  # [R, D]
        return self.activation(self.time_embedder(t * TIME_SCALE) + guidance + pooled)

    def _embed_images(self, rows: Sequence[FluxInputs]) -> list[Tensor]:
        patches = [_patchify(row.latents.to(self.image_embedder.weight.dtype)) for row in rows]
        return list(self.image_embedder(torch.cat(patches)).split([len(patch) for patch in patches]))


class DoubleBlock(Block[FluxCond]):
    """Text and image, each with weights of its own, meet in one attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.text = Stream(dim, heads)
        self.image = Stream(dim, heads)
        self.core = Attention(heads, dim // heads, "joint", category="self")

    def forward(self, hidden: Tensor, cond: FluxCond) -> Tensor:
        text, image = cond.split(hidden)
        text_mods, image_mods = self.text.modulate(cond, cond.text), self.image.modulate(cond, cond.image)
        text_qkv, image_qkv = self.text.enter(text, text_mods), self.image.enter(image, image_mods)
        qk, v = (cond.join(*pair) for pair in zip(text_qkv, image_qkv, strict=True))  # packed
        q, k = rotate(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        x = self.core(q, k, v, cond.layout).flatten(-2)  # [B, S, D]
        text_x, image_x = cond.split(x)
        return cond.join(self.text.leave(text, text_x, text_mods), self.image.leave(image, image_x, image_mods))

    def probe(self, hidden: Tensor, cond: FluxCond) -> Tensor:
        """The image as the attention sees it; zeros for the text, which has no part in the relative change."""
        text, image = cond.split(hidden)
        shift, scale, *_ = self.image.modulate(cond, cond.image)
        return cond.join(torch.zeros_like(text), self.image.norm(image) * (1 + scale) + shift)


class Stream(nn.Module):
    """One half of a double block, for the tokens of one kind: all but the attention itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.norm = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.qkv = Projection(dim, heads)
        self.to_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU("tanh"), nn.Linear(MLP_RATIO * dim, dim))

    def modulate(self, cond: FluxCond, layout: Layout) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the attention, then of the MLP, each one vector per row made to broadcast."""
        return layout.expand(self.modulation(cond.vector)).chunk(6, dim=-1)

    def enter(self, x: Tensor, mods: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Queries and keys, and values, of tokens [B, S, D]."""
        shift, scale = mods[:2]
        return self.qkv(self.norm(x) * (1 + scale) + shift)

    def leave(self, x: Tensor, attended: Tensor, mods: Sequence[Tensor]) -> Tensor:
        """The tokens [B, S, D] after the attention, whose outcome is `attended`, and after the MLP."""
        gate, shift, scale, mlp_gate = mods[2:]
        x = x + gate * self.to_out(attended)
        return _finite(x + mlp_gate * self.mlp(self.norm(x) * (1 + scale) + shift))


class SingleBlock(Block[FluxCond]):
    """Text and image as one sequence: attention and MLP side by side, from one norm to one sum."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 3 * dim)
        self.norm = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.qkv = Projection(dim, heads)
        self.core = Attention(heads, dim // heads, "single", category="self")
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU("tanh"))
        self.to_out = nn.Linear((1 + MLP_RATIO) * dim, dim)

    def forward(self, hidden: Tensor, cond: FluxCond) -> Tensor:
        x, gate = self._enter(hidden, cond)
        qk, v = self.qkv(x)
        q, k = rotate(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        attended = self.core(q, k, v, cond.layout).flatten(-2)  # [B, S, D]
        return _finite(hidden + gate * self.to_out(torch.cat([attended, self.mlp(x)], dim=-1)))

    def probe(self, hidden: Tensor, cond: FluxCond) -> Tensor:
        return self._enter(hidden, cond)[0]

    def _enter(self, hidden: Tensor, cond: FluxCond) -> tuple[Tensor, Tensor]:
        """What attention and MLP see, and the gate of what they add."""
        shift, scale, gate = cond.layout.expand(self.modulation(cond.vector)).chunk(3, dim=-1)
        return self.norm(hidden) * (1 + scale) + shift, gate


class Projection(nn.Module):
    """Tokens [B, S, D] -> queries and keys, normed, [B, S, 2, N, H], and values [B, S, N, H]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(dim, 3 * dim)
        self.norm_qk = QueryKeyNorm(dim // heads, EPS, rounds_once=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        qkv = self.linear(x).unflatten(-1, (3, self.heads, -1))  # [B, S, 3, N, H]
        return self.norm_qk(qkv[:, :, :2]), qkv[:, :, 2]


class FluxHead(nn.Module):
    """The last norm, scaled and shifted by the step, and the projection to a patch; image tokens only."""

    def __init__(self, dim: int, patch_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, patch_dim)

    def forward(self, image: Tensor, cond: FluxCond) -> Tensor:
        scale, shift = cond.image.expand(self.modulation(cond.vector)).chunk(2, dim=-1)
        return self.linear(self.norm(image) * (1 + scale) + shift)


def _finite(x: Tensor) -> Tensor:
    """In float16, sums may overflow; the reference clips them."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def _patchify(latents: Tensor) -> Tensor:
    """[c, h, w] -> [h/2 * w/2, 4c]; within a patch the order is channel, row, column."""
    c, h, w = latents.shape
    x = latents.reshape(c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(1, 3, 0, 2, 4).reshape(-1, c * PATCH * PATCH)


def _unpatchify(x: Tensor, size: Sequence[int]) -> Tensor:
    """The reverse of `_patchify`, to `size` = (c, h, w)."""
    c, h, w = size
    x = x.reshape(h // PATCH, w // PATCH, c, PATCH, PATCH)
    return x.permute(2, 0, 3, 1, 4).reshape(c, h, w)
