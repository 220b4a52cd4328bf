"""An order for pictures: a request as its HTTP route read it, admitted, drawn by the workers, and collected.

The routes of images and chat share this. It counts every order in the metrics and frees its place in the queue
whatever happens. What the answer looks like is the routes' business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from starlette.requests import HTTPConnection
from starlette.requests import Request as HttpRequest

from omnimuse.core.errors import (
    DeadlineError,
    EngineDeadError,
    OmnimuseError,
    PoisonError,
    RequestCancelled,
    RequestError,
    WorkerLostError,
)
from omnimuse.core.request import Clip, Picture, Recording, Request
from omnimuse.deploy.wire import Finished, Form, MadeFile, Stepped, Update
from omnimuse.observe.fraction import DRAWING, TALKING, WRITING
from omnimuse.server.errors import refusal, to_api_error
from omnimuse.server.http.enclosed import Enclosed
from omnimuse.server.http.sse import Event, EventStream
from omnimuse.server.http.uploads import Role, Source
from omnimuse.server.http.watch import cancel_on_disconnect
from omnimuse.server.jobs.files import Files
from omnimuse.server.log import Entry
from omnimuse.server.orders.admission import Ticket
from omnimuse.server.orders.gate import Gate
from omnimuse.server.service import Service
from omnimuse.server.traces import Worked
from omnimuse.server.translate.aliases import Wanted
from omnimuse.server.translate.asks import NOTHING, patience, renamed, settled, to_form, to_request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What is wanted, the engine's request for it, the form of its files, and how long the client waits (seconds).

    `id` is that of the HTTP request, which the log and the client know; `parent` the client's `traceparent`.
    """

    wanted: Wanted
    request: Request
    form: Form
    patience: float | None
    task: str
    id: str
    parent: str | None = None

    def note(self, event: str, seconds: float | None = None, error: str = "") -> None:
        """Log what became of it."""
        about = {"task": self.task, "steps": self.request.steps, "outputs": self.request.outputs, "error": error}
        Entry("request", self.id, event, self.request.tenant, seconds, about).write(logger)


class Admitted:
    """The first thing that `draw` says: the order has its place in the queue."""


def place_order(
    service: Service,
    wanted: Wanted,
    http: HTTPConnection,
    task: str,
    came: Mapping[str, object] = NOTHING,
) -> Order:
    """The order for `wanted`, checked against the model. ApiError 404 for another model, RequestError for the rest.

    `came` is what came with it, decoded: `images`, `mask`, `videos`, `sounds`. In a stream the client hears of every
    step, so its read timeout bounds no wait for the whole.
    """
    check_model(service, wanted.model)
    wanted = settled(wanted, service.door)
    looks = wanted.delivery.partial_images
    request = asked_of(service, wanted, http, looks, came)
    wanted = doubted(service, wanted, request)
    waits = None if wanted.delivery.stream else patience(http.headers)
    return Order(wanted, request, to_form(wanted, service.options.guard.tell), waits, task, *_known_as(http))


def asked_of(
    service: Service, wanted: Wanted, http: HTTPConnection, looks: int = 0, came: Mapping[str, object] = NOTHING
) -> Request:
    """The request for `wanted`, checked against the model, with its deadline as far as speeds are known."""
    return service.admission.promised(to_request(wanted, service.door, http.state.tenant, looks, came))


def _known_as(http: HTTPConnection) -> tuple[str, str | None]:
    """The id of a request, and the trace of its client that it is part of."""
    return http.state.request_id, http.headers.get("traceparent")


def doubted(service: Service, wanted: Wanted, request: Request) -> Wanted:
    """`wanted` with what the client should know of its request beforehand, though it is legal."""
    if service.taught is None:
        return wanted
    return replace(wanted, warnings=(*wanted.warnings, *service.taught.doubts(request.prompt, request.params)))


def check_model(service: Service, name: str | None) -> None:
    """ApiError 404 unless `name` is one of the names of the model that is served, or was left out."""
    served = service.options.served
    if name is not None and name not in served:
        message = f"there is no model {name[:100]!r} here; this server serves {', '.join(served)}"
        if name in service.shelf.files:
            message += f'; {name!r} is an adapter of it: ask for `"lora": {json.dumps(name)}`'
        raise refusal("model_not_found", message, "model")


def check_task(service: Service, task: str) -> None:
    """ApiError 400 unless the model does `task`."""
    tasks = service.door.tasks
    if task not in tasks:
        does = ", ".join(tasks)
        raise refusal("unsupported_task", f"{service.options.model_name} does {does}, and this is {task}", "model")


def refuse_key(http: HttpRequest) -> None:
    """ApiError 400 for an Idempotency-Key where nothing is kept that it could stand for."""
    if "idempotency-key" in http.headers:
        message = f"{http.url.path} keeps nothing that an Idempotency-Key could stand for; leave it out"
        raise refusal("unsupported_parameter", message, "idempotency-key")


def refuse_blocks(wanted: Wanted, where: str) -> None:
    """ApiError 400 for `block_timings` of an answer that has no place for them; `where` is one that has."""
    if wanted.delivery.blocks:
        name = wanted.names["blocks"]
        raise refusal("unsupported_parameter", f"{name} has no place in this answer; {where} tells it", name)


async def may_read(service: Service, http: HTTPConnection) -> None:
    """Raises unless something that would be decoded now could come in afterwards."""
    gate = Gate(service.workers, service.files, service.admission, service.metrics)
    await gate.check()
    gate.check_room(http.state.tenant)


async def read_pictures(service: Service, http: HttpRequest, sources: Sequence[Source]) -> tuple[Picture, ...]:
    """The pictures that came with a request, decoded; nothing is decoded for a request that could not come in now."""
    await may_read(service, http)
    most, lease = service.door.limits.max_images, http.state.lease
    return await cancel_on_disconnect(http, service.uploads.read(sources, most, http.state.tenant, lease.add))


async def read_mask(service: Service, http: HttpRequest, sources: Sequence[Source]) -> Picture | None:
    """The mask that came with a request, decoded; ApiError 400 for two. After `read_pictures`."""
    if len(sources) > 1:
        message = f"{sources[0].name} and {sources[1].name} are both a mask; leave one of them out"
        raise refusal("conflicting_parameters", message, sources[1].name)
    if not sources:
        return None
    reading = service.uploads.read_mask(sources[0], http.state.tenant, http.state.lease.add)
    return await cancel_on_disconnect(http, reading)


async def read_videos(
    service: Service,
    http: HttpRequest,
    sources: Sequence[Source],
    wanted: Wanted,
    *,
    masks: bool = False,
    watched: int = 0,
    heard: bool = False,
) -> tuple[Clip, ...]:
    """The videos that came with a request, or `masks` over them, decoded, as many frames of each as can be used, or so
    many of what is only `watched`, and perhaps `heard`; as `read_pictures`.
    """
    await may_read(service, http)
    door = service.door
    frames = watched or min(wanted.params.num_frames or door.defaults.num_frames or 1, door.limits.max_frames)
    most, lease = door.limits.max_videos, http.state.lease
    role: Role = "mask" if masks else "heard" if heard else "watched" if watched else "changed"
    reading = service.uploads.read_videos(sources, most, frames, http.state.tenant, lease.add, role)
    return await cancel_on_disconnect(http, reading)


async def read_sounds(service: Service, http: HttpRequest, sources: Sequence[Source]) -> tuple[Recording, ...]:
    """The sounds that came with a request, decoded; as `read_pictures`."""
    await may_read(service, http)
    limits = service.door.limits.sound
    most, lease = 0 if limits is None else limits.max_inputs, http.state.lease
    return await cancel_on_disconnect(http, service.uploads.read_sounds(sources, most, http.state.tenant, lease.add))


async def admit(service: Service, order: Order) -> Ticket:
    """A place in the queue; CapacityError, DeadlineUnreachable or ApiError when there is none to be had."""
    gate = Gate(service.workers, service.files, service.admission, service.metrics)
    await gate.check()
    return gate.enter(order.request, order.patience)


async def draw(service: Service, order: Order) -> AsyncGenerator[Admitted | Update, None]:
    """Admit the order and have it drawn: Admitted, steps and previews, and Finished at last.

    Closing the generator, or cancelling who waits for it, stops the work at its next step.
    """
    ticket = await admit(service, order)
    began, outcome, stepped, why = time.monotonic(), "failed", False, ""
    timings: dict[str, float] = {}
    order.note("accepted")
    try:
        with ticket:
            yield Admitted()
            updates = cast(AsyncGenerator[Update, None], service.workers.run(order.request, order.form))
            async with aclosing(updates):
                async for update in updates:
                    if isinstance(update, Finished):
                        ticket.close(served=True)
                        outcome, timings = "completed", update.timings
                        _count(service, update)
                    elif isinstance(update, Stepped):
                        stepped = True
                        if update.stage in (DRAWING, WRITING, TALKING):
                            ticket.reach(update.output, update.stage, update.step)
                    yield update
    except (PoisonError, WorkerLostError) as error:
        service.admission.poison.note(order.request, error)
        why = to_api_error(error).code
        raise
    except DeadlineError:
        outcome = "expired"
        raise
    except (RequestCancelled, asyncio.CancelledError, GeneratorExit):
        if outcome != "completed":
            outcome = "cancelled"
            service.metrics.cancelled("running" if stepped else "queued")
        raise
    except RequestError as error:  # of what was not known before it was made
        why = to_api_error(error).code
        raise renamed(error, order.wanted.names) from error
    except OmnimuseError as error:
        why = to_api_error(error).code
        raise
    finally:
        seconds = time.monotonic() - began
        order.note(outcome, seconds, why)
        service.metrics.ended(order.task, outcome, seconds)
        tenant, parent = order.request.tenant, order.parent
        service.tracer.ended(Worked("request", order.id, order.task, outcome, seconds, tenant, why, timings, parent))


async def finished(service: Service, order: Order) -> Finished:
    """The order, drawn to its end; its files are in the spool."""
    made: Finished | None = None
    async with aclosing(draw(service, order)) as updates:
        async for update in updates:
            if isinstance(update, Finished):
                made = update
    if made is None:
        raise EngineDeadError("the worker ended the request without a result; try again")
    return made


async def contents(files: Files, made: Sequence[MadeFile]) -> Enclosed:
    """As `taken`, to be enclosed in an answer."""
    return Enclosed(await taken(files, made))


async def taken(files: Files, made: Sequence[MadeFile]) -> list[BinaryIO]:
    """The files, opened and taken from the spool; none stays there even if the caller is cancelled meanwhile."""
    taking = asyncio.ensure_future(asyncio.to_thread(_take, files, made))
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        taking.add_done_callback(_close)
        raise


async def opened(source: AsyncGenerator[Event, None]) -> EventStream:
    """A stream of `source`, whose first event only says that the order was admitted and is not sent.

    What refuses the order is raised here, while the answer can still have a status of its own; and a generator that
    has begun frees what it holds, even if the client goes before it reads anything.
    """
    await anext(source)
    return EventStream(source, done=True)


def _take(files: Files, made: Sequence[MadeFile]) -> list[BinaryIO]:
    found: list[BinaryIO] = []
    try:
        for file in made:
            found.append(files.take(file))
    except BaseException:
        for opened_file in found:
            opened_file.close()
        for file in made:
            files.discard(file)
        raise
    return found


def _close(taking: asyncio.Future[list[BinaryIO]]) -> None:
    """Close files that were opened for nobody."""
    if not taking.cancelled() and taking.exception() is None:
        for file in taking.result():
            file.close()


def _count(service: Service, made: Finished) -> None:
    pixels = sum(file.width * file.height * file.frames for file in made.files)
    remarks = made.remarks
    service.metrics.drawn(pixels, made.timings, remarks.drew, made.memory, remarks.needs, remarks.labels)
    for text in made.texts:
        service.metrics.wrote(remarks.prompt_tokens, text.reused, text.tokens)
