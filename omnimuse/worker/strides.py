"""Several tokens in a tick: what is decided for one is decided for some, where all who advance write nothing else; and
of those that come in one stride nobody is asked between them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.state import State

Able = Sequence[tuple[State, Loop]]
"""Who advances, and in which loop."""


def shared_out(pipeline: Pipeline, states: Sequence[State], steps: int) -> int:
    """Of so many `steps` of a tick those of each track: all of them, but one where several tracks of one of `states`
    have something to do. What makes sound of tokens takes one step a tick, and would come late behind many tokens.
    """
    if steps > 1 and len(pipeline.tracks) > 1:
        for state in states:
            if sum(pipeline.ready(state) for _ in pipeline.turns(state)) > 1:
                return 1
    return steps


def strides(pipeline: Pipeline, able: Able, steps: int, here: Container[str]) -> Iterator[int]:
    """How many steps all who are `able` take next, in `State.stride`, too: one, or up to so many `steps` in all while
    they write. `here` are the states that have not ended.
    """
    write = steps > 1 and _write(pipeline, able, here)
    while able and steps > 0:
        stride = min(loop.ahead(pipeline.ctx, state, steps) for state, loop in able) if write else 1
        for state, _ in able:
            state.stride = stride
        yield stride
        steps -= stride
        if not (write := steps > 0 and _write(pipeline, able, here)):
            break
    for state, _ in able:
        state.stride = 1


def _write(pipeline: Pipeline, able: Able, here: Container[str]) -> bool:
    """Whether all of them are in the midst of their loops, and the next step of each is one more token."""
    return all(
        loop.grows
        and bool(state.plan)
        and state.id in here
        and pipeline.ready(state)
        and loop.cost(pipeline.ctx, state) == 1
        for state, loop in able
    )
