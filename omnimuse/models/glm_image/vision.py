"""What GLM-Image's language model makes of a picture that is shown: a vision tower, then the nearest code per patch.

The arithmetic is that of transformers' `GlmImageVisionModel` and the encoding half of its `GlmImageVQVAE`. Pictures
are looked at one by one.

Letters: S patches, D width, N heads, H head dim, E width of a code; h w rows and columns of patches; p side of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.components.seeing import SeeingBlock
from omnimuse.loader.facts import read_facts

WHERE = "vision_language_encoder/config.json"
IGNORED = ("initializer_range", "attention_dropout", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True)
class VisionConfig:
    """The facts in the part `vision_config` of the checkpoint's config.json; defaults are those published."""

    depth: int = 40
    hidden_size: int = 1536
    intermediate_size: int = 6144
    num_heads: int = 16
    in_channels: int = 3
    image_size: int = 2048
    patch_size: int = 16
    attention_bias: bool = True
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Places a side that have a learned position."""
        return self.image_size // self.patch_size


class GlmImageVision(nn.Module):
    """Patches, [h * w, 3 * p * p] row by row, -> what is seen at each, [h * w, D]; each sees all others."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side, width, side = config.side, config.hidden_size, config.patch_size
        self.position_embedding = nn.Embedding(self.side**2, width)
        self.patch_embed = nn.Conv2d(config.in_channels, width, side, side)
        self.blocks = nn.ModuleList(
            SeeingBlock(
                width, config.num_heads, config.intermediate_size, config.layer_norm_eps, bias=config.attention_bias
            )
            for _ in range(config.depth)
        )

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GlmImageVision:
        """The tower that this part of config.json describes."""
        fixed = {"model_type": ("glm_image_vision",), "hidden_act": ("gelu",), "spatial_merge_size": (1,)}
        return cls(read_facts(VisionConfig, config, WHERE, fixed, IGNORED))

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        shape = (-1, self.patch_embed.in_channels, *self.patch_embed.kernel_size)
        hidden = self.patch_embed(patches.to(self.patch_embed.weight.dtype).view(shape)).flatten(1)  # [S, D]
        hidden = hidden + self._positions(rows, columns)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The learned positions, stretched over so many rows and columns: [S, D]."""
        weight = self.position_embedding.weight
        table = weight.view(1, self.side, self.side, -1).permute(0, 3, 1, 2).float()
        down, across = (
            (torch.arange(length, device=weight.device) + 0.5) / length * 2 - 1 for length in (rows, columns)
        )
        grid = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], dim=-1)[None]  # [1, h, w, 2]
        found = F.grid_sample(table, grid, mode="bilinear", align_corners=False, padding_mode="border")
        return found[0].flatten(1).T.to(weight.dtype)


@dataclass(frozen=True)
class CodebookConfig:
    """The facts in the part `vq_config` of the checkpoint's config.json; defaults are those published."""

    embed_dim: int = 2048
    num_embeddings: int = 16384
    latent_channels: int = 1536


class GlmImageCodebook(nn.Module):
    """What is seen at patches, [S, D], -> the number of the code that points most nearly the same way, int64 [S]."""

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> GlmImageCodebook:
        """The codebook that this part of config.json describes."""
        fixed = {"model_type": ("glm_image_vqmodel",), "in_channels": (3,)}
        return cls(read_facts(CodebookConfig, config, WHERE, fixed, IGNORED))

    def forward(self, seen: Tensor) -> Tensor:
        found = F.normalize(self.quant_conv(seen[:, :, None, None]).flatten(1), dim=-1)  # [S, E]
        codes = F.normalize(self.embedding.weight, dim=-1)
        squares = found.square().sum(1, keepdim=True) + codes.square().sum(1)
        return (squares - 2 * found @ codes.T).argmin(dim=1)
