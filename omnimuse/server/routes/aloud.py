"""Answers of a chat that are spoken, too: what is asked for with `modalities` and `audio`, and how it is told.

Part of `talk.py`. In a stream, words and pieces of sound (samples of 16 bits) come as they are made, each once and
without a gap: what a slow reader missed of the sound comes from the finished file.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, BinaryIO

from omnimuse.deploy.wire import Grown
from omnimuse.media.streamed import Tempo
from omnimuse.server.errors import refusal, unsupported
from omnimuse.server.orders.order import Order
from omnimuse.server.protocol import talk as protocol
from omnimuse.server.routes.pictured import BOTH as PICTURED
from omnimuse.server.routes.speech import PIECE, following
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import Wanted
from omnimuse.server.translate.values import shown

FORMATS = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "opus": "OPUS", "aac": "AAC", "pcm16": "PCM", "pcm": "PCM"}
BOTH = ["text", "audio"]


def aloud(service: Service, wanted: Wanted) -> Wanted:
    """`wanted` with what it says of sound, as the engine takes it; ApiError 400 for what this model cannot."""
    asked, audio = wanted.talk.modalities, wanted.talk.audio
    speaks = service.door.limits.speech is not None
    shown_too = service.door.limits.draws and sorted(map(str, asked or ())) == PICTURED
    if asked in (None, [], ["text"]) or shown_too:
        if audio is None:
            return wanted if service.door.spec.writes else written(wanted, "text")
        why = f"use modalities {BOTH!r} to hear an answer".replace("'", '"') if speaks else "no sound is made here"
        raise unsupported("audio", why)
    if not speaks:
        raise refusal("unsupported_parameter", 'this model answers with text; use modalities ["text"]', "modalities")
    if sorted(map(str, asked or ())) != sorted(BOTH):
        message = f'modalities={shown(asked)} cannot be; use ["text"] or ["text", "audio"]'
        raise refusal("invalid_value", message, "modalities")
    return _spoken(wanted, audio or {})


def written(wanted: Wanted, *made: str) -> Wanted:
    """`wanted` of a model that could draw as well: these media are made."""
    extra = {**(wanted.params.extra or {}), "modalities": made}  # type: ignore[dict-item]
    return replace(wanted, params=replace(wanted.params, extra=extra))


def _spoken(wanted: Wanted, audio: Any) -> Wanted:
    if others := audio.keys() - {"voice", "format"}:
        raise refusal("unknown_parameter", f"audio has no field {shown(min(others, key=str))}", "audio")
    usual = "pcm16" if wanted.delivery.stream else "wav"
    voice, format_ = audio.get("voice"), audio.get("format", usual)
    if not isinstance(voice, str | None):
        raise refusal("invalid_value", f"audio.voice={shown(voice)} is no name", "audio.voice")
    if format_ not in FORMATS:
        raise refusal("invalid_value", f"audio.format={shown(format_)}; use {', '.join(FORMATS)}", "audio.format")
    if wanted.delivery.stream and FORMATS[format_] != "PCM":
        message = f"audio.format={format_} is made whole; a stream has pcm16"
        raise refusal("conflicting_parameters", message, "audio.format")
    chosen = {**(wanted.params.extra or {}), "modalities": tuple(BOTH), "voice": voice}  # type: ignore[dict-item]
    return replace(
        wanted,
        params=replace(wanted.params, extra=chosen),
        output=replace(wanted.output, format=FORMATS[format_]),
        names={**wanted.names, "voice": "audio.voice"},
    )


def name_of(order: Order, index: int) -> str:
    """What the sound of answer `index` is called."""
    return f"audio-{order.request.id}-{index}"


def whole(order: Order, index: int, data: str, text: str) -> protocol.Sound:
    """The sound of an answer; nothing of it is kept here, so it is over at once."""
    return protocol.Sound(id=name_of(order, index), data=data, transcript=text, expires_at=int(time.time()))


class Sounding:
    """How many bytes of the sound of each answer a client was told of so far. `pace`, if there is one, makes what
    plays it faster or slower.
    """

    def __init__(self, order: Order, pace: Callable[[], Tempo] | None = None) -> None:
        self._order, self._pace = order, pace
        self._sent, self._tempos = dict[int, int](), dict[int, Tempo]()

    async def new(self, piece: Grown) -> protocol.Sound | None:
        """What of `piece` was not told; None where that is nothing, or there is a gap before it."""
        sent = self._sent.get(piece.output, 0)
        data = following(piece, sent)
        self._sent[piece.output] = sent + len(data)
        if (tempo := self._tempo(piece.output)) is not None:
            data = await asyncio.to_thread(tempo.feed, data)
        return self._told(piece.output, data) if data else None

    async def rest(self, index: int, file: BinaryIO) -> AsyncIterator[protocol.Sound]:
        """What was not told of the whole sound of answer `index`, then that it is over."""
        await asyncio.to_thread(file.seek, self._sent.get(index, 0))
        tempo = self._tempo(index)
        while data := await asyncio.to_thread(file.read, PIECE):
            yield self._told(index, data if tempo is None else await asyncio.to_thread(tempo.feed, data))
        if tempo is not None:
            yield self._told(index, await asyncio.to_thread(tempo.end))
        yield protocol.Sound(id=name_of(self._order, index), expires_at=int(time.time()))

    def _tempo(self, index: int) -> Tempo | None:
        if self._pace is not None and index not in self._tempos:
            self._tempos[index] = self._pace()
        return self._tempos.get(index)

    def _told(self, index: int, data: bytes) -> protocol.Sound:
        return protocol.Sound(id=name_of(self._order, index), data=base64.b64encode(data).decode())
