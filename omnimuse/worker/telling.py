"""What is told while a request is worked on: how far its loops are, what has grown, and how it looks by now."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import Tensor

from omnimuse.core.output import Chunk, Event, Preview, Progress
from omnimuse.media.image import to_pixels
from omnimuse.pipeline.stage import Context, Loop
from omnimuse.pipeline.state import State
from omnimuse.worker.failures import settle

log = logging.getLogger(__name__)


class Telling:
    """Adds to the `events` of a tick. `lost_previews` counts previews that could not be made."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.events: list[Event] = []
        self.lost_previews = 0
        self._stepped: dict[str, Progress] = {}

    def step(self, loop: Loop, state: State, step: int, steps: int | None) -> None:
        """So many `steps` (None: nobody knows of how many) are done; told by `tell`, as more may be to be told then."""
        self._stepped[state.id] = Progress(state.request.id, state.output, loop.name, step, steps)
        every = state.request.previews
        if every and step % every == 0 and (steps is None or step < steps):
            self.tell([state])
            self._preview(loop, state, step)

    def tell(self, states: Iterable[State]) -> None:
        """What steps have done for these."""
        for state in states:
            if (progress := self._stepped.pop(state.id, None)) is not None:
                self.grown(state)
                self.events.append(progress)

    def grown(self, state: State) -> None:
        """The pieces of the output that were finished just now, once; of a text all in one."""
        if not state.grown:
            return
        pieces, state.grown = state.grown, []
        if len(pieces) > 1 and all(medium == "text" for medium, *_ in pieces):
            _, starts, texts, tokens = zip(*pieces, strict=True)
            pieces = [("text", starts[0], "".join(texts), tuple(chain.from_iterable(tokens)))]
        for medium, start, piece, tokens in pieces:
            self.events.append(Chunk(state.request.id, state.output, medium, start, as_told(piece), tokens))

    def _preview(self, loop: Loop, state: State, step: int) -> None:
        """A preview that cannot be made is no reason to end a request: it is left out, counted, and told once."""
        try:
            picture = loop.peek(self.ctx, state)  # [3, h, w]
            if picture is not None:
                image = to_pixels(picture)  # [h, w, 3]
                self.events.append(Preview(state.request.id, state.output, step, image))
            return
        except Exception as error:  # the worker loop
            caught = error
        failure = settle(caught, "preview")
        if not self.lost_previews:
            log.warning("a preview could not be made and was left out: %s (told once)", failure)
        self.lost_previews += 1


def as_told(piece: Any) -> Any:
    """A piece of a sound as an array, one of a text as it is."""
    return piece.detach().float().cpu().numpy() if isinstance(piece, Tensor) else piece
