"""Towers that listen: the spectrum of a sound becomes what stands for it among the tokens of a thinker.

Sounds are heard one by one: convolutions see chunks of them apart, and in the layers behind those all that is in a
window sees all. The names of the weights are those that transformers has for the audio encoders of omni models.

Letters: M bands of mel, n frames of the spectrum, F of a chunk, S tokens, D width, N heads, H head dim, E width of the
thinker.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.answering_facts import HEARING
from omnimuse.layers.embedding import waves
from omnimuse.loader.facts import facts_inside

FIXED = {"activation_function": ("gelu",), "scale_embedding": (False,)}


@dataclass(frozen=True)
class HearingConfig:
    """The facts in that part of config.json; defaults are those of the published code."""

    num_mel_bins: int = 128
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    d_model: int = 1280
    n_window: int = 50
    output_dim: int = 3584

    @property
    def chunk(self) -> int:
        """Frames of a chunk."""
        return 2 * self.n_window

    @property
    def window(self) -> int:
        """Tokens of a window."""
        return self.n_window


class HearingTower(nn.Module):
    """The spectrum of a sound, [M, n], -> what stands for it, [S, E]."""

    facts: ClassVar[type[HearingConfig]] = HearingConfig

    def __init__(self, config: HearingConfig, *, key_bias: bool) -> None:
        super().__init__()
        self.config, c = config, config
        sizes = c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim
        self.layers = nn.ModuleList(HearingLayer(*sizes, key_bias=key_bias) for _ in range(c.encoder_layers))
        self.ln_post = nn.LayerNorm(c.d_model)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The tower that the checkpoint's config.json, whole, describes; ModelError for one that it cannot be."""
        return cls(facts_inside(cls.facts, config, HEARING, FIXED))  # type: ignore[call-arg]

    @abstractmethod
    def entered(self, chunks: tuple[Tensor, ...]) -> Iterable[Tensor]:
        """What convolutions make of chunks [M, frames], the last of which may be shorter: [*, D] each."""

    @abstractmethod
    def said(self, hidden: Tensor) -> Tensor:
        """What stands for the sound, [S, E], of the hidden states behind the layers, [*, D]."""

    def told(self, x: Tensor) -> Tensor:
        """Hidden states of a chunk, or several, [*, F, D], that are told in which place they are."""
        frames = torch.arange(x.shape[-2], device=x.device)
        return x + waves(frames, x.shape[-1]).to(x.dtype)

    def forward(self, spectrum: Tensor) -> Tensor:
        chunks = spectrum.to(self.ln_post.weight.dtype).split(self.config.chunk, dim=1)
        hidden = torch.cat(list(self.entered(chunks)))
        for layer in self.layers:
            hidden = layer(hidden, self.config.window)
        return self.said(hidden)


class HearingLayer(nn.Module):
    """Attention within windows, then an MLP, each on the normed hidden states and added to them."""

    def __init__(self, width: int, heads: int, hidden: int, *, key_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))
        self.k_proj = nn.Linear(width, width, bias=key_bias)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, hidden: Tensor, window: int) -> Tensor:
        normed = self.self_attn_layer_norm(hidden)
        parts = (proj(normed).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        windows = zip(*(part.transpose(0, 1).split(window, dim=1) for part in parts), strict=True)  # [N, S, H] each
        seen = torch.cat([F.scaled_dot_product_attention(q[None], k[None], v[None])[0] for q, k, v in windows], dim=1)
        hidden = hidden + self.out_proj(seen.transpose(0, 1).flatten(1))
        return hidden + self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden))))
