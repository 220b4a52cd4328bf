"""The transformer of Wan VACE: Wan's, and a second chain of blocks over what is given, whose hints go into the first.

The arithmetic is that of diffusers' `WanVACETransformer3DModel`, but for the order: there the second chain runs first,
and its hints wait; here each of its blocks runs right behind the one that takes its hint. So hidden states of both
chains travel side by side, [*, 2 D], and whatever runs blocks, skips them or moves them needs to know of one stack.

Letters: those of `models/wan/transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from omnimuse.components.patches import embedded
from omnimuse.core.errors import ModelError
from omnimuse.core.plans import Cutting
from omnimuse.layers.stack import Block, BlockStack, ChainedStack
from omnimuse.layers.steady import Product3d
from omnimuse.models.wan.transformer import WanBlock, WanCond, WanConfig, WanInputs, WanStatic, WanTransformer


@dataclass(frozen=True)
class VaceConfig(WanConfig):
    """The facts in transformer/config.json: behind each of `vace_layers` a block of the second chain gives its hint."""

    vace_layers: tuple[int, ...] = (0, 5, 10, 15, 20, 25, 30, 35)
    vace_in_channels: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.vace_layers
        if not layers or layers[0] != 0 or layers[-1] >= self.num_layers or list(layers) != sorted(set(layers)):
            raise ModelError(
                f"transformer/config.json: vace_layers={layers} with num_layers={self.num_layers}; they begin with 0, "
                "rise, and are fewer than there are blocks"
            )


@dataclass(frozen=True, kw_only=True)
class VaceStatic(WanStatic):
    """What stays the same over all steps: besides Wan's, what is given, embedded, and how much its hints count."""

    control: Tensor  # [S, D]
    scale: Tensor  # [1], float32


@dataclass(frozen=True, kw_only=True)
class VaceCond(WanCond):
    """What every block receives; `scale` of the hints is that of each span."""

    scale: Tensor  # [P, 1]

    def select(self, rows: Sequence[int]) -> VaceCond:
        return replace(cast(VaceCond, super().select(rows)), scale=self.spans.take(self.scale, rows))


class WanVaceTransformer(WanTransformer):
    """Predicts the velocity from video to noise, one tensor [c, f, h, w] per row."""

    config: VaceConfig

    def __init__(self, config: VaceConfig) -> None:
        super().__init__(config)
        dim, patch = config.dim, config.patch_size
        self.control_embedding = Product3d(config.vace_in_channels, dim, patch, stride=patch)
        self.control_in = nn.Linear(dim, dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanVaceTransformer:
        return cls(VaceConfig.from_dict(config))

    def make_blocks(self, config: WanConfig) -> BlockStack:
        assert isinstance(config, VaceConfig)
        return WovenStack(config)

    def plan(self) -> Mapping[str, Cutting]:
        chains = ("blocks.video.*", "blocks.control.*")
        plan = super().plan()
        shared = {name: cutting for name, cutting in plan.items() if not name.startswith("blocks.")}
        each = {name.removeprefix("blocks.*"): cutting for name, cutting in plan.items() if name not in shared}
        return shared | {chain + name: cutting for chain in chains for name, cutting in each.items()}

    def embed_control(self, control: Tensor) -> Tensor:
        """What is given [c, f, h, w] as tokens of the second chain: [S, D]."""
        return self.control_in(embedded(self.control_embedding, control))

    def _embed_patches(self, rows: Sequence[WanInputs]) -> list[Tensor]:
        """[S, 2 D] each: the tokens of the video, then those of what is given."""
        tokens = super()._embed_patches(rows)
        given = [_static(row).control for row in rows]
        return [torch.cat([x, control + x], dim=-1) for x, control in zip(tokens, given, strict=True)]

    def _condition(self, rows: Sequence[WanInputs], time: Tensor) -> VaceCond:
        plain = super()._condition(rows, time)
        scale = torch.cat([_static(row).scale.expand(len(row.t)) for row in rows]).to(self.dtype)
        known = {each.name: getattr(plain, each.name) for each in fields(WanCond)}
        return VaceCond(**known, scale=scale[:, None])


def _static(row: WanInputs) -> VaceStatic:
    assert isinstance(row.static, VaceStatic)
    return row.static


class WovenStack(ChainedStack):
    """The blocks of both chains, in the order they run: those of the second behind the ones that take their hints."""

    def __init__(self, config: VaceConfig) -> None:
        video, control = (range(config.num_layers), config.vace_layers)
        super().__init__(
            {"video": (VideoBlock(config) for _ in video), "control": (ControlBlock(config) for _ in control)}
        )
        self._layers = config.vace_layers

    def blocks(self) -> list[Block[Any]]:
        video, control = (cast("list[Block[Any]]", chain) for chain in self)
        behind = dict(zip(self._layers, control, strict=True))
        return [each for index, block in enumerate(video) for each in (block, behind.get(index)) if each is not None]


class VideoBlock(WanBlock):
    """A block of the first chain; what is given passes by."""

    def forward(self, hidden: Tensor, cond: WanCond) -> Tensor:
        video, control = hidden.chunk(2, dim=-1)
        return torch.cat([super().forward(video, cond), control], dim=-1)

    def probe(self, hidden: Tensor, cond: WanCond) -> Tensor:
        """Zeros for what is given, which has no part in the relative change."""
        video, control = hidden.chunk(2, dim=-1)
        return torch.cat([super().probe(video, cond), torch.zeros_like(control)], dim=-1)


class ControlBlock(WanBlock):
    """A block of the second chain, and its hint for the first."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__(config)
        self.proj_out = nn.Linear(config.dim, config.dim)

    def forward(self, hidden: Tensor, cond: WanCond) -> Tensor:
        assert isinstance(cond, VaceCond)
        video, control = hidden.chunk(2, dim=-1)
        control = super().forward(control, cond)
        return torch.cat([video + cond.spans.gate(self.proj_out(control), cond.scale[:, None]), control], dim=-1)

    def probe(self, hidden: Tensor, cond: WanCond) -> Tensor:
        video, control = hidden.chunk(2, dim=-1)
        return torch.cat([torch.zeros_like(video), super().probe(control, cond)], dim=-1)
