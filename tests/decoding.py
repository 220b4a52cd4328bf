"""Loops that decode videos, driven as the runner drives them, over autoencoders that are no checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from omnimuse.core.request import Door
from omnimuse.loader.components import quiet
from omnimuse.offload.residency import Residency
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State
from omnimuse.pipeline.tiles import Tiling
from omnimuse.pipeline.video import DecodeVideo
from tests.checkpoints import parts
from tests.fakes import SPEC, ask, context


def filled(make: Callable[[], Any]) -> Any:
    """What `make` makes, with the same weights every time."""
    with quiet("diffusers"):
        return parts.filled("vae", 0, parts.unfilled(make)).requires_grad_(False)


def random_latents(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def around(vae: Any, tiling: Tiling | None = None) -> Context:
    return replace(context(), components=Residency({"vae": vae}), tiling=tiling)


def fresh(latents: Tensor, output_type: str = "pt") -> State:
    """A state with these latents, which comes to be decoded."""
    request = Door.of(SPEC, {}, "fake").make_request(ask(output_type=output_type), 0.0, 1)
    state = State(request, 0, strict=True)
    state["latents"] = latents
    return state


def stepped(loop: DecodeVideo, ctx: Context, state: State, between: Callable[[State], None] | None = None) -> Tensor:
    """The finished video; `between` is called after every step."""
    with state.opened_for(loop):
        steps = loop.begin(ctx, state)
        for step in steps:
            assert loop.rows(ctx, state, step) == []
            loop.apply(ctx, state, step, {})
            if between is not None:
                between(state)
        loop.finish(ctx, state)
    return state["video"]
