"""One response of a conversation at `/v1/realtime`, while it is made. Part of `realtime.py`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.calls import Call
from omnimuse.core.errors import OmnimuseError, RequestCancelled
from omnimuse.deploy.wire import Finished, Spelt
from omnimuse.server.errors import ApiError, body, to_api_error
from omnimuse.server.http.live import Event
from omnimuse.server.orders.order import Order
from omnimuse.server.routes.calling import Calling
from omnimuse.server.routes.talk import Told, usage_of
from omnimuse.server.translate.answers import told
from omnimuse.server.translate.session import Item, Settings


@dataclass
class Turn:
    """A response while it is made: what was told of it so far, `text` of its words, and the items of its calls."""

    order: Order
    settings: Settings
    metadata: Any
    id: str = field(default_factory=lambda: named("resp"))
    item: Item = field(default_factory=lambda: Item(named("item"), "assistant", status="in_progress"))
    told: Told = field(default_factory=Told)
    calling: Calling = field(init=False)
    text: str = ""
    calls: list[Item] = field(default_factory=list)
    whole: Finished | None = None
    stopped: str = ""  # by whom, in OpenAI's words
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.calling = Calling(self.order)

    def new(self, piece: Spelt) -> str:
        """What is to be told of words, now that `piece` has come."""
        return self._said(self.calling.new(0, self.told.new(piece)))

    def rest(self, whole: str) -> str:
        """What was not told of the words of the `whole` answer."""
        return self._said([*self.calling.new(0, self.told.rest(0, whole)), *self.calling.end(0)])

    def called(self, items: list[Item]) -> Iterator[tuple[str, Event]]:
        """Puts the calls behind the other `items`, each as one of its own; the events that tell them."""
        for number, call in enumerate(self.calling.calls(0), 1):
            item, before = Item(named("item"), "assistant", call=call), items[-1].id
            self.calls.append(item)
            items.append(item)
            begun = {**item.told(), "arguments": "", "status": "in_progress"}
            put = {"response_id": self.id, "output_index": number}
            place = {**put, "item_id": item.id, "call_id": call.id}
            whole = {"name": call.name, "arguments": call.arguments}
            yield "response.output_item.added", {**put, "item": begun}
            yield "conversation.item.added", {"item": begun, "previous_item_id": before}
            yield "response.function_call_arguments.delta", {**place, "delta": call.arguments}
            yield "response.function_call_arguments.done", {**place, **whole}
            yield "response.output_item.done", {**put, "item": item.told()}
            yield "conversation.item.done", {"item": item.told()}

    def _said(self, pieces: Sequence[str | Call]) -> str:
        words = "".join(piece for piece in pieces if isinstance(piece, str))
        self.text += words
        return words

    @property
    def place(self) -> Event:
        """Where in the response its one part is."""
        return {"response_id": self.id, "item_id": self.item.id, "output_index": 0, "content_index": 0}

    @property
    def part(self) -> Event:
        """The one part, without its sound."""
        if self.settings.aloud:
            return {"type": "audio", "transcript": self.text}
        return {"type": "text", "text": self.text}

    def response(self, status: str, details: Event | None = None) -> Event:
        """The response as clients read it."""
        made = self.whole
        known = [*self.order.wanted.warnings, *(() if made is None else made.remarks.warnings), *self.calling.warnings]
        usage = None if made is None else usage_of(made)
        counts = usage and {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": [] if status == "in_progress" else [item.told() for item in (self.item, *self.calls)],
            "output_modalities": self.settings.media,
            "max_output_tokens": "inf" if self.settings.most is None else self.settings.most,
            "metadata": self.metadata,
            "usage": counts,
            "warnings": told(known),
        }


def how(turn: Turn, making: asyncio.Task[None]) -> tuple[str, Event]:
    """How a response ended; raises what is no matter of the response alone."""
    if making.cancelled():
        return "cancelled", {"type": "cancelled", "reason": turn.stopped}
    error = making.exception()
    if isinstance(error, RequestCancelled) or (error is not None and not isinstance(error, (ApiError, OmnimuseError))):
        raise error
    if error is not None:
        told = body(to_api_error(error))["error"]
        return "failed", {"type": "failed", "error": {name: told[name] for name in ("type", "code", "message")}}
    if turn.whole is None or turn.whole.texts[0].reason == "length":
        return "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}
    return "completed", {"type": "completed"}


def named(kind: str) -> str:
    """A name that nothing else has."""
    return f"{kind}_{secrets.token_hex(12)}"
