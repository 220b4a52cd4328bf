"""A picture as tokens: a tower that looks at patches, with learned positions, the nearest code for each, and a language
model that reads and writes these.

Letters: S patches, D width, E width of a code; h w rows and columns of patches; p side of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnimuse.ar.kv import Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.components.decoder import DecoderLayer
from omnimuse.components.qwen3_facts import Qwen3Config
from omnimuse.components.seeing import SeeingBlock
from omnimuse.components.sights import PlacedDecoder


@dataclass(frozen=True)
class TowerConfig:
    """Its layers; defaults are those of the published one."""

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


class StretchedTower(nn.Module):
    """Patches, [h * w, 3 * p * p] row by row, -> what is seen at each, [h * w, D]; each sees all others."""

    def __init__(self, config: TowerConfig) -> None:
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
    """Its sizes; defaults are those of the published one."""

    embed_dim: int = 2048
    num_embeddings: int = 16384
    latent_channels: int = 1536


class Codebook(nn.Module):
    """What is seen at patches, [S, D], -> the number of the code that points most nearly the same way, int64 [S]."""

    def __init__(self, config: CodebookConfig) -> None:
        super().__init__()
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)

    def forward(self, seen: Tensor) -> Tensor:
        found = F.normalize(self.quant_conv(seen[:, :, None, None]).flatten(1), dim=-1)  # [S, E]
        codes = F.normalize(self.embedding.weight, dim=-1)
        squares = found.square().sum(1, keepdim=True) + codes.square().sum(1)
        return (squares - 2 * found @ codes.T).argmin(dim=1)


class PictureWriter(PlacedDecoder):
    """A language model that reads codes of pictures among its tokens, and writes some: tokens, their places and what
    came before them -> logits of the next of so many `codes`.
    """

    def __init__(
        self,
        config: Qwen3Config,
        make: Callable[[int], DecoderLayer],
        axes: Sequence[int],
        codes: int,
        eyes: tuple[StretchedTower, Codebook],
    ) -> None:
        super().__init__(config, make, axes)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, codes, bias=False)
        self.vision, self.codebook = eyes

    def see(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """The codes of a picture, int64 [rows * columns], from its patches, row by row, [rows * columns, *]."""
        return self.codebook(self.vision(patches, rows, columns))

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return self.embed_tokens(given)

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return self.head(last)
