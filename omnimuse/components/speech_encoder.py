"""The encoder of the 12 Hz speech codec of Qwen3-TTS: a waveform becomes codes of frames.

It is Mimi's (arXiv 2410.00037), of whose books only the first are kept. The arithmetic, and the names of the weights,
are those of transformers' `MimiModel` as the published code runs it: every place sees all that lie before it.

Letters: n samples, T frames, S places, D width, C channels, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.speech_codec import THETA, Book, Past, Scale, WindowedAttention
from omnimuse.core.errors import ModelError
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.facts import known_of, part, read_facts
from omnimuse.loader.rules import Drop, Rename

WHERE = "encoder_config"
KERNEL, SHORT = 7, 3
FIXED: Mapping[str, tuple[Any, ...]] = {
    "audio_channels": (1,),
    "attention_bias": (False,),
    "compress": (2,),
    "hidden_act": ("gelu",),
    "kernel_size": (KERNEL,),
    "last_kernel_size": (SHORT,),
    "num_residual_layers": (1,),
    "num_semantic_quantizers": (1,),
    "pad_mode": ("constant",),
    "residual_kernel_size": (SHORT,),
    "rope_theta": (THETA,),
    "use_causal_conv": (True,),
    "use_conv_shortcut": (False,),
}


@dataclass(frozen=True)
class SpeechEncoderConfig:
    """The facts in the part `encoder_config` of the codec's config.json; defaults are those of the published one."""

    codebook_size: int = 2048
    head_dim: int = 64
    hidden_size: int = 512
    intermediate_size: int = 2048
    norm_eps: float = 1e-5
    num_attention_heads: int = 8
    num_filters: int = 64
    num_hidden_layers: int = 8
    num_key_value_heads: int = 8
    num_quantizers: int = 32
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    vector_quantization_hidden_dimension: int = 256
    sampling_rate: int = 24_000

    @property
    def sliding_window(self) -> int:
        """Places that a place sees: what the configuration says of it is not honoured by the published code."""
        return 2**31


class SpeechEncoder(nn.Module):
    """A waveform [n] in [-1, 1] to codes of its frames, int64 [T, Q]; a frame is `hop` samples, the last one begun."""

    def __init__(self, config: SpeechEncoderConfig, hop: int, kept: int) -> None:
        super().__init__()
        self.config, self.hop, self.kept = config, hop, kept
        stride, left = divmod(hop, prod(config.upsampling_ratios))
        if left or stride < 2 or kept > config.num_quantizers:
            raise ModelError(f"the codec's config.json: {WHERE} makes no frames of {hop} samples with {kept} codes")
        self.encoder = Narrowing(config)
        self.encoder_transformer = Looking(config)
        self.downsample = Fewer(config.hidden_size, config.hidden_size, 2 * stride, stride, held=True)
        self.semantic = Quantizer(config, 1)
        self.acoustic = Quantizer(config, config.num_quantizers - 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SpeechEncoder:
        """The encoder that the codec's config.json, whole, describes; ModelError for one that it cannot be."""
        given = known_of(part(config, WHERE), SpeechEncoderConfig, FIXED)
        facts = read_facts(SpeechEncoderConfig, given, f"config.json, {WHERE}", FIXED)
        return cls(facts, config.get("encode_downsample_rate", 1920), config.get("encoder_valid_num_quantizers", 16))

    def forward(self, wave: Tensor) -> Tensor:
        hidden = self.encoder_transformer(self.encoder(wave[None, None])[0].T)  # [S, D]
        frames = self.downsample(hidden.T[None])[0].T  # [T, D]
        return torch.cat([self.semantic(frames, 1), self.acoustic(frames, self.kept - 1)], dim=1)


class Narrowing(nn.Module):
    """Samples [1, 1, n] to fewer places of more channels, [1, D, S]."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        width = config.num_filters
        layers: list[nn.Module] = [Fewer(1, width, KERNEL)]
        for ratio in reversed(config.upsampling_ratios):
            layers += [Residual(width), nn.ELU(), Fewer(width, 2 * width, 2 * ratio, ratio)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.ELU(), Fewer(width, config.hidden_size, SHORT))

    def forward(self, wave: Tensor) -> Tensor:
        return self.layers(wave)


class Fewer(nn.Module):
    """A convolution over what lies behind, of which every `stride`-th place is kept: [1, C, S] -> [1, C', S / stride].

    Before the beginning and behind the end are zeros or, of one that is `held`, the first and the last place.
    """

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, *, held: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, out, kernel, stride, bias=not held)
        self.behind, self.stride = kernel - stride, stride
        self.mode = "replicate" if held else "constant"

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (self.behind, -x.shape[-1] % self.stride), mode=self.mode))


class Residual(nn.Module):
    """Two convolutions through half the channels, added to what was there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ELU(), Fewer(width, width // 2, SHORT), nn.ELU(), Fewer(width // 2, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Looking(nn.Module):
    """A transformer over places [S, D], each of which sees those before it."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(len(x), device=x.device)
        table = rotary_table(places[:, None], (self.head_dim,), THETA).to(x.dtype)
        turns, mask = (table[:, :1, :, 0], table[:, 1:, :, 1]), places[:, None] >= places[None]
        for layer in self.layers:
            x = layer(x, turns, mask)
        return x


class Layer(nn.Module):
    """Attention, then the MLP, each on the normed hidden states [S, D], scaled and added to them."""

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.input_layernorm = nn.LayerNorm(width, config.norm_eps)
        self.self_attn = WindowedAttention(config)
        self.self_attn_layer_scale = Scale(width)
        self.post_attention_layernorm = nn.LayerNorm(width, config.norm_eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(width, config.intermediate_size, bias=False))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(config.intermediate_size, width, bias=False))
        self.mlp_layer_scale = Scale(width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), turns, mask, Past()))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class Quantizer(nn.Module):
    """Some of the codebooks: each says what those before it have left of a frame."""

    def __init__(self, config: SpeechEncoderConfig, count: int) -> None:
        super().__init__()
        self.size, width = config.codebook_size, config.vector_quantization_hidden_dimension
        self.input_proj = nn.Conv1d(config.hidden_size, width, 1, bias=False)
        self.layers = nn.ModuleList(Book(config.codebook_size, width) for _ in range(count))

    def forward(self, frames: Tensor, many: int) -> Tensor:
        """Codes [T, `many`] of frames [T, D]."""
        left, found = self.input_proj(frames.T).T, list[Tensor]()
        for book in self.layers[:many]:
            known = book(torch.arange(self.size, device=left.device))  # [V, D]
            found.append(torch.cdist(left[None], known[None])[0].argmin(-1))
            left = left - known[found[-1]]
        return torch.stack(found, dim=1) if found else left.new_zeros(len(left), 0, dtype=torch.int64)


RULES: tuple[Rename | Drop, ...] = (
    Drop(r"^(?!encoder\.)"),
    Rename(r"^encoder\.", ""),
    Drop(r"\.codebook\.initialized$"),
    Drop(r"_residual_vector_quantizer\.output_proj\."),
    Rename(r"^quantizer\.(semantic|acoustic)_residual_vector_quantizer\.", r"\1."),
    Rename(r"\.codebook\.embed_sum$", ".embedding_sum"),
    Rename(r"\.codebook\.cluster_usage$", ".cluster_usage"),
)
"""How tensors of the published codec are called here."""
