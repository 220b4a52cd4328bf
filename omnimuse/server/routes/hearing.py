"""/v1/audio/transcriptions and /v1/audio/translations, for models that hear and write: a sound in, its text out.

What the model writes when it is asked for the text is what is answered; nothing else listens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from omnimuse.core.request import Recording
from omnimuse.deploy.wire import Finished, Spelt
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import is_form, read_any
from omnimuse.server.http.sse import Event
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
)
from omnimuse.server.protocol import hearing as protocol
from omnimuse.server.protocol.images import dump
from omnimuse.server.routes.absent import Handler
from omnimuse.server.routes.talk import TASK, Told, usage_of
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import Wanted, read
from omnimuse.server.translate.answers import Made, timed
from omnimuse.server.translate.hearing import asked
from omnimuse.server.translate.parts import able

TRANSCRIBED, TRANSLATED = "/v1/audio/transcriptions", "/v1/audio/translations"
CUT = "the text ends where `max_tokens` of it were written; the sound may go on"
OPERATIONS = tuple(
    Operation(
        "POST",
        path,
        f"Write down what is said in a sound{where}. With `stream` the answer is text/event-stream.",
        body=protocol.HearingRequest,
        form=True,
        responses={200: protocol.Transcription},
    )
    for path, where in ((TRANSCRIBED, ""), (TRANSLATED, ", in English"))
)


def routes(service: Service) -> list[Route]:
    """Both endpoints; none for a model that hears nothing."""
    if "audio" not in able(service.door):
        return []

    def at(path: str) -> Handler:
        async def write_down(request: Request) -> Response:
            refuse_key(request)
            order = await _read(service, request, path == TRANSLATED)
            request.state.lease.close()  # of what came, only the order is left
            if order.wanted.delivery.stream:
                return await cancel_on_disconnect(request, opened(_pieces(service, order)))
            made = await cancel_on_disconnect(request, finished(service, order))
            headers = Made.of(made).headers([*order.wanted.warnings, *_warnings(made)])
            if order.wanted.output.transport == "text":
                return PlainTextResponse(made.texts[0].text + "\n", headers=headers)
            return JSONResponse(dump(whole(made)), headers=headers)

        return write_down

    return [Route(path, at(path), methods=["POST"]) for path in (TRANSCRIBED, TRANSLATED)]


async def _read(service: Service, request: Request, translated: bool) -> Order:
    """What is asked of the model; ApiError 400 unless there is one sound."""
    fields, uploads = await read_any(request)
    wanted = read(fields, "hearing", service.door, form=is_form(request), files=uploads)
    sources = uploaded(uploads, ())
    if len(sources) != 1:
        raise refusal("missing_parameter", f"file is one sound, and {len(sources)} came; send it in a form", "file")
    if wanted.delivery.stream and wanted.output.transport == "text":
        raise refusal("conflicting_parameters", "a stream is of events; leave response_format out", "response_format")
    if wanted.output.transport == "text":
        refuse_blocks(wanted, "response_format=json")
    return order_of(service, wanted, request, await read_sounds(service, request, sources), translated)


def order_of(
    service: Service, wanted: Wanted, http: HTTPConnection, sounds: Sequence[Recording], translated: bool = False
) -> Order:
    """The order for what `wanted` says of one sound; errors as `place_order`'s."""
    messages = asked(translated, wanted.talk.tongue, wanted.prompt)
    extra = {"temperature": 0.0, **(wanted.params.extra or {})}  # type: ignore[dict-item]
    params = replace(wanted.params, extra=extra)
    wanted = replace(wanted, params=params, talk=replace(wanted.talk, messages=messages))
    order = place_order(service, wanted, http, TASK, {"sounds": tuple(sounds)})
    return replace(order, request=replace(order.request, chunks=wanted.delivery.stream))


async def _pieces(service: Service, order: Order) -> AsyncGenerator[Event, None]:
    """The text as it is written; the first event is for `opened`: it comes when all has been read."""
    async with aclosing(written(service, order)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Finished):
                done = protocol.TranscriptDoneEvent(**whole(piece).model_dump())
                yield done.type, dump(done)
            elif piece:
                delta = protocol.TranscriptDeltaEvent(delta=piece)
                yield delta.type, delta.model_dump()
            else:
                yield None, None


async def written(service: Service, order: Order) -> AsyncGenerator[str | Finished, None]:
    """First nothing, when all has been read; the text, each piece once; at last what is told of the whole."""
    known, begun = Told(), False
    async with aclosing(draw(service, order)) as updates:
        async for update in updates:
            if isinstance(update, Admitted):
                continue
            if not begun:
                begun = True
                yield ""
            new = known.new(update) if isinstance(update, Spelt) else ""
            if isinstance(update, Finished):
                new = known.rest(0, update.texts[0].text)
            if new:
                yield new
            if isinstance(update, Finished):
                yield update


def whole(made: Finished) -> protocol.Transcription:
    """What was heard, and what that took."""
    counted = usage_of(made)
    usage = protocol.HeardUsage(
        input_tokens=counted.prompt_tokens,
        output_tokens=counted.completion_tokens,
        total_tokens=counted.total_tokens,
    )
    return protocol.Transcription(text=made.texts[0].text, usage=usage, **timed(made))


def _warnings(made: Finished) -> list[str]:
    return [CUT] if made.texts[0].reason == "length" else []
