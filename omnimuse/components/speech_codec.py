"""The decoder of the 12 Hz speech codec of Qwen3-TTS: codes of frames become a waveform, whole or piece by piece.

The arithmetic, and the names of the weights, are those of the published code (`Qwen3TTSTokenizerV2Decoder`). Nothing
looks ahead: a transformer sees a window of frames before, convolutions see what lies behind them. So a `Past` of what
each part has seen last makes the pieces of a sound exactly the whole, at the cost of the pieces alone.

Letters: Q codebooks, T frames, C channels, n samples, S places, N heads, H head dim, W window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.core.errors import ModelError
from omnimuse.layers.mlp import GatedMLP
from omnimuse.layers.norm import RMSNorm
from omnimuse.layers.rotary import rotary_table, turn_halves
from omnimuse.loader.facts import read_facts
from omnimuse.loader.rules import Drop, Rename

DILATIONS = (1, 3, 9)
KERNEL = 7
TINY = 1e-9
THETA = 10_000.0
LEAST_USE = 1e-5
IGNORED = (
    *("attention_dropout", "layer_scale_initial_scale", "max_position_embeddings", "transformers_version"),
    *("dtype", "torch_dtype", "model_type", "architectures", "initializer_range"),
    *("semantic_codebook_size", "vector_quantization_hidden_dimension"),
)


@dataclass(frozen=True)
class SpeechCodecConfig:
    """The facts in the part `decoder_config` of the codec's config.json; defaults are those of the published one."""

    codebook_size: int = 2048
    codebook_dim: int = 512
    num_quantizers: int = 16
    latent_dim: int = 1024
    hidden_size: int = 512
    intermediate_size: int = 1024
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 64
    sliding_window: int = 72
    rms_norm_eps: float = 1e-5
    upsample_rates: tuple[int, ...] = (8, 5, 4, 3)
    upsampling_ratios: tuple[int, ...] = (2, 2)
    decoder_dim: int = 1536

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return prod((*self.upsample_rates, *self.upsampling_ratios))


@dataclass
class Past:
    """What a sound that is decoded piece by piece has so far: by part, what that saw last; `frames` of it are done."""

    tails: dict[nn.Module, Tensor] = field(default_factory=dict)
    frames: int = 0

    def join(self, part: nn.Module, x: Tensor, most: int, *, empty: Tensor | None = None) -> Tensor:
        """What `part` saw last, at most `most` of it, and `x` [*, S] behind it; the end of that is what it saw last.

        In the beginning it saw `empty`.
        """
        before = self.tails.get(part, empty)
        joined = x if before is None else torch.cat([before, x], dim=-1)
        self.tails[part] = joined[..., max(joined.shape[-1] - most, 0) :].clone()  # not the rest of it, too
        return joined


class Codec(nn.Module):
    """What makes a waveform of codes, whole or piece by piece; a frame is `hop` samples."""

    hop: int

    @abstractmethod
    def forward(self, codes: Tensor, past: Past | None = None) -> Tensor:
        """The waveform [n] in [-1, 1] of frames, int64 [Q, T]; with a `past`, which is then theirs, too, of what comes
        behind it.
        """


class SpeechCodec(Codec):
    """Codes of frames, int64 [Q, T], to a waveform in [-1, 1], [n] with n = `hop` * T."""

    def __init__(self, config: SpeechCodecConfig) -> None:
        super().__init__()
        self.config, self.hop = config, config.hop
        c, rates = config, config.upsample_rates
        widths = [c.decoder_dim // 2**level for level in range(len(rates) + 1)]
        self.quantizer = Codebooks(config)
        self.pre_conv = CausalConv(c.codebook_dim, c.latent_dim, 3)
        self.pre_transformer = Windowed(config)
        self.upsample = nn.ModuleList(
            nn.ModuleList([CausalUp(c.latent_dim, c.latent_dim, ratio, ratio), Mixing(c.latent_dim)])
            for ratio in c.upsampling_ratios
        )
        levels = [Level(width, out, rate) for (width, out), rate in zip(pairwise(widths), rates, strict=True)]
        ends = Snake(widths[-1]), CausalConv(widths[-1], 1, KERNEL)
        self.decoder = nn.ModuleList([CausalConv(c.latent_dim, c.decoder_dim, KERNEL), *levels, *ends])

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SpeechCodec:
        """The decoder that the codec's config.json, whole, describes; ModelError for one that it cannot be."""
        fixed = {
            "hidden_act": ("silu",),
            "num_semantic_quantizers": (1,),
            "rope_scaling": (None,),
            "attention_bias": (False,),
            "rope_theta": (THETA,),
        }
        facts = config.get("decoder_config")
        if not isinstance(facts, Mapping):
            raise ModelError("the codec's config.json has no decoder_config; use a complete checkpoint")
        return cls(read_facts(SpeechCodecConfig, facts, "config.json, decoder_config", fixed, IGNORED))

    def forward(self, codes: Tensor, past: Past | None = None) -> Tensor:
        past = past or Past()
        hidden = self.pre_conv(self.quantizer(codes)[None], past)  # [1, C, T]
        hidden = self.pre_transformer(hidden[0].T, past).T[None]
        for parts in (*self.upsample, self.decoder):
            for part in parts:
                hidden = part(hidden, past)
        past.frames += codes.shape[1]
        return hidden[0, 0].clamp(-1, 1)


class Codebooks(nn.Module):
    """Codes [Q, T] -> what they stand for, added up, [C, T]: the first book says what is said, the others how."""

    def __init__(self, config: SpeechCodecConfig) -> None:
        super().__init__()
        self.rvq_first = Books(config, 1)
        self.rvq_rest = Books(config, config.num_quantizers - 1)

    def forward(self, codes: Tensor) -> Tensor:
        return self.rvq_first(codes[:1]) + self.rvq_rest(codes[1:])


class Books(nn.Module):
    """Some of the codebooks, of half the width, and what makes the whole of it."""

    def __init__(self, config: SpeechCodecConfig, count: int) -> None:
        super().__init__()
        width = config.codebook_dim // 2
        self.layers = nn.ModuleList(Book(config.codebook_size, width) for _ in range(count))
        self.output_proj = nn.Conv1d(width, config.codebook_dim, 1, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        found = torch.stack([book(row) for book, row in zip(self.layers, codes, strict=True)]).sum(0)  # [T, C]
        return self.output_proj(found.T)


class Book(nn.Module):
    """A codebook as it was trained: sums of what fell to a code, and how often that was."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.cluster_usage = nn.Parameter(torch.ones(size))
        self.embedding_sum = nn.Parameter(torch.zeros(size, width))

    def forward(self, codes: Tensor) -> Tensor:
        return self.embedding_sum[codes] / self.cluster_usage[codes].clamp(min=LEAST_USE)[:, None]


class Windowed(nn.Module):
    """A transformer over frames [T, D], each of which sees `sliding_window` of them, itself the last.

    They are as wide as it is, or `other`: then they are made so, and back.
    """

    def __init__(self, config: SpeechCodecConfig, *, other: bool = True) -> None:
        super().__init__()
        self.config = config
        width, inside = config.latent_dim, config.hidden_size
        self.input_proj = nn.Linear(width, inside) if other else nn.Identity()
        self.output_proj = nn.Linear(inside, width) if other else nn.Identity()
        self.layers = nn.ModuleList(WindowedLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        c, hidden = self.config, self.input_proj(x)
        places = torch.arange(past.frames, past.frames + len(x), device=x.device)
        table = rotary_table(places[:, None], (c.head_dim,), THETA).to(hidden.dtype)
        turns = table[:, :1, :, 0], table[:, 1:, :, 1]  # [T, 1, H/2] each
        seen = torch.arange(max(past.frames - c.sliding_window + 1, 0), past.frames + len(x), device=x.device)
        apart = places[:, None] - seen[None, :]
        mask = (apart >= 0) & (apart < c.sliding_window)  # [T, S]
        for layer in self.layers:
            hidden = layer(hidden, turns, mask, past)
        return self.output_proj(self.norm(hidden))


class WindowedLayer(nn.Module):
    """Attention, then the gated MLP, each on the normed hidden states, scaled and added to them."""

    def __init__(self, config: SpeechCodecConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.self_attn = WindowedAttention(config)
        self.self_attn_layer_scale = Scale(width)
        self.post_attention_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.mlp = GatedMLP(width, config.intermediate_size)
        self.mlp_layer_scale = Scale(width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor, past: Past) -> Tensor:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), turns, mask, past))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class Heads(Protocol):
    """What attention needs to know of a configuration."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def sliding_window(self) -> int: ...


class WindowedAttention(nn.Module):
    """Attention to what the mask [T, S] shows of the frames before, and of these."""

    def __init__(self, config: Heads) -> None:
        super().__init__()
        c = config
        self.heads, self.window = (-1, c.head_dim), c.sliding_window
        self.sharing = c.num_attention_heads // c.num_key_value_heads
        own, shared = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, own, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(own, c.hidden_size, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor, past: Past) -> Tensor:
        q, k, v = (proj(x).unflatten(-1, self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))  # [T, N, H]
        both = torch.stack([turn_halves(k, *turns), v]).permute(0, 2, 3, 1)  # [2, N, H, T]
        keys, values = past.join(self, both, self.window - 1).transpose(-1, -2)[:, None]  # [1, N, S, H]
        q = turn_halves(q, *turns).transpose(0, 1)[None]  # [1, N, T, H]
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=self.sharing > 1)
        return self.o_proj(seen[0].transpose(0, 1).flatten(1))


class Scale(nn.Module):
    """A number for every width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class CausalConv(nn.Module):
    """A convolution over what lies behind, zeros before the beginning: [1, C, S] -> [1, C', S]."""

    def __init__(self, width: int, out: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, out, kernel, dilation=dilation, groups=groups)
        self.behind = (kernel - 1) * dilation

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if not self.behind:
            return self.conv(x)
        return self.conv(past.join(self, x, self.behind, empty=x.new_zeros(*x.shape[:2], self.behind)))


class CausalUp(nn.Module):
    """Every place becomes `rate` of them, from it and, of a wider kernel, from the one before.

    Of a `late` one, what is made without one before is left out at the beginning, too.
    """

    def __init__(self, width: int, out: int, kernel: int, rate: int, *, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.conv = nn.ConvTranspose1d(width, out, kernel, stride=rate)
        self.rate, self.behind = rate, kernel // rate - 1

    def forward(self, x: Tensor, past: Past) -> Tensor:
        made = x.shape[-1] * self.rate
        whole = self.conv(past.join(self, x, self.behind) if self.behind else x)
        ended = whole[..., : whole.shape[-1] - self.behind * self.rate]
        if self.late:
            return ended[..., self.behind * self.rate :]
        return ended[..., ended.shape[-1] - made :]


class Mixing(nn.Module):
    """A ConvNeXt block: a convolution per channel, then an MLP, scaled and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = CausalConv(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        mixed = self.norm(self.dwconv(x, past).transpose(1, 2))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(mixed)))).transpose(1, 2)


class Level(nn.Module):
    """More samples of fewer channels, then three residual units."""

    def __init__(self, width: int, out: int, rate: int, *, late: bool = False) -> None:
        super().__init__()
        units = [Unit(out, dilation) for dilation in DILATIONS]
        self.block = nn.ModuleList([Snake(width), CausalUp(width, out, 2 * rate, rate, late=late), *units])

    def forward(self, x: Tensor, past: Past) -> Tensor:
        for part in self.block:
            x = part(x, past)
        return x


class Unit(nn.Module):
    """Two convolutions over what lies behind, added to what was there."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.act1, self.act2 = Snake(width), Snake(width)
        self.conv1 = CausalConv(width, width, KERNEL, dilation)
        self.conv2 = CausalConv(width, width, 1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return x + self.conv2(self.act2(self.conv1(self.act1(x, past), past), past), past)


class Snake(nn.Module):
    """x + sin(a x)^2 / b, where a and b, a number per channel, are given as logarithms (arXiv 2006.08195)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.beta = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        alpha, beta = (log.exp()[:, None] for log in (self.alpha, self.beta))
        return x + (x * alpha).sin().square() / (beta + TINY)


RULES: tuple[Rename | Drop, ...] = (
    Drop(r"^encoder\."),  # what makes codes of a sound
    Rename(r"^decoder\.", ""),
    Drop(r"^quantizer\.rvq_(first|rest)\.input_proj\."),
    Rename(r"^(quantizer\.rvq_(?:first|rest))\.vq\.layers\.(\d+)\._codebook\.", r"\1.layers.\2."),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
)
"""How tensors of the published codec are called here."""
