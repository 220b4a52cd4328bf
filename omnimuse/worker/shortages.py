"""A stage for which memory runs out: it is tried again with less, on all ranks alike.

Weights that wait for their turn leave the device, remembered outputs are forgotten, and what is decoded is decoded in
tiles, smaller ones each time. The runner runs stages, and steps of loops that work on tiles, by way of it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial

from omnimuse.parallel.mesh import ALL
from omnimuse.parallel.shortage import ElsewhereError, is_short
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context, Loop, Stage
from omnimuse.pipeline.state import State
from omnimuse.worker.failures import free_memory, settle

log = logging.getLogger(__name__)

Check = Callable[[], None]
"""What work calls when it is done, before anything comes of it: it raises where memory ran out on another rank."""


class Shortages:
    """Of one pipeline. `retried` counts, by name, stages that ran out of memory and then did with less."""

    def __init__(self, pipeline: Pipeline, forget: Callable[[], None]) -> None:
        self._pipeline, self._forget = pipeline, forget
        self.retried: Counter[str] = Counter()

    def run(self, stage: Stage, state: State, work: Callable[[Context, Check], None]) -> None:
        """Do the `work` of a one-shot stage with the context that it is given, as often as it pays, and move on."""
        begun = ctx = self._pipeline.ctx.drawing(state.request)
        drawn = state.generator.clone_state()
        while lean := self._short(stage, ctx, partial(work, ctx), first=ctx is begun):
            state.generator.set_state(drawn.get_state())
            ctx = lean
        self._pipeline.advance(state)
        if ctx is not begun:
            self._did_with_less(stage, state)

    def began_anew(self, loop: Loop, state: State, lean: dict[str, Context], step: Callable[[Check], None]) -> bool:
        """Do a `step` of a loop that works on tiles; whether memory ran out, and the loop has begun anew instead.
        `lean` has what it works with then, by state.
        """
        ctx = lean.get(state.id) or self._pipeline.ctx.drawing(state.request)
        if (less := self._short(loop, ctx, step, first=state.id not in lean)) is not None:
            state.working = {}
            self._pipeline.begin(loop, state, less)
            lean[state.id] = less
            return True
        if not state.plan and state.id in lean:
            del lean[state.id]
            self._did_with_less(loop, state)
        return False

    def _short(self, stage: Stage, ctx: Context, work: Callable[[Check], None], *, first: bool) -> Context | None:
        """Do `work` of `stage`, which `ctx` is for, `first` or with less; where memory ran out on any rank, what to try
        it with once more, after what nobody needs was given back. None where it is done.
        """
        axis = ctx.mesh.axis(ALL)

        def check() -> None:
            if is_short(axis, None):
                raise ElsewhereError

        try:
            work(check)
            return None
        except (MemoryError, RuntimeError) as error:
            short = isinstance(error, ElsewhereError) or is_short(axis, error)
            lean = _with_less(stage, ctx, first=first)
            if lean is None or not short:
                raise
            caught = error
        log.warning("%s; it tries once more with less memory", settle(caught, stage.name))
        del caught
        ctx.components.leave()
        self._forget()
        free_memory(ctx.device)
        return lean

    def _did_with_less(self, stage: Stage, state: State) -> None:
        self.retried[stage.name] += 1
        state.said.append(f"memory ran out in {stage.name}, which was done again with less: pictures in tiles")


def _with_less(stage: Stage, ctx: Context, *, first: bool) -> Context | None:
    """What to try `stage` with where memory ran out with `ctx`: once with less, and as often as tiles can be smaller.
    None where that was all.
    """
    lean = ctx.lean
    return lean if first or (stage.tiles and lean.tiling != ctx.tiling) else None
