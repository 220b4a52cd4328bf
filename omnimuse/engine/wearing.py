"""What requests wear is read before they begin, by all ranks together: who is refused then, and who waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omnimuse.core.errors import CapacityError, EngineDeadError, OmnimuseError
from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.engine.foretelling import Unwanted
from omnimuse.worker.adapters import try_on_together
from omnimuse.worker.plan import TickPlan

if TYPE_CHECKING:
    from omnimuse.engine.engine import Engine


def begins(engine: Engine, request: Request) -> Request | OmnimuseError:
    """`request` in the way in which it begins now; else why it does not, for which it waits where others only are in
    its way (CapacityError). In a pool, the front has chosen the way.
    """
    try:
        try_on(engine, engine.fitting.untried(request))
        return engine.fitting.first_way(request, engine.space) if engine.runner.hand.all else request
    except Unwanted:
        return CapacityError("nobody waits for it any more")
    except EngineDeadError:
        raise
    except OmnimuseError as error:
        return error


def try_on(engine: Engine, loras: Sequence[Lora]) -> None:
    """Read what requests are to wear, before any does; comes between two ticks. RequestError for what does not fit,
    CapacityError while others take its memory.
    """
    if loras:
        engine.tell(TickPlan(try_on=tuple(loras)))
        wrong = try_on_together(engine.runner.pipeline.ctx.adapters, loras, engine.mesh)
        if wrong is not None:
            raise wrong
