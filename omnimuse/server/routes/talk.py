"""POST /v1/chat/completions and /v1/completions for models that write: a conversation or a text goes on.

Pieces of a stream follow each other without a gap: what a slow reader missed of them comes with the last one, and
where a lost worker's request is written once more, only what is new is told.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, BinaryIO, Protocol

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.calls import NO_TOOLS, Call
from omnimuse.core.errors import WorkerLostError
from omnimuse.core.messages import BESIDE
from omnimuse.core.request import Door
from omnimuse.deploy.wire import Finished, Grown, Previewed, Spelt
from omnimuse.media.formats import TEXT
from omnimuse.media.prompts import hears
from omnimuse.media.watching import READ
from omnimuse.server.errors import refusal, unsupported
from omnimuse.server.http.bodies import read_json
from omnimuse.server.http.enclosed import Enclosed, JSONWithFiles, Parcel
from omnimuse.server.http.sse import Event, Pattern
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Admitted,
    Order,
    contents,
    draw,
    finished,
    opened,
    place_order,
    read_pictures,
    read_sounds,
    read_videos,
    refuse_key,
    taken,
)
from omnimuse.server.protocol import talk as protocol
from omnimuse.server.protocol.chat import ImagePart
from omnimuse.server.protocol.images import dump
from omnimuse.server.routes.absent import for_tasks
from omnimuse.server.routes.aloud import Sounding, aloud, name_of, whole
from omnimuse.server.routes.calling import Calling
from omnimuse.server.routes.pictured import Looks, pictures, wants
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import Wanted, read
from omnimuse.server.translate.answers import Made, timed, told
from omnimuse.server.translate.field import Kind
from omnimuse.server.translate.parts import KINDS, Shown, able
from omnimuse.server.translate.values import is_nothing

TASK = "text-to-text"
TALK, COMPLETION = "/v1/chat/completions", "/v1/completions"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""OpenAI's roles -> those that templates of checkpoints know."""

OPERATIONS = (
    Operation(
        "POST",
        TALK,
        "Go on with a conversation. With `stream` the answer is text/event-stream.",
        body=protocol.TalkRequest,
        responses={200: protocol.TalkCompletion},
    ),
    Operation(
        "POST",
        COMPLETION,
        "Go on with a text. With `stream` the answer is text/event-stream.",
        body=protocol.CompletionRequest,
        responses={200: protocol.Completion},
    ),
)


def routes(service: Service) -> list[Route]:
    """Both endpoints."""

    async def chat(request: Request) -> Response:
        refuse_key(request)
        return await answer(service, request, await read_json(request), "talk", Chat())

    async def completions(request: Request) -> Response:
        refuse_key(request)
        return await answer(service, request, await read_json(request), "completion", Continued())

    handlers = ((TALK, chat), (COMPLETION, completions))
    return [Route(path, for_tasks(service, (TASK,), handler), methods=["POST"]) for path, handler in handlers]


async def answer(service: Service, request: Request, fields: dict[str, Any], kind: Kind, shape: Shape) -> Response:
    """What is answered to `fields`, the body of a request."""
    wanted, shown = read(fields, kind, service.door), Shown()
    if kind == "talk":
        wanted = aloud(service, wanted)
        said = _messages(wanted, shown, service.door)
        if wanted.delivery.partial_images and not service.door.limits.draws:
            raise unsupported("partial_images", "nothing is drawn")
        if wanted.params.cache is not None and not service.door.limits.draws:
            name = wanted.names["cache"]
            raise unsupported(name, "no step of a text can be skipped")
        wanted = replace(wanted, talk=replace(wanted.talk, messages=said))
    order = _order(service, wanted, request, await _came(service, request, shown, wanted))
    request.state.lease.close()  # of what came, only the order is left
    head = {"created": int(time.time()), "model": service.options.model_name}
    if wanted.delivery.stream:
        return await cancel_on_disconnect(request, opened(_chunks(service, order, shape, head)))
    made = await cancel_on_disconnect(request, finished(service, order))
    drawn = await contents(service.files, made.files)
    body = dump(shape.whole(order, head | _about(order, made), made, drawn.words))
    seeds = ",".join(str(order.request.seed(index)) for index in range(order.request.outputs))
    headers = Made.of(made).headers(order.wanted.warnings) | {"x-seed": seeds}
    return JSONWithFiles(body, drawn, headers) if drawn.words else JSONResponse(body, headers=headers)


async def _came(service: Service, request: Request, shown: Shown, wanted: Wanted) -> dict[str, object]:
    """What the messages show, decoded; of videos that are to be heard, with their tracks."""
    pictures, sounds, videos = (shown.sources[kind] for kind in ("image", "audio", "video"))
    return {
        "images": await read_pictures(service, request, pictures) if pictures else (),
        "sounds": await read_sounds(service, request, sounds) if sounds else (),
        "videos": await read_videos(service, request, videos, wanted, watched=READ, heard=hears(wanted.params))
        if videos
        else (),
    }


def _order(service: Service, wanted: Wanted, request: Request, came: dict[str, object]) -> Order:
    order = place_order(service, wanted, request, TASK, came)
    return replace(order, request=replace(order.request, chunks=wanted.delivery.stream))


# -- what came ---------------------------------------------------------------------------------------------------


def _messages(wanted: Wanted, shown: Shown, door: Door) -> list[dict[str, Any]]:
    """The conversation in the words of templates, and where what it shows is, of kinds that the model behind `door`
    takes; ApiError 400 for what it cannot read.
    """
    messages = wanted.talk.messages
    if not messages:
        raise refusal("missing_parameter", "messages is missing or empty; say something", "messages")
    return [_message(message, f"messages[{index}]", shown, door) for index, message in enumerate(messages)]


def _message(given: Any, name: str, shown: Shown, door: Door) -> dict[str, Any]:
    role = given.get("role") if isinstance(given, dict) else None
    if role == "function" or (role == "tool" and not door.limits.calls):
        why = "a role of today is `tool`" if door.limits.calls else NO_TOOLS
        raise refusal("unsupported_parameter", f"{name} answers a call, and {why}; leave it out", name)
    if role not in ROLES:
        raise refusal("invalid_value", f"{name} is no message with a role of {', '.join(ROLES)}", name)
    beside = BESIDE.get(role, ()) if door.limits.calls else ()
    for key, value in given.items():
        if key not in ("role", "content", *beside) and not is_nothing(value):
            why = (
                NO_TOOLS if key == "tool_calls" else "templates of checkpoints know a role and a content; leave it out"
            )
            raise refusal("unsupported_parameter", f"{name}.{key[:80]} is not supported: {why}", f"{name}.{key}"[:80])
    said: dict[str, Any] = {"role": ROLES[role], **{key: given[key] for key in beside if given.get(key)}}
    if given.get("content") is None and said.get("tool_calls"):
        return {**said, "content": ""}
    return {**said, "content": _content(given.get("content"), f"{name}.content", shown, able(door))}


def _content(given: Any, name: str, shown: Shown, able: Sequence[str]) -> str | list[dict[str, Any]]:
    """A text, or parts of which each is one or, where the model takes such, shows something."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise refusal("invalid_value", f"{name} is neither text nor a list of parts", name)
    texts, parts = list[str](), list[dict[str, Any]]()
    for index, part in enumerate(given):
        kind, where = part.get("type") if isinstance(part, dict) else None, f"{name}[{index}]"
        if kind in KINDS:
            parts.append(shown.take(part, where, able))
            continue
        if kind == "file":
            raise refusal("unsupported_task", f"{where} is {kind}, and this model reads text only; leave it out", where)
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            raise refusal("invalid_value", f'{where} is no part {{"type": "text", "text": ...}}', where)
        texts.append(part[kind])
        parts.append({"type": "text", "text": part[kind]})
    return "\n".join(texts) if len(texts) == len(parts) else parts


# -- what goes ---------------------------------------------------------------------------------------------------


class Shape(Protocol):
    """How one of the two endpoints tells texts."""

    def whole(self, order: Order, head: dict[str, Any], made: Finished, words: Sequence[str]) -> BaseModel:
        """The answer that has everything; `words` stand for files: sounds of answers that are spoken, or pictures."""

    def first(self, order: Order, head: dict[str, Any], index: int) -> BaseModel | None:
        """What comes before the first piece of answer `index`, if anything does."""

    def piece(
        self, order: Order, head: dict[str, Any], index: int, text: str, reason: protocol.Reason | None
    ) -> BaseModel:
        """A piece of answer `index`; with a `reason` it is the last one."""

    def last(self, order: Order, head: dict[str, Any]) -> BaseModel:
        """What `head` has to say at the end, with no piece."""


class Chat:
    """As a conversation."""

    def whole(self, order: Order, head: dict[str, Any], made: Finished, words: Sequence[str]) -> BaseModel:
        drawn = pictures(order, made.files, words) if wants(order) else {}
        heard = words if order.form.format != TEXT else ()
        calling, choices = Calling(order), list[protocol.Answer]()
        for index, each in enumerate(made.texts):
            text, calls = calling.whole(index, each.text)
            sound = whole(order, index, heard[index], text) if heard else None
            asked = [self._call(call) for call in calls] or None
            said = protocol.Said(role="assistant", content=text, audio=sound, images=drawn.get(index), tool_calls=asked)
            reason = calling.reason(index, each.reason)
            choices.append(protocol.Answer(index=index, message=said, finish_reason=reason))
        return protocol.TalkCompletion(id=self._id(order), choices=choices, **_warned(head, calling))

    def first(self, order: Order, head: dict[str, Any], index: int) -> BaseModel | None:
        return self._chunk(
            order, head, [protocol.Piece(index=index, delta=protocol.Said(role="assistant", content=""))]
        )

    def piece(
        self, order: Order, head: dict[str, Any], index: int, text: str, reason: protocol.Reason | None
    ) -> BaseModel:
        spoken = text and order.form.format != TEXT
        audio = protocol.Sound(id=name_of(order, index), transcript=text) if spoken else None
        delta = protocol.Said(content=text or None, audio=audio)
        return self._chunk(order, head, [protocol.Piece(index=index, delta=delta, finish_reason=reason)])

    def calls(self, order: Order, head: dict[str, Any], index: int, number: int, call: Call) -> Iterator[BaseModel]:
        """Call `number` of answer `index`: who is called, and with what."""
        named = protocol.Function(name=call.name)
        for part in (
            protocol.ToolCall(index=number, id=call.id, type="function", function=named),
            protocol.ToolCall(index=number, function=protocol.Function(arguments=call.arguments)),
        ):
            yield self._chunk(order, head, [protocol.Piece(index=index, delta=protocol.Said(tool_calls=[part]))])

    def _call(self, call: Call) -> protocol.ToolCall:
        function = protocol.Function(name=call.name, arguments=call.arguments)
        return protocol.ToolCall(id=call.id, type="function", function=function)

    def picture(self, order: Order, head: dict[str, Any], index: int, images: list[ImagePart]) -> BaseModel:
        """The picture of answer `index`."""
        return self._chunk(order, head, [protocol.Piece(index=index, delta=protocol.Said(images=images))])

    def sound(self, order: Order, head: dict[str, Any], index: int, sound: protocol.Sound) -> BaseModel:
        """A piece of the sound of answer `index`."""
        return self._chunk(order, head, [protocol.Piece(index=index, delta=protocol.Said(audio=sound))])

    def last(self, order: Order, head: dict[str, Any]) -> BaseModel:
        return self._chunk(order, head, [])

    def _chunk(self, order: Order, head: dict[str, Any], choices: list[protocol.Piece]) -> BaseModel:
        return protocol.TalkChunk(id=self._id(order), choices=choices, **head)

    def _id(self, order: Order) -> str:
        return f"chatcmpl-{order.request.id}"


class Continued:
    """As a text that goes on."""

    def whole(self, order: Order, head: dict[str, Any], made: Finished, words: Sequence[str]) -> BaseModel:
        texts = [protocol.Continuation(index=i, text=t.text, finish_reason=t.reason) for i, t in enumerate(made.texts)]
        return self._made(order, head, texts)  # which has no place for pictures

    def first(self, order: Order, head: dict[str, Any], index: int) -> BaseModel | None:
        return None

    def piece(
        self, order: Order, head: dict[str, Any], index: int, text: str, reason: protocol.Reason | None
    ) -> BaseModel:
        return self._made(order, head, [protocol.Continuation(index=index, text=text, finish_reason=reason)])

    def last(self, order: Order, head: dict[str, Any]) -> BaseModel:
        return self._made(order, head, [])

    def _made(self, order: Order, head: dict[str, Any], choices: list[protocol.Continuation]) -> BaseModel:
        return protocol.Completion(id=f"cmpl-{order.request.id}", choices=choices, **head)


@dataclass
class Told:
    """What a client was told of each answer so far."""

    texts: dict[int, str] = field(default_factory=dict)

    def new(self, piece: Spelt) -> str:
        """What of `piece` was not told; nothing where there is a gap before it."""
        known = self.texts.get(piece.output, "")
        if piece.start > len(known):
            return ""
        found = piece.text[len(known) - piece.start :]
        self.texts[piece.output] = known + found
        return found

    def rest(self, index: int, whole: str) -> str:
        """What was not told of the `whole` answer; WorkerLostError if it does not begin with what was."""
        known = self.texts.get(index, "")
        if not whole.startswith(known):
            raise WorkerLostError("the worker was lost, and written anew the answer is another; ask again")
        return whole[len(known) :]


@asynccontextmanager
async def open_files(service: Service, made: Finished) -> AsyncIterator[list[BinaryIO]]:
    """The files of answers that are spoken or show something, while this context lasts."""
    files = await taken(service.files, made.files)
    try:
        yield files
    finally:
        for file in files:
            file.close()


async def _chunks(service: Service, order: Order, shape: Shape, head: dict[str, Any]) -> AsyncGenerator[Event, None]:
    """Roles, pieces as they come, why each answer ended, and the usage where asked for.

    The first event is for `opened`: it comes when the prompt has been read, so that one that is too long is refused.
    """
    known, calling, heard, looks, begun = Told(), Calling(order), Sounding(order), Looks(order), False

    @cache
    def pattern(index: int) -> Pattern:
        return Pattern(lambda text: dump(shape.piece(order, head, index, text, None)))

    def pieces(index: int, told: Iterable[str | Call]) -> Iterator[Event]:
        for each in told:
            if isinstance(each, str):
                yield None, pattern(index).filled(each)
            elif isinstance(shape, Chat):
                for call in shape.calls(order, head, index, calling.calls(index).index(each), each):
                    yield None, dump(call)

    async with AsyncExitStack() as stack:
        updates = await stack.enter_async_context(aclosing(draw(service, order)))
        async for update in updates:
            if isinstance(update, Admitted):
                continue
            if not begun:
                begun = True
                yield None, None
                for index in range(order.request.outputs):
                    if (first := shape.first(order, head, index)) is not None:
                        yield None, dump(first)
            if isinstance(update, Spelt) and (text := known.new(update)):
                for event in pieces(update.output, calling.new(update.output, text)):
                    yield event
            elif isinstance(update, Grown) and isinstance(shape, Chat) and (sound := await heard.new(update)):
                yield None, dump(shape.sound(order, head, update.output, sound))
            elif isinstance(update, Previewed) and isinstance(shape, Chat) and (parts := looks.new(update)):
                yield None, dump(shape.picture(order, head, update.output, parts))
            elif isinstance(update, Finished):
                usage = order.wanted.delivery.usage
                about, files = _about(order, update), await stack.enter_async_context(open_files(service, update))
                held = Enclosed(files)
                drawn = pictures(order, update.files, held.words) if wants(order) else {}
                for index, made in enumerate(update.texts):
                    rest = [*calling.new(index, known.rest(index, made.text)), *calling.end(index)]
                    for event in pieces(index, rest):
                        yield event
                    if isinstance(shape, Chat) and files and order.form.format != TEXT:
                        async for sound in heard.rest(index, files[index]):
                            yield None, dump(shape.sound(order, head, index, sound))
                    if isinstance(shape, Chat) and index in drawn:
                        yield None, Parcel(dump(shape.picture(order, head, index, drawn[index])), held)
                    took = {} if usage or index < len(update.texts) - 1 else timed(update)
                    end = _warned(head | {"warnings": about["warnings"], **took}, calling)
                    yield None, dump(shape.piece(order, end, index, "", calling.reason(index, made.reason)))
                if usage:
                    yield None, dump(shape.last(order, head | about))


def _warned(head: dict[str, Any], calling: Calling) -> dict[str, Any]:
    """`head` with what there is to know of calls among its warnings."""
    return head | {"warnings": told([*(head["warnings"] or ()), *calling.warnings])}


def usage_of(made: Finished) -> protocol.TokenUsage:
    """The tokens that were read and written."""
    read_, written = made.remarks.prompt_tokens, sum(text.tokens for text in made.texts)
    reused = max((text.reused for text in made.texts), default=0)
    return protocol.TokenUsage(
        prompt_tokens=read_,
        completion_tokens=written,
        total_tokens=read_ + written,
        prompt_tokens_details=protocol.PromptDetails(cached_tokens=reused),
    )


def _about(order: Order, made: Finished) -> dict[str, Any]:
    warnings = told([*order.wanted.warnings, *made.remarks.warnings])
    return {
        "usage": usage_of(made),
        "timings": Made.of(made).seconds,
        "warnings": warnings,
        **Made.of(made).within,
    }
