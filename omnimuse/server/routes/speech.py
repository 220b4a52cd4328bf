"""/v1/audio/speech, for models that speak: the whole file, or the sound while it is made.

A stream is samples of 16 bits, behind the head of a WAV file if that was asked for. Pieces may be missed by a slow
reader, and of a request that is made once more some come twice: what is sent goes on where it ended, and the whole, as
the worker wrote it, fills up what was missed. The work stops when the client goes.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import BinaryIO

from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.deploy.wire import Finished, Grown
from omnimuse.media.streamed import Tempo
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.http.download import MEDIA, Sent
from omnimuse.server.http.sse import ByteStream, Event
from omnimuse.server.http.uploads import uploaded
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Admitted,
    Order,
    draw,
    finished,
    opened,
    place_order,
    read_sounds,
    refuse_blocks,
    refuse_key,
    taken,
)
from omnimuse.server.protocol import speech as protocol
from omnimuse.server.protocol.images import dump
from omnimuse.server.routes.voices import voiced
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.answers import Made, timed

PATH = "/v1/audio/speech"
TASK = "text-to-audio"
FLOWING = ("WAV", "PCM")
"""The formats of what is sent while it is made."""
UNKNOWN = 0xFFFFFFFF
"""The length of a WAV file whose end nobody knows yet."""
PIECE = 64 * 1024
"""Bytes that are read at once of what was missed."""
OPERATIONS = (
    Operation(
        "POST",
        PATH,
        "Say a text aloud. With `stream_format` the answer is the sound while it is made.",
        body=protocol.SpeechRequest,
        responses={200: "audio/wav"},
    ),
)


def routes(service: Service) -> list[Route]:
    """The endpoint; none for a model that does not speak."""
    sound = service.door.limits.sound
    if sound is None or sound.speech is None:
        return []

    async def speak(request: Request) -> Response:
        refuse_key(request)
        given, kept = await voiced(service, request.state.tenant, await read_json(request))
        wanted = read(given, "speech", service.door)
        flow, format_ = wanted.delivery.flow, wanted.output.format
        if flow and format_ not in FLOWING:
            message = f"response_format={format_.lower()} is made whole; a stream is pcm or wav"
            raise refusal("conflicting_parameters", message, "stream_format")
        if flow != "sse":
            refuse_blocks(wanted, "stream_format=sse")
        sources = uploaded({}, wanted.urls, "ref_audio")
        sounds = await read_sounds(service, request, sources) if sources else kept
        order = place_order(service, wanted, request, TASK, {"sounds": sounds})
        request.state.lease.close()  # of what came, only the order is left
        if not flow:
            return await _whole(service, request, order)
        head = _head(sound.rate, sound.channels) if format_ == "WAV" else b""
        pieces = pieces_of(service, order, head)
        if flow == "sse":
            return await cancel_on_disconnect(request, opened(_told(pieces)))
        await cancel_on_disconnect(request, anext(pieces))
        suffix = format_.lower()
        return ByteStream(_bytes(pieces), {"content-type": MEDIA[suffix], "x-seed": str(order.request.seed(0))})

    return [Route(PATH, speak, methods=["POST"])]


async def _whole(service: Service, request: Request, order: Order) -> Response:
    """The file, once it is there."""
    made = await cancel_on_disconnect(request, finished(service, order))
    [sound] = made.files
    suffix = sound.name.rpartition(".")[2]
    headers = {
        **Made.of(made).headers(order.wanted.warnings),
        "content-type": MEDIA[suffix],
        "content-length": str(sound.bytes),
        "content-disposition": f'attachment; filename="speech.{suffix}"',
    }
    [file] = await taken(service.files, made.files)
    return Sent(file, sound.bytes, 200, headers)


async def pieces_of(service: Service, order: Order, head: bytes = b"") -> AsyncGenerator[bytes | Finished, None]:
    """The bytes of the sound as they are made, every one once, after `head`; first none of them, at last what is told
    of the whole. RequestError where its speed cannot be had.
    """
    speed, sound, begun = order.form.speed, service.door.limits.sound, False
    assert sound is not None, "there are routes for models that speak alone"
    tempo = None if speed == 1 else Tempo(sound.rate, speed)
    # What a reader missed is taken from the whole, which has no head then, and the speed at which it was spoken.
    form = structs.replace(order.form, format="PCM", speed=1.0)
    flowing = replace(order, request=replace(order.request, chunks=True), form=form)
    async with aclosing(_spoken(service, flowing)) as pieces:
        async for piece in pieces:
            ended = isinstance(piece, Finished)
            samples = b"" if isinstance(piece, Finished) else piece
            if tempo is not None:
                samples = await asyncio.to_thread(tempo.end) if ended else await asyncio.to_thread(tempo.feed, samples)
            if not begun and (samples or ended):
                begun = True
                yield head
            yield samples
            if ended:
                yield piece


async def _spoken(service: Service, order: Order) -> AsyncGenerator[bytes | Finished, None]:
    """As `pieces_of`, the samples alone, as they were spoken."""
    sent = 0
    async with aclosing(draw(service, order)) as updates:
        async for update in updates:
            match update:
                case Admitted():
                    yield b""
                case Grown():
                    piece = following(update, sent)
                    sent += len(piece)
                    yield piece
                case Finished():
                    [file] = await taken(service.files, update.files)
                    with file:
                        await asyncio.to_thread(file.seek, sent)
                        async for rest in read_away(file):
                            yield rest
                    yield update


async def read_away(file: BinaryIO) -> AsyncGenerator[bytes, None]:
    """What is left of a file."""
    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece


def following(piece: Grown, sent: int) -> bytes:
    """What of a piece comes next after so many bytes; none of one behind a gap, which the whole fills."""
    at = piece.start * piece.channels * 2
    return piece.data[sent - at :] if at <= sent else b""


async def _bytes(pieces: AsyncGenerator[bytes | Finished, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, bytes) and piece:
                yield piece


async def _told(pieces: AsyncGenerator[bytes | Finished, None]) -> AsyncGenerator[Event, None]:
    """The pieces as events; the first is for `opened`."""
    await anext(pieces)
    yield None, None
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Finished):
                read_, said = piece.remarks.prompt_tokens, piece.remarks.made
                usage = protocol.SpeechUsage(input_tokens=read_, output_tokens=said, total_tokens=read_ + said)
                done = protocol.SpeechDoneEvent(usage=usage, **timed(piece))
                yield done.type, dump(done)
            elif piece:
                delta = protocol.SpeechDeltaEvent(audio=base64.b64encode(piece).decode())
                yield delta.type, delta.model_dump()


def _head(rate: int, channels: int) -> bytes:
    """The head of a WAV file of samples of 16 bits."""
    width = 2 * channels
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * width, width, 16)
    return struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE") + form + struct.pack("<4sI", b"data", UNKNOWN)
