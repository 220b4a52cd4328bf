"""POST /v1/chat/completions for models that draw: the last user message is the prompt, the answer is pictures.

A picture in that message is what a model that takes pictures starts from; if there is none, the last one of earlier
messages, be it sent or drawn. Nothing else of these has a part in the picture; `warnings` say both. Where the pictures
of an answer are, each request chooses (`_style`).
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from omnimuse.deploy.wire import Finished, MadeFile, Previewed
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import read_json
from omnimuse.server.http.download import MEDIA
from omnimuse.server.http.enclosed import Enclosed, JSONWithFiles, Parcel
from omnimuse.server.http.sse import Event
from omnimuse.server.http.strict_json import Written
from omnimuse.server.http.uploads import Source
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Admitted,
    Order,
    check_model,
    check_task,
    contents,
    draw,
    finished,
    opened,
    place_order,
    read_pictures,
    refuse_key,
)
from omnimuse.server.protocol import chat as protocol
from omnimuse.server.protocol.images import dump
from omnimuse.server.routes.absent import for_tasks
from omnimuse.server.routes.aloud import written
from omnimuse.server.routes.pictured import Looks
from omnimuse.server.routes.talk import Chat, answer
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import Talk, Wanted, read
from omnimuse.server.translate.answers import Made, image_tokens, timed, told
from omnimuse.server.translate.asks import NOTHING
from omnimuse.server.translate.parts import address
from omnimuse.server.translate.values import shown

TASK, EDIT = "text-to-image", "image-to-image"
PATH = "/v1/chat/completions"
ROLES = ("system", "developer", "user", "assistant")
STYLES = ("images", "parts", "markdown")
"""Where pictures may be: `message.images`, parts of the content, or Markdown in its text."""
HEADER = "x-omnimuse-pictures"
_MARKDOWN = re.compile(r"!\[[^\]]*\]\((data:image/[^)]+)\)")

OPERATIONS = (
    Operation(
        "POST",
        PATH,
        "Make pictures from the last user message. With `stream` the answer is text/event-stream.",
        body=protocol.ChatRequest,
        responses={200: protocol.ChatCompletion},
    ),
)


def routes(service: Service) -> list[Route]:
    """The endpoint of chat."""

    async def completions(request: Request) -> Response:
        refuse_key(request)
        fields, both = await read_json(request), service.door.spec.converses
        if both and fields.get("modalities") == ["text"]:
            return await answer(service, request, fields, "talk", Chat())
        order, style = await _read(service, request, fields)
        request.state.lease.close()  # of what came, only the order is left
        if order.wanted.delivery.stream:
            return await opened(_chunks(service, order, style))
        made = await cancel_on_disconnect(request, finished(service, order))
        drawn = await contents(service.files, made.files)
        told_whole = _completion(service, order, made, drawn, style)
        return JSONWithFiles(told_whole, drawn, Made.of(made).headers(order.wanted.warnings))

    return [Route(PATH, for_tasks(service, (TASK, EDIT), completions), methods=["POST"])]


async def _read(service: Service, request: Request, fields: dict[str, Any]) -> tuple[Order, frozenset[str]]:
    """What a chat asks for, and the styles of its answer. The bytes that came are in nobody's hands then."""
    wanted = read(fields, "chat", service.door)
    check_model(service, wanted.model)
    _check_modalities(wanted)
    said = said_last(wanted.talk.messages, takes_images=EDIT in service.door.tasks)
    check_task(service, EDIT if said.pictures else TASK)
    style = _style(service, request, wanted)
    if service.door.spec.converses and "text" in (wanted.talk.modalities or ()):
        wanted = written(wanted, "text", "image")
    told = _left_out(len(wanted.talk.messages or ()) - 1, said)
    wanted = replace(wanted, prompt=said.text, talk=Talk(), warnings=(*wanted.warnings, *told))
    pictures = await read_pictures(service, request, said.pictures) if said.pictures else ()
    return place_order(service, wanted, request, EDIT if pictures else TASK, {"images": pictures}), style


def _style(service: Service, request: Request, wanted: Wanted) -> frozenset[str]:
    """Where this client looks for pictures: where its header says, else where the operator says, else in `images`.

    One that names no modalities knows of text only, perhaps: it gets Markdown as well. ApiError for another style.
    """
    chosen = request.headers.get(HEADER)
    if chosen is not None and chosen not in STYLES:
        raise refusal("invalid_value", f"{HEADER}={shown(chosen)} is not known; use {', '.join(STYLES)}", HEADER)
    if chosen is not None:
        return frozenset({chosen})
    if service.options.clients.compat == "vllm-omni":
        return frozenset({"parts"})
    return frozenset({"images"} if wanted.talk.modalities is not None else {"images", "markdown"})


@dataclass(frozen=True)
class Said:
    """What one message of the user says: its text, and where its pictures are; `earlier` if an earlier one has them."""

    text: str
    pictures: tuple[Source, ...] = ()
    earlier: bool = False


def said_last(messages: list[Any] | None, takes_images: bool) -> Said:
    """What the last user message says; ApiError 400 for messages that are none, or what this model cannot read."""
    if not messages:
        raise refusal(
            "missing_parameter", "messages is missing or empty; the last user message says what to draw", "messages"
        )
    last, before = Said(""), list[Source]()
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise refusal("invalid_value", f"{name} is no message with a role of {', '.join(ROLES)}", name)
        if role == "user":
            last = _said(message.get("content"), f"{name}.content", takes_images)
            before += last.pictures
        elif role == "assistant" and takes_images:
            before += _drawn(message, name)
    if takes_images and before and not last.pictures:
        last = replace(last, pictures=(before[-1],), earlier=True)
    if not last.text.strip():
        raise refusal("invalid_value", "there is no text in the last message of the user; say what to draw", "messages")
    return last


def _said(content: Any, name: str, takes_images: bool) -> Said:
    """What one message says: a string, or parts of which each is text or, where the model takes them, a picture."""
    if isinstance(content, str):
        return Said(content)
    if not isinstance(content, list) or not content:
        raise refusal("invalid_value", f"{name} is neither text nor a list of parts", name)
    texts: list[str] = []
    pictures: list[Source] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url" and takes_images:
            place = f"{name}[{index}].image_url"
            pictures.append(address(part.get("image_url"), place, "data:image/png;base64,..."))
            continue
        if kind in ("image_url", "input_audio", "file", "video_url", "audio_url"):
            reads = "text and pictures" if takes_images else "text"
            message = f"{name}[{index}] is {kind}, and this model works from {reads} only; leave it out"
            raise refusal("unsupported_task", message, f"{name}[{index}]")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise refusal(
                "invalid_value", f'{name}[{index}] is no part {{"type": "text", "text": ...}}', f"{name}[{index}]"
            )
        texts.append(part["text"])
    return Said("\n".join(texts), tuple(pictures))


def _drawn(message: dict[str, Any], name: str) -> list[Source]:
    """The pictures in an answer that a client sends back, wherever they are; what is none is passed over."""
    content = message.get("content")
    parts = [*(content if isinstance(content, list) else ()), *(message.get("images") or ())]
    texts = [content, *(part.get("text") for part in parts if isinstance(part, dict))]
    urls = [url for text in texts if isinstance(text, str) for url in _shown(text)]
    for part in parts:
        place = part.get("image_url") if isinstance(part, dict) else None
        url = place.get("url") if isinstance(place, dict) else place
        urls += [url] if isinstance(url, str) else []
    return [Source(name, url=url) for url in urls]


def _shown(text: str) -> list[str]:
    """The addresses of the pictures that a text shows in Markdown."""
    apart = {str(url): url for url in text.urls} if isinstance(text, Written) else {}
    return [apart.get(url, url) for url in _MARKDOWN.findall(text)]


def _check_modalities(wanted: Wanted) -> None:
    given = wanted.talk.modalities
    if given is None:
        return
    if not all(name in ("text", "image") for name in given) or "image" not in given:
        message = 'this model answers with pictures; use modalities ["image"] or ["text", "image"]'
        code = "unsupported_parameter" if all(isinstance(name, str) for name in given) else "invalid_value"
        raise refusal(code, message, "modalities")


def _completion(
    service: Service, order: Order, made: Finished, drawn: Enclosed, style: frozenset[str]
) -> dict[str, Any]:
    choices = [
        protocol.Choice(index=index, message=each) for index, each in enumerate(_messages(order, made, drawn, style))
    ]
    answer = protocol.ChatCompletion(
        id=f"chatcmpl-{order.request.id}",
        created=int(time.time()),
        model=service.options.model_name,
        choices=choices,
        usage=_usage(service, made),
        timings=Made.of(made).seconds,
        warnings=_warnings(order, made),
        **Made.of(made).within,
    )
    plain = dump(answer)
    for choice in plain["choices"]:
        choice["message"].setdefault("content", None)  # clients expect the key
    return plain


async def _chunks(service: Service, order: Order, style: frozenset[str]) -> AsyncGenerator[Event, None]:
    """A first chunk with the role, looks at what is not finished where asked for, one chunk with the pictures of each
    choice, its end, and the usage where asked for.
    """
    chunks, looks = _Chunks(service, order), Looks(order)
    async with aclosing(draw(service, order)) as updates:
        async for update in updates:
            if isinstance(update, Admitted):
                yield None, None
                yield chunks.make([protocol.ChunkChoice(index=0, delta=protocol.Message(role="assistant", content=""))])
            elif isinstance(update, Previewed) and (parts := looks.new(update)):
                choice = update.output if order.wanted.delivery.split else 0
                yield chunks.make([protocol.ChunkChoice(index=choice, delta=protocol.Message(images=parts))])
            elif isinstance(update, Finished):
                usage = order.wanted.delivery.usage
                with await contents(service.files, update.files) as drawn:
                    messages = _messages(order, update, drawn, style)
                    for index, delta in enumerate(messages):
                        if index == 0:
                            delta.role = None
                        name, chunk = chunks.make([protocol.ChunkChoice(index=index, delta=delta)])
                        yield name, Parcel(chunk, drawn)
                        end = protocol.ChunkChoice(index=index, delta=protocol.Message(), finish_reason="stop")
                        took = {} if usage or index < len(messages) - 1 else timed(update)
                        yield chunks.make([end], took | {"warnings": _warnings(order, update)})
                if usage:
                    made = Made.of(update)
                    about = {"usage": _usage(service, update), "timings": made.seconds, **made.within}
                    yield chunks.make([], about)


class _Chunks:
    """Makes the chunks of one streamed completion."""

    def __init__(self, service: Service, order: Order) -> None:
        self._service, self._order, self._created = service, order, int(time.time())

    def make(self, choices: list[protocol.ChunkChoice], about: Mapping[str, Any] = NOTHING) -> Event:
        """A chunk that tells `about` the answer, too."""
        chunk = protocol.ChatChunk(
            id=f"chatcmpl-{self._order.request.id}",
            created=self._created,
            model=self._service.options.model_name,
            choices=choices,
            **about,
        )
        return None, dump(chunk)


def _messages(order: Order, made: Finished, drawn: Enclosed, style: frozenset[str]) -> list[protocol.Message]:
    """What is said in each choice: pictures, and before them what was thought of, if anything was."""
    parts, texts = _parts(order, made.files, drawn), [text.text for text in made.texts]
    if not order.wanted.delivery.split:
        return [_message(style, parts, texts)]
    return [_message(style, [part], texts[index : index + 1]) for index, part in enumerate(parts)]


def _message(style: frozenset[str], parts: list[protocol.ImagePart], texts: Sequence[str]) -> protocol.Message:
    if "parts" in style:
        return protocol.Message(role="assistant", content=[*(protocol.TextPart(text=text) for text in texts), *parts])
    shown = [f"![seed {part.seed}]({part.image_url.url})" for part in parts] if "markdown" in style else []
    return protocol.Message(
        role="assistant",
        content="\n\n".join([*texts, *shown]) or None,
        images=parts if "images" in style else None,
    )


def _parts(order: Order, files: Sequence[MadeFile], drawn: Enclosed) -> list[protocol.ImagePart]:
    media = MEDIA[order.form.format.lower()]
    return [
        protocol.ImagePart(image_url=protocol.ImageUrl(url=f"data:{media};base64,{word}"), index=index, seed=file.seed)
        for index, (file, word) in enumerate(zip(files, drawn.words, strict=True))
    ]


def _usage(service: Service, made: Finished) -> protocol.ChatUsage:
    tokens, read_ = image_tokens(service.door, made.files), made.remarks.prompt_tokens
    return protocol.ChatUsage(prompt_tokens=read_, completion_tokens=tokens, total_tokens=tokens + read_)


def _warnings(order: Order, made: Finished) -> list[str] | None:
    return told([*order.wanted.warnings, *made.remarks.warnings])


def _left_out(others: int, said: Said) -> list[str]:
    """What the client should know of the messages beside the last one of the user."""
    if not others:
        return []
    if said.earlier:
        where = said.pictures[0].name.partition(".")[0]
        return [
            f"the drawing began with the picture in {where}; nothing else of {others} other messages had a part in it"
        ]
    return [f"the picture was made from the last user message alone; {others} other messages had no part in it"]
