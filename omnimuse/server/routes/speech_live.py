"""/v1/audio/speech/stream, a WebSocket for models that speak: a text is said while it is still being written.

The messages are those of vLLM-Omni. `session.config` has the fields of `/v1/audio/speech`; `input.text` brings text,
which is said sentence by sentence, each as its own request; `input.done` ends an utterance and `session.close` the
session. Of each sentence come `audio.start`, its sound in messages of bytes, and `audio.done`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from starlette.routing import BaseRoute
from starlette.websockets import WebSocket

from omnimuse.core.errors import OmnimuseError, RequestCancelled
from omnimuse.core.request import MAX_PROMPT
from omnimuse.core.spec import SoundLimits
from omnimuse.deploy.wire import Finished
from omnimuse.server.errors import ApiError, body, refusal, unsupported
from omnimuse.server.http.live import Event, Live, live_routes
from omnimuse.server.http.uploads import uploaded
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import Order, finished, may_read, place_order, refuse_blocks, taken
from omnimuse.server.routes.speech import TASK, pieces_of, read_away
from omnimuse.server.routes.voices import voiced
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.sentences import Cut, Sentences, cut_of

PATH = "/v1/audio/speech/stream"
OPERATIONS: tuple[Operation, ...] = ()  # OpenAPI knows no WebSockets
OURS = ("type", "stream_audio", "split_granularity", "word_timestamps", "speaker")
"""Fields of `session.config` that `/v1/audio/speech` does not have."""
MOST = 2 * MAX_PROMPT
"""Characters of text that have come and are not said yet."""


class Mark(Enum):
    """What stands between sentences: the end of an utterance, and of the session."""

    DONE = "input.done"
    CLOSE = "session.close"


@dataclass(frozen=True)
class Manner:
    """How texts are said: fields of `/v1/audio/speech`, the sounds that came with them, whether pieces of a sentence
    are sent as they are made, and where a text is cut.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    came: Mapping[str, object] = field(default_factory=dict)
    flows: bool = False
    cut: Cut = "sentence"


def routes(service: Service) -> list[BaseRoute]:
    """The endpoint; none for a model that does not speak."""
    sound = service.door.limits.sound
    if sound is None or sound.speech is None:
        return []

    async def session(socket: WebSocket) -> None:
        await socket.accept()
        await Saying(service, Live(socket, told_of), sound).run()

    return live_routes(PATH, session)


def told_of(error: ApiError, event: Event | None = None) -> Event:
    """The event that tells an error: the message by itself, as vLLM-Omni has it, and all of it."""
    told = body(error)
    return {"type": "error", "message": told["error"]["message"], **told}


class Saying:
    """One session."""

    def __init__(self, service: Service, live: Live, sound: SoundLimits) -> None:
        self._service, self._live, self._sound = service, live, sound
        self._manner, self._text = Manner(), Sentences()
        self._queue = asyncio.Queue[str | Mark]()
        self._waiting, self._count = 0, 0  # characters that are not said yet, and requests so far
        self._utterance, self._sentence, self._open = 0, 0, False

    async def run(self) -> None:
        """Until the client ends it, or goes."""
        await self._live.hold(self._work(), self._take, lambda: self._waiting > 0)
        await self._live.close()

    # -- what comes ----------------------------------------------------------------------------------------------

    async def _take(self, event: Event) -> None:
        match event["type"]:
            case "session.config":
                if self._open:
                    why = "text has come that is not said yet; configure before it, or after `session.done`"
                    raise refusal("conflicting_parameters", f"session.config came too late: {why}", "type")
                self._manner = await self._configured(event)
                self._text = Sentences(self._manner.cut)
            case "input.text":
                self._add(event.get("text"))
            case "input.done":
                self._open = True  # also of an utterance without a word, until it has been answered
                self._say([self._text.rest()])
                self._queue.put_nowait(Mark.DONE)
            case "session.close":
                self._queue.put_nowait(Mark.CLOSE)
            case other:
                known = "session.config, input.text, input.done and session.close"
                raise refusal("invalid_value", f"there is no event {other[:80]!r} here; there are {known}", "type")

    def _add(self, text: Any) -> None:
        if not isinstance(text, str):
            raise refusal("invalid_value", "input.text has a text, which is said", "text")
        if self._waiting + len(self._text) + len(text) > MOST:
            why = f"at most {MOST} characters wait to be said; send more once some are"
            raise refusal("request_too_large", f"the text of {len(text)} characters was not taken: {why}", "text")
        self._open = True
        self._say(self._text.add(text))

    def _say(self, sentences: list[str]) -> None:
        for sentence in filter(None, sentences):
            self._waiting += len(sentence)
            self._queue.put_nowait(sentence)

    async def _configured(self, event: Event) -> Manner:
        """The manner that an event asks for, tried out on a word; ApiError or RequestError for what cannot be."""
        given = {name: value for name, value in event.items() if name not in OURS}
        if (speaker := event.get("speaker")) is not None and given.setdefault("voice", speaker) != speaker:
            raise refusal("conflicting_parameters", "speaker and voice are two; leave one out", "speaker")
        if event.get("word_timestamps"):
            why = "when each word is said is not known here"
            raise unsupported("word_timestamps", why)
        flows = event.get("stream_audio") or False
        if not isinstance(flows, bool):
            raise refusal("invalid_value", "stream_audio is true or false", "stream_audio")
        if flows and given.setdefault("response_format", "pcm") != "pcm":
            why = "of what is sent while it is made the response_format is pcm"
            raise refusal("conflicting_parameters", f"stream_audio is not possible so: {why}", "response_format")
        if said := next((name for name in ("input", "prompt") if name in given), None):
            raise refusal("unsupported_parameter", 'what is said comes in messages of the type "input.text"', said)
        if "stream_format" in given:
            raise refusal("unsupported_parameter", "a WebSocket has `stream_audio` for this", "stream_format")
        tenant = self._live.socket.state.tenant
        named, kept = await voiced(self._service, tenant, given)
        came: dict[str, object] = {"sounds": kept} if kept else {}
        manner = Manner(named, came, flows, cut_of(event.get("split_granularity", "sentence")))
        wanted = read({**named, "input": "a"}, "speech", self._service.door)
        refuse_blocks(wanted, "a stream of events at /v1/audio/speech")
        if sources := uploaded({}, wanted.urls, "ref_audio"):
            await may_read(self._service, self._live.socket)
            most, hold = self._sound.max_inputs, self._live.socket.state.lease.grow  # once, however often it is asked
            sounds = await self._service.uploads.read_sounds(sources, most, tenant, hold)
            manner = replace(manner, came={"sounds": sounds})
        self._order("a", manner)
        return manner

    def _order(self, text: str, manner: Manner) -> Order:
        fields = {name: value for name, value in manner.fields.items() if name != "ref_audio" or not manner.came}
        wanted = read({**fields, "input": text}, "speech", self._service.door)
        order = place_order(self._service, wanted, self._live.socket, TASK, manner.came)
        return replace(order, id=f"{order.id}-{self._count}")

    # -- what goes -----------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Say what has come, sentence by sentence, until the session is to be closed."""
        while (said := await self._queue.get()) is not Mark.CLOSE:
            if isinstance(said, str):
                await self._speak(said)
                self._waiting -= len(said)
                self._sentence += 1
                continue
            done = {"utterance_index": self._utterance, "total_sentences": self._sentence}
            self._utterance, self._sentence = self._utterance + 1, 0
            self._open = len(self._text) > 0 or not self._queue.empty()
            await self._live.tell({"type": "session.done", **done})

    async def _speak(self, text: str) -> None:
        """A sentence; what is wrong with it is told, and the next may be right."""
        where = {"utterance_index": self._utterance, "sentence_index": self._sentence}
        manner, failed, sent = self._manner, False, 0
        format_ = str(manner.fields.get("response_format", "wav"))
        started = {"sentence_text": text, "format": format_, "sample_rate": self._sound.rate}
        await self._live.tell({"type": "audio.start", **where, **started})
        try:
            self._live.ask()
            self._count += 1
            order = self._order(text, manner)
            if manner.flows:
                async with aclosing(pieces_of(self._service, order)) as pieces:
                    async for piece in pieces:
                        if not isinstance(piece, Finished) and piece:
                            sent += await self._live.play(_alone(piece))
            else:
                sent = await self._whole(order)
        except RequestCancelled:  # nobody is left to tell
            raise
        except (ApiError, OmnimuseError) as error:
            failed = True
            await self._live.fail(error)
        await self._live.tell({"type": "audio.done", **where, "total_bytes": sent, "error": failed})

    async def _whole(self, order: Order) -> int:
        made = await finished(self._service, order)
        [file] = await taken(self._service.files, made.files)
        with file:
            return await self._live.play(read_away(file))


async def _alone(piece: bytes) -> AsyncGenerator[bytes, None]:
    yield piece
