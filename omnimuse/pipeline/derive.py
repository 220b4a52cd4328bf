"""Stock stages that are one function each: what a family makes of the slots of a request, and of what came with it.

A family gives the function, and says what it reads; when equal work is done once, and what a request holds that came
with nothing, is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.core.request import Request
from omnimuse.observe.labels import PICTURE
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State


@dataclass(frozen=True)
class Derive(Stage):
    """Writes the slots `writes`: what `make(ctx, state)` returns, in order. States that are the `same` share that.

    It is `computed` where networks make it.
    """

    make: Callable[[Context, State], Sequence[Any]]
    name: str = ""
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    same: Callable[[Context, State], Hashable] | None = None
    computed: bool = False

    def key(self, ctx: Context, state: State) -> Hashable | None:
        return None if self.same is None else (self, self.same(ctx, state))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            for slot, value in zip(self.writes, self.make(ctx, state), strict=True):
                state[slot] = value


@dataclass(frozen=True)
class EncodeGiven(Stage):
    """Writes `slot`: what `encode(ctx, request)` makes of the pictures, videos and region that came with a prompt, of
    which `reads` are those it asks for; None where none came, unless it encodes `always`.

    It may ask for the size, the number of frames and the family's own parameters besides. Once for all outputs.
    """

    slot: str
    encode: Callable[[Context, Request], Any]
    name: str = "encode pictures"
    reads: tuple[str, ...] = ("images",)
    uses: tuple[str, ...] = ("vae",)
    always: bool = False

    @property
    def label(self) -> str:
        return PICTURE

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.slot,)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params, region = state.request.params, state["region"] if "region" in self.reads else None
        choices = params.width, params.height, params.num_frames, state.request.extra
        given = tuple(tuple(each.digest for each in state[name]) for name in self.reads if name != "region")
        return (self, *choices, *given, None if region is None else region.key)

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            wanted = self.always or any(state[name] for name in self.reads)
            state[self.slot] = self.encode(ctx, state.request) if wanted else None
