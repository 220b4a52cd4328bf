"""The first request of an engine, before anybody else's: what takes long at first is over then."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from omnimuse.core.errors import ConfigError
from omnimuse.core.output import Done, Event, Failed
from omnimuse.worker.warm_up import describe, warm_up_ask

if TYPE_CHECKING:
    from omnimuse.deploy.pools import Pools
    from omnimuse.engine.local import Background as OneEngine

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that it may take; compiling takes most of them


def warm_up(background: OneEngine | Pools, wanted: str, patience: float = PATIENCE) -> None:
    """Draw what `wanted` names, so that the first request finds everything in place, and of an engine small ones of its
    kind, where it is larger than these, so that what it takes is known; at most `patience` seconds.

    What goes wrong is logged and ends nothing: a request of another size may well be drawn. But ConfigError for a
    choice that no request can be drawn with.
    """
    ask = warm_up_ask(wanted, background.door)
    if ask is None:
        return
    from omnimuse.engine.local import Background

    events: SimpleQueue[Event] = SimpleQueue()
    began, request = time.monotonic(), background.make_request(ask)
    background.submit(request, events.put)
    last, what = _last(events, began + patience), describe(ask)
    seconds = time.monotonic() - began
    if isinstance(last, Done):
        logger.info("warming up with %s, %.1f s", what, seconds)
        if isinstance(background, Background):
            background.learn(request, lambda: time.monotonic() < began + patience)
        return
    if isinstance(last, Failed) and isinstance(last.error, ConfigError):
        raise last.error
    background.cancel(request.id)
    why = f"failed: {last.error}" if isinstance(last, Failed) else "was stopped: it took too long"
    logger.warning(
        "warming up with %s, %.1f s, %s. Requests are taken all the same; "
        "`--warm-up none` leaves it out, `--warm-up WxH` draws another size",
        what,
        seconds,
        why,
    )


def _last(events: SimpleQueue[Event], until: float) -> Event | None:
    """The event that ends a request, or None when it has not come by then."""
    with suppress(Empty):
        while not isinstance(event := events.get(timeout=max(0.0, until - time.monotonic())), Done | Failed):
            pass
        return event
    return None
