"""Stock stages for models that draw several things at once, a video and its sound for instance.

Their latents are laid end to end, and denoised as one. Each part is guided by itself, in what latents would be without
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from omnimuse.core.request import Request
from omnimuse.core.spec import Configs
from omnimuse.diffusion.guidance import led
from omnimuse.diffusion.noise import draw
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.derive import Derive
from omnimuse.pipeline.stage import Context, Step
from omnimuse.pipeline.state import State

Sizes = Callable[[Configs, Request], Sequence[tuple[int, ...]]]
"""(configs, request) -> the sizes of the latents of all parts."""

Leading = tuple[Mapping[str, float], float]
"""By which scale a part is led away from every branch, and how much of its spread it keeps (`led`)."""


def parted(latents: Tensor, sizes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Latents of all parts -> those of each, views."""
    parts = latents.split([prod(size) for size in sizes])
    return [part.view(size) for part, size in zip(parts, sizes, strict=True)]


@dataclass(frozen=True)
class DenoiseParts(Denoise):
    """The loop for latents of several parts, of which the first is a video, or like one; its first frame stays as it is
    in the slot `first`, unless that is None.
    """

    sizes: Sizes | None = None
    leading: Callable[[Request], Sequence[Leading]] | None = None

    def combined(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> Tensor:
        assert self.leading
        latents, rules = state["latents"], self.leading(state.request)
        clean = {branch: latents - each.float() * step.sigma for branch, each in predictions.items()}
        parts = {branch: self._parted(ctx, state, each) for branch, each in clean.items()}
        guided = [led({branch: each[i] for branch, each in parts.items()}, *rule) for i, rule in enumerate(rules)]
        moved = (latents - torch.cat([each.flatten() for each in guided])) / step.sigma
        if state["first"] is not None:
            self._parted(ctx, state, moved)[0][:, :1] = 0
        return moved

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        estimate = state.working.get("estimate")
        return None if estimate is None else self.preview(ctx, self._parted(ctx, state, estimate)[0])

    def _parted(self, ctx: Context, state: State, latents: Tensor) -> list[Tensor]:
        assert self.sizes
        return parted(latents, self.sizes(ctx.configs, state.request))


def start_parts(sizes: Sizes) -> Derive:
    """Writes `noise`, float32 and Gaussian, part after part; a first frame that is given stands in its place."""

    def make(ctx: Context, state: State) -> list[Tensor]:
        shapes = ((1, *size) for size in sizes(ctx.configs, state.request))
        drawn = [draw(shape, state.generator, torch.float32, ctx.device) for shape in shapes]
        if (given := state["first"]) is not None:
            drawn[0] = torch.cat([given[None], drawn[0][:, :, 1:]], dim=2)
        return [torch.cat([each.flatten() for each in drawn])]

    return Derive(make, "init latents", ("first",), ("noise",))


def part_latents(sizes: Sizes, *slots: str) -> Derive:
    """Writes the finished latents of each part into its slot."""

    def make(ctx: Context, state: State) -> list[Tensor]:
        return parted(state["latents"], sizes(ctx.configs, state.request))

    return Derive(make, "part", ("latents",), slots)
