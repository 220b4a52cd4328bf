"""The Wan transformer: one stream of video tokens that reads the prompt by cross attention (arXiv 2503.20314).

The arithmetic is that of diffusers' `WanTransformer3DModel`, with its float32 islands: norms, modulations and residual
sums round to the network's dtype only where the reference does. What does not depend on the step, the embedded prompt,
what is seen in pictures and the rotary table, is computed once per request by `WanTransformer.prepare`. Rows of any
size and length share a forward: their tokens are laid end to end.

Letters: R rows, P spans (tokens that share a time), S video tokens, L text tokens, I image tokens, D width, N heads,
H head dim; c f h w latent channels, frames, height, width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention
from omnimuse.attention.layout import Layout
from omnimuse.components.patches import embedded, unpatchify
from omnimuse.components.spans import Spans
from omnimuse.components.wide_attention import PLAN, WideAttention
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.plans import Columns, Cut, Cutting, Rows, Widths
from omnimuse.layers.embedding import TimestepEmbedding
from omnimuse.layers.network import Network
from omnimuse.layers.norm import QueryKeyNorm
from omnimuse.layers.rotary import rotary_table, rotate
from omnimuse.layers.stack import Block, BlockStack, Memory
from omnimuse.layers.steady import Product3d
from omnimuse.loader.facts import read_facts

ROPE_THETA = 10_000.0
FIXED = {"qk_norm": ("rms_norm_across_heads",)}
"""Options of the configuration that this file computes in one way only."""


@dataclass(frozen=True)
class WanConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 14B model.

    With an `image_dim` every block also attends to what an image encoder of that width sees in the pictures, which are
    as many as fill `pos_embed_seq_len` places, or one.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_max_seq_len: int = 1024
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    pos_embed_seq_len: int | None = None

    def __post_init__(self) -> None:
        if len(self.patch_size) != 3 or self.attention_head_dim % 2:
            raise ModelError(
                f"transformer/config.json: patch_size={self.patch_size}, attention_head_dim={self.attention_head_dim}; "
                "a patch has three sides (frames, height, width), and the head dimension is even"
            )
        if self.added_kv_proj_dim != (None if self.image_dim is None else self.dim):
            raise ModelError(
                f"transformer/config.json: image_dim={self.image_dim}, added_kv_proj_dim={self.added_kv_proj_dim}; a "
                f"network that sees pictures has both, the second as wide as its tokens ({self.dim}), others neither"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = {"out_channels": config.get("out_channels") or config.get("in_channels")}
        return read_facts(cls, {**config, **channels}, "transformer/config.json", FIXED)

    @property
    def dim(self) -> int:
        """D, the width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def axes_dims(self) -> tuple[int, int, int]:
        """How many of the H dimensions turn with the frame, the row and the column of a token."""
        side = 2 * (self.attention_head_dim // 6)
        return self.attention_head_dim - 2 * side, side, side


@dataclass(frozen=True)
class WanStatic:
    """What stays the same over all steps of one video: the embedded prompt and pictures, and where the tokens stand.

    `known` are latents of frames that are given.
    """

    text: Tensor  # [L, D]
    rope: Tensor  # [S, 2, H/2, 2], float32
    image: Tensor | None = None  # [I, D]
    known: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many video tokens there are."""
        return len(self.rope)


@dataclass(frozen=True)
class WanInputs:
    """One row: noisy latents [c, f, h, w], what `prepare` made, and the time (0 to 1000): [1] for the whole row, or one
    for each of its patches along the frames.
    """

    latents: Tensor
    t: Tensor
    static: WanStatic


@dataclass(frozen=True)
class WanCond:
    """What every block receives beside the hidden states. Tokens of a span share a time: those of a whole row, or of
    one latent frame of it.
    """

    spans: Spans
    rope: Tensor  # packed, [R, S, 2, H/2, 2] or [1, T, 2, H/2, 2]
    time: Tensor  # [P, 6 D], float32
    text: Tensor  # packed by text_layout, [R, L, D] or [1, T', D]
    text_layout: Layout
    image: Tensor | None  # [R, I, D]
    image_layout: Layout | None

    @property
    def layout(self) -> Layout:
        """That of the video tokens."""
        return self.spans.layout

    @property
    def dense(self) -> bool:
        """Whether the rows are even, and their prompts equally long, too."""
        return self.spans.even and self.text_layout.dense

    def select(self, rows: Sequence[int]) -> WanCond:
        seen, image = self.image_layout, self.image
        return replace(
            self,
            spans=self.spans.select(rows),
            rope=self.layout.take(self.rope, rows),
            time=self.spans.take(self.time, rows),
            text=self.text_layout.take(self.text, rows),
            text_layout=self.text_layout.select(rows),
            image=None if image is None or seen is None else seen.take(image, rows),
            image_layout=None if seen is None else seen.select(rows),
        )

    def cut(self, part: Cut) -> WanCond:
        return replace(self, spans=self.spans.cut(part), rope=self.layout.share(self.rope, part))


class WanTransformer(Network):
    """Predicts the velocity from video to noise, one tensor [c, f, h, w] per row."""

    packing: ClassVar[Literal["varlen"]] = "varlen"

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = Product3d(config.in_channels, dim, patch, stride=patch)
        self.time_embedder = TimestepEmbedding(dim, dim, config.freq_dim)
        self.activation = nn.SiLU()
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = WanMLP(config.text_dim, dim, dim)
        self.image_embedder = None if config.image_dim is None else WanImageEmbedder(config, config.image_dim)
        self.blocks = self.make_blocks(config)
        self.head = WanHead(dim, config.out_channels * prod(patch), config.eps)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanTransformer:
        return cls(WanConfig.from_dict(config))

    def make_blocks(self, config: WanConfig) -> BlockStack:
        """The blocks, in the order they run."""
        return BlockStack(WanBlock(config) for _ in range(config.num_layers))

    def stacks(self) -> dict[str, BlockStack]:
        return {"blocks": self.blocks}

    def plan(self) -> Mapping[str, Cutting]:
        attention, cross = "blocks.*.self_attention", "blocks.*.cross_attention"
        plan: dict[str, Cutting] = {
            "time_proj": Columns(others=1, gather=True),
            f"{attention}.to_qkv": Columns(queries=1, keys=2),
            f"{attention}.norm_qk": Widths(queries=1, keys=1),
            f"{attention}.to_out": Rows(queries=1),
            **{f"{cross}.{part}": cut for part, cut in PLAN.items()},
            "blocks.*.ffn.linear_1": Columns(others=1),
            "blocks.*.ffn.linear_2": Rows(others=1),
        }
        if self.image_embedder is not None:
            plan |= {f"{cross}.to_image_kv": Columns(keys=2), f"{cross}.norm_image_k": Widths(keys=1)}
        return plan

    def prepare(
        self, features: Tensor, frames: int, height: int, width: int, *, seen: Tensor | None = None
    ) -> WanStatic:
        """Text features [L, text_dim], the size of the latents, what is `seen` in pictures [I, image_dim] -> what all
        steps share.

        Raises RequestError if the latents cannot be cut into patches or have more positions than the checkpoint knows.
        """
        assert (seen is None) == (self.image_embedder is None)
        self._check_size(frames, height, width)
        sides = zip((frames, height, width), self.config.patch_size, strict=True)
        axes = [torch.arange(length // patch, device=features.device) for length, patch in sides]
        positions = torch.cartesian_prod(*axes)  # [S, 3]
        rope = rotary_table(positions, self.config.axes_dims, ROPE_THETA, exact=True)
        image = None if self.image_embedder is None or seen is None else self.image_embedder(seen.to(self.dtype))
        return WanStatic(self.text_embedder(features.to(self.dtype)), rope, image)

    def forward(self, rows: Sequence[WanInputs], memories: Sequence[Memory] | None = None) -> list[Tensor]:
        time = self.time_embedder(torch.cat([row.t for row in rows])).to(self.dtype)  # [P, D]
        cond = self._condition(rows, time)
        hidden = self.blocks(cond.layout.pack(self._embed_patches(rows)), cond, memories)
        hidden = hidden[..., : self.config.dim]  # a network may carry more beside the video
        outputs = cond.layout.unpack(self.head(hidden, time, cond))  # [S, c * patch] each
        sizes = [(self.config.out_channels, *row.latents.shape[1:]) for row in rows]
        patch = self.config.patch_size
        return [unpatchify(x, size, patch, last=True) for x, size in zip(outputs, sizes, strict=True)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of hidden states; some weights stay in float32."""
        return self.patch_embedding.weight.dtype

    def _condition(self, rows: Sequence[WanInputs], time: Tensor) -> WanCond:
        spans = tuple(len(row.t) for row in rows)
        runs = tuple((row.static.tokens // count,) * count for row, count in zip(rows, spans, strict=True))
        layout = Layout(tuple(row.static.tokens for row in rows), runs)
        text_layout = Layout(tuple(len(row.static.text) for row in rows))
        images = [row.static.image for row in rows if row.static.image is not None]
        image_layout = Layout(tuple(len(image) for image in images)) if images else None
        return WanCond(
            spans=Spans(layout, spans),
            rope=layout.pack([row.static.rope for row in rows]),
            time=self.time_proj(self.activation(time)).float(),
            text=text_layout.pack([row.static.text for row in rows]),
            text_layout=text_layout,
            image=None if image_layout is None else image_layout.pack(images),
            image_layout=image_layout,
        )

    def _embed_patches(self, rows: Sequence[WanInputs]) -> list[Tensor]:
        """The tokens of each row: [S, D] each."""
        return [embedded(self.patch_embedding, row.latents) for row in rows]

    def _check_size(self, frames: int, height: int, width: int) -> None:
        size, patch, most = (frames, height, width), self.config.patch_size, self.config.rope_max_seq_len
        if any(length < side or length % side for length, side in zip(size, patch, strict=True)):
            raise RequestError(
                f"latents of {frames}x{height}x{width} cannot be cut into patches of {patch}; use multiples", "size"
            )
        if any(length // side > most for length, side in zip(size, patch, strict=True)):
            raise RequestError(
                f"latents of {frames}x{height}x{width} have more than {most} patches along a side, and this model "
                "knows no more positions; use a smaller size or fewer frames",
                "size",
            )


class WanBlock(Block[WanCond]):
    """Self attention, cross attention to the prompt, MLP; the time scales, shifts and gates the first and the last."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attention = WanSelfAttention(dim, config.num_attention_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attention = WanCrossAttention(dim, config.num_attention_heads, eps, config.image_dim is not None)
        self.norm3 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = WanMLP(dim, config.ffn_dim, dim)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(self, hidden: Tensor, cond: WanCond) -> Tensor:
        dtype = hidden.dtype
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self._modulation(cond)
        exact = hidden.float()
        x = cond.spans.modulate(self.norm1(exact), scale, shift).to(dtype)
        hidden = (exact + cond.spans.gate(self.self_attention(x, cond), gate)).to(dtype)
        x = self.norm2(hidden.float()).to(dtype)
        exact = (hidden + self.cross_attention.read(x, cond)).float()
        x = cond.spans.modulate(self.norm3(exact), mlp_scale, mlp_shift).to(dtype)
        return (exact + cond.spans.gate(self.ffn(x), mlp_gate)).to(dtype)

    def probe(self, hidden: Tensor, cond: WanCond) -> Tensor:
        shift, scale, *_ = self._modulation(cond)
        return cond.spans.modulate(self.norm1(hidden.float()), scale, shift).to(hidden.dtype)

    def _modulation(self, cond: WanCond) -> tuple[Tensor, ...]:
        """Shift, scale and gate of the self attention, then of the MLP: [P, 1, D] each, float32."""
        return (self.scale_shift_table + cond.time.unflatten(-1, (6, -1))).split(1, dim=1)


class WanSelfAttention(nn.Module):
    """Attention among the video tokens of a row; queries and keys are normed over all heads together, then turned."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.norm_qk = QueryKeyNorm(dim, eps, rounds_once=True)
        self.core = Attention(heads, dim // heads, "self")
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cond: WanCond) -> Tensor:
        heads = (self.core.num_heads, -1)
        qkv = self.to_qkv(x).unflatten(-1, (3, 1, -1))  # [B, S, 3, 1, N H]
        qk = self.norm_qk(qkv[:, :, :2]).flatten(-2).unflatten(-1, heads)  # [B, S, 2, N, H]
        q, k = rotate(qk, cond.rope).unbind(2)  # [B, S, N, H] each
        x = self.core(q, k, qkv[:, :, 2, 0].unflatten(-1, heads), cond.layout)
        return self.to_out(x.flatten(-2))  # [B, S, D]


class WanCrossAttention(WideAttention):
    """Attention of the video tokens of a row to its prompt, pads included: the model was trained to see them.

    Where it `sees` pictures, the same queries attend to these beside it, with keys and values of their own.
    """

    def __init__(self, dim: int, heads: int, eps: float, sees: bool) -> None:
        super().__init__(dim, dim, dim, heads, "cross", eps)
        self.to_image_kv = nn.Linear(dim, 2 * dim) if sees else None
        self.norm_image_k = nn.RMSNorm(dim, eps) if sees else None

    def read(self, x: Tensor, cond: WanCond) -> Tensor:
        """What the tokens read, [B, S, D]."""
        q, k, v = self.enter(x, cond.text)
        x = self.core(q, k, v, cond.layout, kv_layout=cond.text_layout)  # [B, S, N, H]
        if self.to_image_kv is not None and self.norm_image_k is not None:
            k, v = self.to_image_kv(cond.image).chunk(2, dim=-1)
            k, v = self.by_head(self.norm_image_k(k)), self.by_head(v)
            x = x + self.core(q, k, v, cond.layout, kv_layout=cond.image_layout)
        return self.to_out(x.flatten(-2))


class WanMLP(nn.Module):
    """Linear, GELU (the tanh form), linear."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.activation = nn.GELU("tanh")
        self.linear_2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class WanImageEmbedder(nn.Module):
    """What an image encoder sees [I, image_dim] -> tokens [I, D] that every block attends to."""

    def __init__(self, config: WanConfig, width: int) -> None:
        super().__init__()
        places = config.pos_embed_seq_len
        self.pos_embed = None if places is None else nn.Parameter(torch.zeros(1, places, width))
        self.norm1 = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(width, config.dim)
        self.norm2 = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x if self.pos_embed is None else x + self.pos_embed[0]
        x = self.linear_2(self.activation(self.linear_1(self.norm1(x.float()).to(dtype))))
        return self.norm2(x.float()).to(dtype)


class WanHead(nn.Module):
    """The last norm, scaled and shifted by the time, and the projection to the latents of a patch."""

    def __init__(self, dim: int, out: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, dim))
        self.proj_out = nn.Linear(dim, out)

    def forward(self, hidden: Tensor, time: Tensor, cond: WanCond) -> Tensor:
        """Packed hidden states and the embedded times [P, D] -> packed patches."""
        shift, scale = (self.scale_shift_table + time[:, None]).split(1, dim=1)  # [P, 1, D] each, float32
        return self.proj_out(cond.spans.modulate(self.norm(hidden.float()), scale, shift).to(hidden.dtype))
