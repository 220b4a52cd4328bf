"""What BAGEL makes of pictures: a vision tower for what they show, an autoencoder for how they look.

The arithmetic is that of the published code (`siglip_navit.py`, `autoencoder.py`). Pictures are looked at one by one.

Letters: S patches, D width of the language model; p side of a patch; C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.autoencoder_kl import AutoencoderConfig, AutoencoderKL, CellAttention
from omnimuse.components.seeing import SeeingBlock, here
from omnimuse.loader.facts import read_facts

IGNORED = ("model_type", "architectures", "torch_dtype", "transformers_version", "attention_dropout", "image_size")


@dataclass(frozen=True)
class SeeingConfig:
    """The facts in the checkpoint's vit_config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6


class BagelVision(nn.Module):
    """Patches -> what stands for them among tokens. The last layer that the configuration counts is left out."""

    def __init__(self, config: SeeingConfig, side: int, dim: int) -> None:
        super().__init__()
        width, self.side = config.hidden_size, side
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, width)
        self.position_embedding = nn.Parameter(torch.empty(side**2, width))
        sizes = width, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps
        layers = range(config.num_hidden_layers - 1)
        self.blocks = nn.ModuleList(SeeingBlock(*sizes, approximate="tanh") for _ in layers)
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.connector = nn.Sequential(nn.Linear(width, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.places = nn.Parameter(torch.empty(side**2, dim))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BagelVision:
        """The tower that these files describe."""
        fixed = {"hidden_act": ("gelu_pytorch_tanh",)}
        found = read_facts(SeeingConfig, config["vit_config"], "vit_config.json", fixed, IGNORED)
        return cls(found, int(config.get("vit_max_num_patch_per_side") or 70), config["llm_config"]["hidden_size"])

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Patches, row by row, of numbers by row, column and channel, [S, p * p * 3] -> [S, D]."""
        hidden = self.patch_embedding(patches.to(self.places.dtype)) + here(self.position_embedding, rows, columns)
        for block in self.blocks:
            hidden = block(hidden)
        return self.connector(self.post_layernorm(hidden)) + here(self.places, rows, columns)


class BagelAutoencoder(AutoencoderKL):
    """The usual one, with weights of its attention that are published as those of convolutions."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        for half in (self.encoder, self.decoder):
            for site in half.mid_block.attentions:
                assert isinstance(site, CellAttention)
                width = site.group_norm.num_channels
                for name in ("to_q", "to_k", "to_v"):
                    site.add_module(name, Pointwise(width))
                site.to_out[0] = Pointwise(width)


class Pointwise(nn.Module):
    """A linear layer over [*, C] whose weight is that of a convolution, [C, C, 1, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 1, 1))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, :, 0, 0], self.bias)
