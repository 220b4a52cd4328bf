"""What the server asks of whoever draws; routes, jobs and the gate depend on this alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from omnimuse.core.loras import Lora
from omnimuse.core.request import Request
from omnimuse.deploy.wire import Form, Update
from omnimuse.worker.pace import Shared


class Workers(Protocol):
    """Who draws: `engine.pool.Pool`, or a fake in tests."""

    @property
    def ready(self) -> bool:
        """Whether at least one worker can take a request now."""
        ...

    @property
    def broken(self) -> str:
        """Why no worker will ever be ready; empty while there is hope."""
        ...

    @property
    def asleep(self) -> bool:
        """Whether the weights are away, and requests wait."""
        ...

    @property
    def away(self) -> list[str]:
        """Pools of the model that no request can go through now; empty where it is in none."""
        ...

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """The bytes of every component, and of its largest block where these come in one at a time."""
        ...

    @property
    def adapters(self) -> tuple[int, int]:
        """The bytes of adapters that are worn, in all of them, and of those that nobody wears."""
        ...

    @property
    def place(self) -> dict[str, str]:
        """The dtype and the device the workers compute with; empty until one is ready."""
        ...

    @property
    def company(self) -> list[Shared]:
        """What shared forwards took, of their time apart; empty until some were measured."""
        ...

    async def try_on(self, loras: Sequence[Lora]) -> None:
        """Have them read what requests are to wear; RequestError, or CapacityError, for what any cannot wear."""
        ...

    def run(self, request: Request, form: Form) -> AsyncIterator[Update]:
        """The updates of one request, the last of which is Finished; errors of `core.errors` are raised.

        Leaving the iterator early (`aclose`, or cancelling the task) cancels the request at its next step.
        """
        ...
