"""POST /v1/images/generations and /v1/images/edits: pictures at once, as a stream, or as a job that is kept.

A job is made for `background: true` and for a request with an Idempotency-Key; `routes/image_jobs.py` answers for
those. How a request is read, admitted and drawn is in `server/orders/order.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnimuse.core.amounts import told_bytes
from omnimuse.deploy.wire import Finished, Grown, MadeFile, Spelt
from omnimuse.server.errors import refusal
from omnimuse.server.http.bodies import is_form, read_any, read_json
from omnimuse.server.http.enclosed import JSONWithFiles
from omnimuse.server.http.picture_file import picture_file
from omnimuse.server.http.sse import Event
from omnimuse.server.http.uploads import uploaded
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.jobs.files import Files
from omnimuse.server.jobs.row import Idempotency
from omnimuse.server.openapi import Operation
from omnimuse.server.orders.order import (
    Admitted,
    Order,
    check_model,
    contents,
    draw,
    finished,
    opened,
    place_order,
    read_mask,
    read_pictures,
    refuse_blocks,
    taken,
)
from omnimuse.server.protocol import images as protocol
from omnimuse.server.routes.absent import for_tasks
from omnimuse.server.routes.files import Links
from omnimuse.server.routes.image_jobs import ImageJobs, idempotency_of, look_of
from omnimuse.server.service import Service
from omnimuse.server.translate.aliases import read
from omnimuse.server.translate.answers import Events, Made, response
from omnimuse.server.translate.fields import TABLE

TASK, EDIT = "text-to-image", "image-to-image"
EDITS = "/v1/images/edits"
MASKS = frozenset(field.name for field in TABLE["edit"] if field.target == "mask")
"""The names that a mask may have."""
OPERATIONS = (
    Operation(
        "POST",
        "/v1/images/generations",
        "Make pictures from a text. With `stream` the answer is text/event-stream, with `background` a job.",
        body=protocol.ImageRequest,
        responses={200: protocol.ImagesResponse},
    ),
    Operation(
        "POST",
        EDITS,
        "Draw pictures anew from pictures, as far as `strength` says and where a mask says so; refused for models that "
        "work from text only.",
        body=protocol.ImageEditRequest,
        form=True,
        responses={200: protocol.ImagesResponse},
    ),
    Operation(
        "GET", "/v1/images/{id}", "A picture job and, at its end, the pictures.", responses={200: protocol.ImageJob}
    ),
    Operation("DELETE", "/v1/images/{id}", "Remove a picture job.", responses={200: protocol.ImageDeleted}),
)


def routes(service: Service) -> list[Route]:
    """The endpoints of pictures."""
    links = Links(service.files.key)
    jobs = ImageJobs(service, links)

    async def generations(request: Request) -> Response:
        order, idem = await _read_text(service, request)
        request.state.lease.close()
        return await answered(request, order, idem)

    async def edits(request: Request) -> Response:
        order, idem = await _read_edit(service, request)
        request.state.lease.close()  # of what came, only the order is left
        return await answered(request, order, idem)

    async def answered(request: Request, order: Order, idem: Idempotency | None) -> Response:
        if order.wanted.output.transport == "file":
            refuse_blocks(order.wanted, "another response_format")
        if idem is not None or order.wanted.delivery.durable:
            return await jobs.answer(request, order, idem)
        if order.wanted.delivery.stream:
            return await opened(_events(service, order))
        if order.wanted.output.transport == "url":
            await _check_links(service, request.state.tenant)
        made = await cancel_on_disconnect(request, finished(service, order))
        return await _whole(service, links, request, order, made)

    return [
        Route(path, for_tasks(service, tasks, handler), methods=[method])
        for method, path, handler, tasks in (
            ("POST", "/v1/images/generations", generations, (TASK,)),
            ("POST", EDITS, edits, (EDIT,)),
            ("GET", "/v1/images/{id}", jobs.show, (TASK, EDIT)),
            ("DELETE", "/v1/images/{id}", jobs.delete, (TASK, EDIT)),
        )
    ]


async def _read_text(service: Service, request: Request) -> tuple[Order, Idempotency | None]:
    fields = await read_json(request)
    order = place_order(service, read(fields, "image", service.door), request, TASK)
    return order, await idempotency_of(request, fields)


async def _read_edit(service: Service, request: Request) -> tuple[Order, Idempotency | None]:
    """What an edit asks for. The bytes that came are in nobody's hands when this returns."""
    fields, uploads = await read_any(request)
    wanted = read(fields, "edit", service.door, form=is_form(request), files=uploads)
    check_model(service, wanted.model)
    masks = {name: parts for name, parts in uploads.items() if name.partition("[")[0] in MASKS}
    pictures_sent = {name: parts for name, parts in uploads.items() if name not in masks}
    sources = uploaded(pictures_sent, wanted.urls, wanted.names.get("urls", "url"))
    if not sources:
        raise refusal("missing_parameter", "image is missing; upload the picture to edit", "image")
    pictures = await read_pictures(service, request, sources)
    mask = await read_mask(service, request, uploaded(masks, wanted.part.mask_urls, wanted.names.get("mask", "mask")))
    wanted = replace(wanted, urls=(), part=replace(wanted.part, mask_urls=()))
    order = place_order(service, wanted, request, EDIT, {"images": pictures, "mask": mask})
    return order, await idempotency_of(request, fields, uploads)


async def _check_links(service: Service, tenant: str) -> None:
    """ApiError 429 when as much is kept behind links of `tenant` as may be."""
    most = service.options.guard.max_kept
    if (size := await asyncio.to_thread(service.files.linked, tenant)) >= most:
        service.metrics.rejected("quota_exceeded")
        kept = f"{told_bytes(size)} are kept behind links of this key, and at most {told_bytes(most)} may be"
        raise refusal("quota_exceeded", f"{kept}; ask for b64_json, or wait until they expire", "response_format")


async def _whole(service: Service, links: Links, request: Request, order: Order, made: Finished) -> Response:
    """All pictures in one JSON answer, as bytes or as links."""
    look = look_of(order)
    drawn, name = Made.of(made), order.request.id
    headers = drawn.headers(look.warnings)
    if look.transport == "file":
        return await picture_file(service.files, made.files, await taken(service.files, made.files), headers)
    if look.transport == "url":
        until = time.time() + service.options.keep
        kept = await asyncio.shield(asyncio.to_thread(_keep, service.files, made.files, request.state.tenant))
        places = [{"url": links.url(str(request.base_url), file, until)} for file in kept]
        return JSONResponse(response(service.door, look, drawn, places, time.time(), name), headers=headers)
    pictures = await contents(service.files, made.files)
    places = [{"b64_json": word} for word in pictures.words]
    return JSONWithFiles(response(service.door, look, drawn, places, time.time(), name), pictures, headers)


async def _events(service: Service, order: Order) -> AsyncGenerator[Event, None]:
    """Steps, previews and pictures as they come; the first event is for `opened`."""
    delivery = order.wanted.delivery
    events = Events(order.request, look_of(order), delivery.partial_images, delivery.progress)
    async with aclosing(draw(service, order)) as updates:
        async for update in updates:
            if isinstance(update, Admitted):
                yield None, None
            elif isinstance(update, Finished):
                drawn = Made.of(update)
                with await contents(service.files, update.files) as pictures:
                    for event in events.completed(service.door, drawn, pictures):
                        yield event
            elif not isinstance(update, Grown | Spelt):
                for event in events.see(update):
                    yield event


def _keep(files: Files, made: Sequence[MadeFile], tenant: str) -> list[str]:
    """Move files to where links lead; none stays in the spool."""
    try:
        return [files.keep(file, files.new_link_id(tenant)) for file in made]
    finally:
        for file in made:
            files.discard(file)
