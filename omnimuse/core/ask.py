"""What somebody asks for, before a model has heard of it, and what of it is the same for every model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omnimuse.core.bounds import is_text, real, whole
from omnimuse.core.deadlines import Within, class_named
from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams

MAX_STEPS = 10_000
MAX_PRIORITY = 100
MAX_TIMEOUT = 1e9
MAX_TENANT = 256


@dataclass(frozen=True)
class Ask:
    """A prompt with how it should be treated; what `make_request` starts from.

    `deadline` is when it is wanted: in so many seconds from submission, or by the name of a class
    (`ScheduleConfig.deadlines`); what is not there by then is given up. `timeout` says the same in seconds only.
    `previews` asks for a preview every so many steps (0: none), `chunks` for pieces of an output as they are finished,
    where the model finishes it piece by piece, `blocks` for what every block of a network takes (`Result.blocks`).
    """

    prompt: str | Mapping[str, Any]
    params: DiffusionParams = DiffusionParams()
    priority: int = 0
    timeout: float | None = None
    tenant: str = ""
    previews: int = 0
    chunks: bool = False
    deadline: float | str | None = None
    blocks: bool = False

    def within(self, classes: Mapping[str, Within]) -> Within:
        """When it is wanted, by these `classes`; RequestError for what an ask cannot say."""
        whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        whole("previews", self.previews, 0, MAX_STEPS)
        if not isinstance(self.tenant, str) or len(self.tenant) > MAX_TENANT or not is_text(self.tenant):
            raise RequestError(f"tenant={self.tenant!r:.80} is not a name of at most {MAX_TENANT} characters", "tenant")
        if self.timeout is not None and self.deadline is not None:
            raise RequestError("deadline and timeout both say when it is wanted; leave one of them out", "deadline")
        if isinstance(self.deadline, str):
            return class_named(self.deadline, classes)
        name, seconds = ("timeout", self.timeout) if self.deadline is None else ("deadline", self.deadline)
        if isinstance(seconds, int | float) and seconds <= 0:  # of which the nearest that is allowed has no name
            allowed = f"use a number of seconds above 0, at most {MAX_TIMEOUT:g}"
            raise RequestError(f"{name}={seconds} is not allowed; {allowed}", name)
        real(name, seconds, 0.0, MAX_TIMEOUT)
        return Within(seconds)
