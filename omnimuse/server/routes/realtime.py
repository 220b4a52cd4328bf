"""/v1/realtime, a WebSocket for models that write: a conversation in events, as OpenAI has it.

A client makes items (texts, pictures, and sounds by way of the input buffer) and asks for responses, of which one is
made at a time: text as it is written or, where the model speaks, sound and its transcript. It says itself where its
turn ends, or leaves that to the server (`turn_detection`), which then answers by itself. Nothing outlives the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.routing import BaseRoute
from starlette.websockets import WebSocket

from omnimuse.core.errors import OmnimuseError
from omnimuse.deploy.wire import Finished, Grown, Spelt
from omnimuse.media.streamed import Tempo
from omnimuse.media.voice import WINDOW, Ear
from omnimuse.server.errors import ApiError, body, refusal
from omnimuse.server.http.live import Event, Live, live_routes
from omnimuse.server.http.uploads import MOST_SAMPLES
from omnimuse.server.http.watch import stop
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import Order, check_model, draw, may_read, place_order
from omnimuse.server.routes.aloud import Sounding, aloud
from omnimuse.server.routes.overheard import Scribe
from omnimuse.server.routes.pictured import data_url
from omnimuse.server.routes.talk import TASK, open_files
from omnimuse.server.routes.turn import Turn, how, named
from omnimuse.server.service import Service
from omnimuse.server.translate import session
from omnimuse.server.translate.aliases import ANY_MODEL, read
from omnimuse.server.translate.session import Item, Settings
from omnimuse.server.translate.session_tools import joined
from omnimuse.server.translate.values import shown

PATH = "/v1/realtime"
OPERATIONS: tuple[Operation, ...] = ()  # OpenAPI knows no WebSockets
PROTOCOL = "realtime"
"""What clients that name a protocol name."""
MOST_ITEMS = 256
"""Items of a conversation."""


def routes(service: Service) -> list[BaseRoute]:
    """The endpoint."""

    async def converse(socket: WebSocket) -> None:
        _check_model(service, socket.query_params.get("model"))
        offered = socket.scope.get("subprotocols") or ()
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        await Conversation(service, Live(socket, told_of)).run()

    return live_routes(PATH, converse)


def told_of(error: ApiError, event: Event | None = None) -> Event:
    """The event that tells an error, of the client's event where it is about one."""
    name = event.get("event_id") if event is not None else None
    about = {"event_id": name if isinstance(name, str) else None}
    return {"type": "error", "event_id": named("event"), "error": {**body(error)["error"], **about}}


class Conversation:
    """One session."""

    def __init__(self, service: Service, live: Live) -> None:
        self._service, self._live, self._door = service, live, service.door
        self._settings = session.begin(self._door)
        self._scribe = Scribe(service, live, self._tell)
        self._items, self._pcm = list[Item](), bytearray()
        self._ear: Ear | None = None  # where it is for the server to hear whose turn it is
        self._gone = 0  # samples that came before those of `_pcm`
        self._said = ""  # the name of the item that is being said
        self._turn: Turn | None = None  # from the moment at which it is asked for, until it is done
        self._making: asyncio.Task[None] | None = None
        self._asked = asyncio.Queue[Turn]()
        self._id, self._count = named("sess"), 0

    async def run(self) -> None:
        """Until the client goes, or says nothing for long."""
        await self._tell("session.created", {"session": self._session()})
        writing = asyncio.ensure_future(self._scribe.run())
        try:
            await self._live.hold(self._work(), self._take, lambda: self._turn is not None or self._scribe.busy)
        finally:
            await stop(writing)

    async def _tell(self, type_: str, fields: Event | None = None) -> None:
        await self._live.tell({"type": type_, "event_id": named("event"), **(fields or {})})

    def _session(self) -> Event:
        return {"id": self._id, **self._settings.told(self._service.options.model_name, self._door)}

    # -- what comes ----------------------------------------------------------------------------------------------

    async def _take(self, event: Event) -> None:
        match event["type"]:
            case "session.update":
                self._set(self._changed(event.get("session"), "session"))
                await self._tell("session.updated", {"session": self._session()})
            case "input_audio_buffer.append":
                await self._append(event.get("audio"))
            case "input_audio_buffer.clear":
                self._set(self._settings)
                self._take_pcm()
                await self._tell("input_audio_buffer.cleared")
            case "input_audio_buffer.commit":
                await self._commit()
            case "conversation.item.create":
                await self._create(event)
            case "conversation.item.retrieve":
                await self._tell("conversation.item.retrieved", {"item": self._find(event.get("item_id")).told()})
            case "conversation.item.delete":
                await self._delete(self._find(event.get("item_id")))
            case "response.create":
                await self._ask(event.get("response") or {})
            case "response.cancel":
                self._cancel(event.get("response_id"))
            case "conversation.item.truncate":
                await self._truncate(event)
            case other:
                message = f"there is no event {other[:80]!r} here; OpenAI's documents of realtime list them"
                raise refusal("invalid_value", message, "type")

    def _changed(self, given: Any, name: str) -> Settings:
        if isinstance(given, dict) and "model" in given:
            given = dict(given)
            _check_model(self._service, given.pop("model"))
        made = self._settings.changed(given, name, self._door)
        if made.written is not None:
            self._scribe.check(made.written)
            _check_model(self._service, made.written.get("model"))
        self._order(made, [Item("", "user", [{"type": "text", "text": "a"}])])  # refuses what the model cannot
        return made

    def _set(self, settings: Settings) -> None:
        """Use these settings from now on; whoever listens begins anew."""
        at = self._gone + len(self._pcm) // 2
        self._settings = settings
        self._ear = None if settings.turning is None else Ear(settings.rate, settings.turning.pauses, at)

    async def _append(self, given: Any) -> None:
        if "audio" not in self._kinds:
            raise refusal("unsupported_task", "this model hears nothing; make an item of text", "audio")
        pcm = session.samples(given, "audio")
        most = MOST_SAMPLES // max(1, self._door.limits.max_sounds)
        if len(self._pcm) + len(pcm) > most and self._ear is not None and self._ear.speaks:
            await self._stopped(self._gone + len(self._pcm) // 2)
            self._set(self._settings)
        if len(self._pcm) + len(pcm) > most:
            seconds = most / 2 / self._settings.rate
            message = f"the buffer holds {seconds:.0f} s; commit it, or clear it, before more comes"
            raise refusal("request_too_large", message, "audio")
        self._hold(len(pcm))
        self._pcm += pcm
        if self._ear is not None:
            await self._listen(self._ear, pcm)

    async def _listen(self, ear: Ear, pcm: bytes) -> None:
        """Notice who begins and ends to speak, and forget what nobody said."""
        for heard in await asyncio.to_thread(lambda: list(ear.hear(pcm))):
            try:
                await (self._started(heard.at) if heard.begins else self._stopped(heard.at))
            except (ApiError, OmnimuseError) as error:
                await self._live.fail(error)
        if not ear.speaks:
            assert self._settings.turning is not None
            kept = self._settings.turning.pauses.before + WINDOW
            self._forget(self._gone + len(self._pcm) // 2 - round(kept * self._settings.rate))

    async def _started(self, at: int) -> None:
        """Somebody speaks from sample `at` on."""
        self._forget(at)
        self._said = named("item")
        told = {"audio_start_ms": self._milliseconds(self._gone), "item_id": self._said}
        await self._tell("input_audio_buffer.speech_started", told)
        turning = self._settings.turning
        if turning is not None and turning.yields and self._turn is not None:
            self._stop(self._turn, "turn_detected")

    async def _stopped(self, at: int) -> None:
        """What was said up to sample `at` is an item, and is answered if that is wished."""
        told = {"audio_end_ms": self._milliseconds(at), "item_id": self._said}
        await self._tell("input_audio_buffer.speech_stopped", told)
        await self._commit(at)
        if self._settings.turning is not None and self._settings.turning.answers:
            if self._turn is not None and self._turn.stopped:
                await self._turn.done.wait()
            await self._ask({})

    def _milliseconds(self, samples: int) -> int:
        return samples * 1000 // self._settings.rate

    def _forget(self, before: int) -> None:
        """Let go of the samples ahead of sample `before`."""
        if before > self._gone:
            self._take_pcm(before)

    def _take_pcm(self, until: int | None = None) -> bytes:
        """The samples up to sample `until`, or all, which are not held any longer."""
        count = len(self._pcm) if until is None else (until - self._gone) * 2
        taken = bytes(self._pcm[:count])
        del self._pcm[:count]
        self._gone += count // 2
        return taken

    async def _commit(self, until: int | None = None) -> None:
        if not self._pcm:
            raise refusal("invalid_value", "the input buffer is empty; append sound before it is committed", "type")
        if until is None:
            self._set(self._settings)
        item = session.heard(self._take_pcm(until), self._settings.rate, self._said or named("item"))
        self._said = ""
        before = self._items[-1].id if self._items else None
        await self._tell("input_audio_buffer.committed", {"item_id": item.id, "previous_item_id": before})
        await self._put(item, len(self._items))
        if self._settings.written is not None:
            self._scribe.note(item, self._settings.written)

    async def _create(self, event: Event) -> None:
        item, sources = session.item_of(event.get("item"), named("item"), self._settings.rate, self._door)
        if any(item.id == other.id for other in self._items):
            raise refusal("invalid_value", f"there is an item {item.id!r} already; name it otherwise", "item.id")
        if item.answers and not any(each.call and each.call.id == item.answers for each in self._items):
            message = f"item.call_id={item.answers!r} answers nothing: no item calls a tool by this name"
            raise refusal("invalid_value", message, "item.call_id")
        at, before = len(self._items), event.get("previous_item_id")
        if before is not None:
            at = 0 if before == "root" else self._items.index(self._find(before)) + 1
        self._hold(item.size)
        if sources:
            await may_read(self._service, self._live.socket)
            state = self._live.socket.state
            most = self._door.limits.max_images
            item.images += await self._service.uploads.read(sources, most, state.tenant, state.lease.add)
            self._hold(sum(len(image.png) for image in item.images))
        await self._put(item, at)

    async def _put(self, item: Item, at: int) -> None:
        """A new item, and those away for which there is no room beside it."""
        items = [*self._items[:at], item, *self._items[at:]]
        many = max(session.beyond(items, self._door), len(items) - MOST_ITEMS)
        gone = items[:many]
        if item in gone or (gone and not self._settings.forgets):
            why = "the model takes no more at once; delete items, or set truncation to auto"
            raise refusal("invalid_value", f"the conversation has too many items, sounds or pictures: {why}", "item")
        earlier = self._items[:at]
        for old in gone:
            if old in self._items:
                await self._delete(old)
        at = sum(each in earlier for each in self._items)
        self._items.insert(at, item)
        before = self._items[at - 1].id if at else None
        for what in ("added", "done"):
            await self._tell(f"conversation.item.{what}", {"item": item.told(), "previous_item_id": before})

    async def _delete(self, item: Item) -> None:
        self._items.remove(item)
        await self._tell("conversation.item.deleted", {"item_id": item.id})
        for other in [each for each in self._items if item.call is not None and each.answers == item.call.id]:
            await self._delete(other)  # it answers nothing any longer

    async def _truncate(self, event: Event) -> None:
        """Forget the words of an answer that was not heard to its end: nobody knows which were (so does OpenAI)."""
        item, end = self._find(event.get("item_id")), event.get("audio_end_ms")
        if item.status == "in_progress" or not any(part["type"] == "output_audio" for part in item.content):
            raise refusal("invalid_value", "only what the model has said can be cut short", "item_id")
        if isinstance(end, bool) or not isinstance(end, int) or end < 0:
            raise refusal("invalid_value", f"audio_end_ms={shown(end)} is no number of milliseconds", "audio_end_ms")
        item.parts, item.content = [{"type": "text", "text": ""}], [{"type": "output_audio", "transcript": ""}]
        told = {"item_id": item.id, "content_index": 0, "audio_end_ms": end}
        await self._tell("conversation.item.truncated", told)

    def _find(self, id_: Any) -> Item:
        for item in self._items:
            if item.id == id_:
                return item
        raise refusal("invalid_value", f"there is no item {str(id_)[:80]!r} in this conversation", "item_id")

    def _hold(self, more: int) -> None:
        """Count so many bytes more of what the client sent; ApiError 429 where there is no room for them."""
        held = sum(item.size for item in self._items) + len(self._pcm)
        self._live.socket.state.lease.grow(held + more)

    @property
    def _kinds(self) -> Sequence[str]:
        return session.able(self._door)

    # -- what is asked for ---------------------------------------------------------------------------------------

    async def _ask(self, given: Any) -> None:
        if self._turn is not None:
            message = f"the response {self._turn.id} is being made; wait for response.done, or cancel it"
            raise refusal("conflicting_parameters", message, "type")
        if not isinstance(given, dict):
            raise refusal("invalid_value", "response is no object", "response")
        given = dict(given)
        if given.pop("conversation", "auto") not in ("auto", None):
            why = "an answer becomes part of the conversation; delete its item afterwards"
            raise refusal("unsupported_parameter", f"response.conversation: {why}", "response.conversation")
        metadata = given.pop("metadata", None)
        settings = self._settings.changed(given, "response", self._door)
        self._live.ask()
        self._count += 1
        self._turn = Turn(self._order(settings, self._items), settings, metadata)
        self._asked.put_nowait(self._turn)

    def _order(self, settings: Settings, items: Sequence[Item]) -> Order:
        """What the engine is asked for; ApiError or RequestError for what this model cannot."""
        if not items:
            raise refusal("invalid_value", "the conversation has no item yet; say something first", "response")
        messages = joined([item.message() for item in items])
        if settings.instructions:
            messages.insert(0, {"role": "system", "content": settings.instructions})
        wanted = aloud(self._service, read({**settings.fields(), "messages": []}, "talk", self._door))
        wanted = replace(wanted, talk=replace(wanted.talk, messages=messages))
        came: dict[str, object] = {
            "images": tuple(image for item in items for image in item.images),
            "sounds": tuple(sound for item in items for sound in item.sounds),
        }
        order = place_order(self._service, wanted, self._live.socket, TASK, came)
        return replace(order, request=replace(order.request, chunks=True), id=f"{order.id}-{self._count}")

    def _cancel(self, id_: Any) -> None:
        if self._turn is None or id_ not in (None, self._turn.id):
            raise refusal("invalid_value", "no such response is being made; there is nothing to cancel", "response_id")
        self._stop(self._turn, "client_cancelled")

    def _stop(self, turn: Turn, by: str) -> None:
        turn.stopped = turn.stopped or by
        if self._making is not None:
            self._making.cancel()

    # -- what goes -----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Make the responses that are asked for, one after the other."""
        while True:
            turn = await self._asked.get()
            await self._begin(turn)
            self._making = asyncio.ensure_future(self._make(turn))
            if turn.stopped:  # meanwhile
                self._making.cancel()
            try:
                await asyncio.wait({self._making})
            finally:
                await stop(self._making)
            await self._end(turn, self._making)
            self._turn = self._making = None
            turn.done.set()

    async def _begin(self, turn: Turn) -> None:
        await self._tell("response.created", {"response": turn.response("in_progress")})
        await self._tell(
            "response.output_item.added", {"response_id": turn.id, "output_index": 0, "item": turn.item.told()}
        )
        before = self._items[-1].id if self._items else None
        self._items.append(turn.item)
        await self._tell("conversation.item.added", {"item": turn.item.told(), "previous_item_id": before})
        await self._tell("response.content_part.added", {**turn.place, "part": turn.part})

    async def _make(self, turn: Turn) -> None:
        settings = turn.settings
        pace = None if settings.speed == 1 else partial(Tempo, session.rate_of(self._door), settings.speed)
        heard = Sounding(turn.order, pace)
        written = "response.output_audio_transcript.delta" if settings.aloud else "response.output_text.delta"
        async with aclosing(draw(self._service, turn.order)) as updates:
            async for update in updates:
                if isinstance(update, Spelt) and (text := turn.new(update)):
                    await self._tell(written, {**turn.place, "delta": text})
                elif isinstance(update, Grown) and (sound := await heard.new(update)) is not None:
                    await self._tell("response.output_audio.delta", {**turn.place, "delta": sound.data})
                elif isinstance(update, Finished):
                    turn.whole = update
                    async with open_files(self._service, update) as files:
                        if rest := turn.rest(update.texts[0].text):
                            await self._tell(written, {**turn.place, "delta": rest})
                        if settings.aloud:
                            async for sound in heard.rest(0, files[0]):
                                if sound.data:
                                    await self._tell("response.output_audio.delta", {**turn.place, "delta": sound.data})
                        elif settings.pictured:
                            for made, file in zip(update.files, files, strict=True):
                                url = await asyncio.to_thread(data_url, made, file)
                                await self._tell("response.output_image.done", {**turn.place, "image_url": url})

    async def _end(self, turn: Turn, making: asyncio.Task[None]) -> None:
        """Tell that a response is done, and how."""
        status, details = how(turn, making)
        item, place = turn.item, turn.place
        item.status = "completed" if status == "completed" else "incomplete"
        item.parts = [{"type": "text", "text": turn.text}]
        kind = {"type": "output_audio", "transcript": turn.text} if turn.settings.aloud else None
        item.content = [kind or {"type": "output_text", "text": turn.text}]
        if turn.settings.aloud:
            await self._tell("response.output_audio.done", {**place})
            await self._tell("response.output_audio_transcript.done", {**place, "transcript": turn.text})
        else:
            await self._tell("response.output_text.done", {**place, "text": turn.text})
        await self._tell("response.content_part.done", {**place, "part": turn.part})
        await self._tell("response.output_item.done", {"response_id": turn.id, "output_index": 0, "item": item.told()})
        await self._tell("conversation.item.done", {"item": item.told()})
        if turn.whole is not None:
            for type_, fields in turn.called(self._items):
                await self._tell(type_, fields)
        await self._tell("response.done", {"response": turn.response(status, details)})


def _check_model(service: Service, name: Any) -> None:
    if not isinstance(name, str | None):
        raise refusal("invalid_value", "the model has a name, as a text", "model")
    check_model(service, None if name in ANY_MODEL else name)
