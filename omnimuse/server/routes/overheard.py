"""What is said in a session of `/v1/realtime`, written down beside the answers where the session is set to that.

The model that is served is asked for the text of the sound, in a request of its own: it is what that model hears, and
the answer itself does not read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from omnimuse.core.errors import OmnimuseError, RequestCancelled
from omnimuse.deploy.wire import Finished
from omnimuse.server.errors import ApiError, body, to_api_error
from omnimuse.server.http.live import Event, Live
from omnimuse.server.orders.order import Order
from omnimuse.server.routes.hearing import order_of, whole, written
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.session import Item

_EVENT = "conversation.item.input_audio_transcription"


class Scribe:
    """Writes down what was said, one item after the other; `tell` sends an event of a type."""

    def __init__(self, service: Service, live: Live, tell: Callable[[str, Event], Awaitable[None]]) -> None:
        self._service, self._live, self._tell = service, live, tell
        self._queue = asyncio.Queue[tuple[Item, Mapping[str, Any]]]()
        self._count = self._waiting = 0

    @property
    def busy(self) -> bool:
        """Whether something is still to be written down."""
        return self._waiting > 0

    def check(self, how: Mapping[str, Any]) -> None:
        """ApiError 400 for fields of a transcription that cannot be honoured."""
        read(how, "hearing", self._service.door)

    def note(self, item: Item, how: Mapping[str, Any]) -> None:
        """Write down the sound of an item, as these fields of a transcription say."""
        self._waiting += 1
        self._queue.put_nowait((item, how))

    async def run(self) -> None:
        """Until it is stopped; what cannot be written down is told, and the next may be."""
        while True:
            item, how = await self._queue.get()
            where = {"item_id": item.id, "content_index": 0}
            try:
                await self._write(item, self._order(item, how), where)
            except RequestCancelled:  # nobody is left to tell
                raise
            except (ApiError, OmnimuseError) as error:
                await self._tell(f"{_EVENT}.failed", {**where, "error": body(to_api_error(error))["error"]})
            self._waiting -= 1

    def _order(self, item: Item, how: Mapping[str, Any]) -> Order:
        self._live.ask()
        self._count += 1
        order = order_of(self._service, read(how, "hearing", self._service.door), self._live.socket, item.sounds)
        return replace(order, request=replace(order.request, chunks=True), id=f"{order.id}-heard-{self._count}")

    async def _write(self, item: Item, order: Order, where: Event) -> None:
        async with aclosing(written(self._service, order)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Finished):
                    heard = whole(piece)
                    item.content[0]["transcript"] = heard.text
                    told = {"transcript": heard.text, "usage": heard.usage.model_dump()}
                    await self._tell(f"{_EVENT}.completed", {**where, **told})
                elif piece:
                    await self._tell(f"{_EVENT}.delta", {**where, "delta": piece})
