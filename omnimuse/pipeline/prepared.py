"""What most networks are told of a request: for families to name as the `conditions` of their `Denoise`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from omnimuse.pipeline.latents import cells
from omnimuse.pipeline.stage import Context
from omnimuse.pipeline.state import State


class Prepares(Protocol):
    """A network that makes what all steps share of a text, the rows and columns of latents, and perhaps more."""

    @property
    def prepare(self) -> Callable[..., Any]: ...


def prepared(kind: type[Prepares], *given: str) -> Callable[[Context, State, str, str], Any]:
    """Conditions of a network of that `kind`: what its `prepare` makes of the text features of a branch, the latents'
    size, and the slots `given`, which `Denoise` must be told of, too.
    """

    def conditions(ctx: Context, state: State, network: str, branch: str) -> Any:
        transformer = ctx.network(network)
        assert isinstance(transformer, kind)
        more = (state[slot] for slot in given)
        return transformer.prepare(state[f"{branch}_embeds"], *cells(ctx.configs, state.request), *more)

    return conditions
