"""Stops work whose client has gone, or takes nothing. Called by the edge, and by routes that answer once, when the
whole result is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from omnimuse.core.errors import RequestCancelled

T = TypeVar("T")


class ClientGone(RequestCancelled):
    """The client closed its connection before the answer; there is nobody to tell."""


class ReaderStalled(RequestCancelled):
    """The client takes nothing of the response; its connection is closed."""


async def cancel_on_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`; when the client goes first, `work` is cancelled and has ended before ClientGone is raised.

    The body must have been read before. Cancelling the caller cancels `work`, too.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        await stop(gone)
        await stop(task)
    raise ClientGone("the client closed the connection before the work was done")


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has closed its connection; what else it sends is ignored."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def stop(task: asyncio.Future[T]) -> None:
    """Cancel `task` and wait until it has ended; its result or error is dropped, unless it is somebody else's to see.

    The error of a task that had already ended is the caller's, who has read it.
    """
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # seen: asyncio does not report it as lost


async def passed_on(send: Send, message: Message, stall: float, scope: Scope) -> None:
    """Send `message`; where the client does not take it in so many seconds, it is cut off, and ReaderStalled raised."""
    try:
        async with asyncio.timeout(stall):
            await send(message)
    except TimeoutError:
        await abort(scope)
        raise ReaderStalled(f"the client took nothing for {stall:g} s") from None


async def abort(scope: Scope) -> None:
    """Close the connection at once, with what still waits to be sent; without our `Connection`, the server does."""
    close = scope["state"].get("abort")
    if close is not None:
        close()
        await asyncio.sleep(0)  # the server learns of it before this request ends
