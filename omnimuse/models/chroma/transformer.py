"""The Chroma transformer: FLUX.1's blocks, whose modulations all come from one small network.

The arithmetic is that of diffusers' `ChromaTransformer2DModel` without adapters; the blocks are those of
`components/two_streams.py`, which take their part of what is made for all. The projected text and the rotary tables are
computed once per request, by `prepare`.

Letters: R rows, S tokens, D width, M modulations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.components.two_streams import (
    PATCH,
    Blocks,
    DoubleBlock,
    Entrance,
    SingleBlock,
    TwoStreamInputs,
    TwoStreamNetwork,
    TwoStreamStatic,
    check_axes,
)
from omnimuse.core.plans import Columns, Cutting, Rows
from omnimuse.layers.embedding import sinusoid
from omnimuse.layers.rotary import rotary_table
from omnimuse.loader.facts import read_facts

THETA = 10_000.0


@dataclass(frozen=True)
class ChromaConfig:
    """The facts in the checkpoint's transformer/config.json; defaults are those of the published 8.9B models."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    approximator_num_channels: int = 64
    approximator_hidden_dim: int = 5120
    approximator_layers: int = 5

    def __post_init__(self) -> None:
        check_axes(self.axes_dims_rope, self.attention_head_dim)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ChromaConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        channels = config.get("in_channels", cls.in_channels)
        fixed = {"patch_size": (1,), "out_channels": (None, channels)}
        return read_facts(cls, config, "transformer/config.json", fixed)


class ChromaTransformer(TwoStreamNetwork[TwoStreamStatic]):
    """Predicts the velocity from image to noise, one tensor [c, h, w] per row."""

    def __init__(self, config: ChromaConfig) -> None:
        dim = config.num_attention_heads * config.attention_head_dim
        blocks = Blocks(dim, config.num_attention_heads, config.num_layers, config.num_single_layers)
        super().__init__(blocks, config.in_channels, config.joint_attention_dim)
        self.config = config
        self.modulator = Modulator(config, dim, self._share(dim))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ChromaTransformer:
        return cls(ChromaConfig.from_dict(config))

    def prepare(self, features: Tensor, height: int, width: int) -> TwoStreamStatic:
        """Text features [S, joint_attention_dim] and the latent size -> what all steps share."""
        text = self.text_embedder(features.to(self.text_embedder.weight))  # [S_text, D]
        return TwoStreamStatic(text, self._rope(len(text), height // PATCH, width // PATCH))

    def vector(self, rows: Sequence[TwoStreamInputs[TwoStreamStatic]]) -> Tensor:
        return self.modulator(self.times(rows))

    def plan(self) -> Mapping[str, Cutting]:
        """No block has a layer that modulates it; what makes all modulations is shared out as an MLP is."""
        blocks = {name: cutting for name, cutting in super().plan().items() if not name.endswith(".modulation")}
        layer = "modulator.layers.*"
        return blocks | {f"{layer}.linear_1": Columns(others=1), f"{layer}.linear_2": Rows(others=1)}

    def _share(self, dim: int) -> int:
        """Gives every block and the head their parts of the modulations; how many these are.

        Those of single blocks come first, then those of double blocks for the image, then for the text.
        """
        blocks = self.stack.blocks()
        double = [block for block in blocks if isinstance(block, DoubleBlock)]
        taking: list[tuple[SingleBlock | Entrance, int]] = [
            (each, 3) for each in blocks if isinstance(each, SingleBlock)
        ]
        taking += [(stream, 6) for stream in (*(each.image for each in double), *(each.text for each in double))]
        start = 0
        for taker, count in taking:
            taker.modulation = Taken(dim, range(start, start + count))
            start += count
        self.head.modulation = Taken(dim, (start + 1, start))  # the head takes its scale first
        return start + 2

    def _rope(self, text: int, rows: int, columns: int) -> Tensor:
        """All text tokens stand at the origin; the image spreads over the second and third axis."""
        axes = (torch.arange(length, device=self.text_embedder.weight.device) for length in (1, rows, columns))
        image = torch.cartesian_prod(*axes)
        positions = torch.cat([image.new_zeros(text, 3), image])  # [S_text + S_image, 3]
        return rotary_table(positions, self.config.axes_dims_rope, THETA, exact=True)


class Taken(nn.Module):
    """Some of all modulations, [R, M * D] -> [R, count * D]. Their places are data: blocks are compiled alike."""

    places: Tensor

    def __init__(self, dim: int, places: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("places", torch.tensor(list(places)), persistent=False)

    def forward(self, vector: Tensor) -> Tensor:
        return vector.unflatten(-1, (-1, self.dim)).index_select(1, self.places).flatten(1)


class Modulator(nn.Module):
    """Times [R] -> all M modulations of a step, [R, M * D]: each from the time and from its own number."""

    numbers: Tensor

    def __init__(self, config: ChromaConfig, dim: int, count: int) -> None:
        super().__init__()
        self.waves, hidden = config.approximator_num_channels // 4, config.approximator_hidden_dim
        numbers = sinusoid(torch.arange(count) * 1000, 2 * self.waves)  # [M, 2 * waves]
        still = sinusoid(torch.zeros(1), self.waves).expand(count, -1)  # a guidance scale of 0
        self.register_buffer("numbers", torch.cat([still, numbers], dim=1), persistent=False)
        self.in_linear = nn.Linear(4 * self.waves, hidden)
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(config.approximator_layers))
        self.out_linear = nn.Linear(hidden, dim)

    def forward(self, times: Tensor) -> Tensor:
        time = sinusoid(times, self.waves)[:, None].expand(-1, len(self.numbers), -1)
        numbers = self.numbers.expand(len(times), -1, -1)
        x = self.in_linear(torch.cat([time, numbers], dim=-1).to(self.in_linear.weight.dtype))  # [R, M, hidden]
        for layer in self.layers:
            x = layer(x)
        return self.out_linear(x).flatten(1)


class Layer(nn.Module):
    """One layer of the modulator: what it adds to its input. Its norm's epsilon is that of the dtype."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden)
        self.linear_1 = nn.Linear(hidden, hidden)
        self.activation = nn.SiLU()
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear_2(self.activation(self.linear_1(self.norm(x))))
