"""`Service`: everything the routes share, in one frozen object that the app carries; and what they ask of workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from omnimuse.core.request import Door, Request
from omnimuse.engine.wire import Form, Update
from omnimuse.server.options import ServeOptions
from omnimuse.server.uploads import Uploads

if TYPE_CHECKING:
    from omnimuse.server.admission import Admission
    from omnimuse.server.files import Files
    from omnimuse.server.jobs import Jobs
    from omnimuse.server.keys import Keys
    from omnimuse.server.metrics import Metrics


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
    def place(self) -> dict[str, str]:
        """The dtype and the device the workers compute with; empty until one is ready."""
        ...

    def run(self, request: Request, form: Form) -> AsyncIterator[Update]:
        """The updates of one request, the last of which is Finished; errors of `core.errors` are raised.

        Leaving the iterator early (`aclose`, or cancelling the task) cancels the request at its next step.
        """
        ...


@dataclass
class Lifecycle:
    """Where the server is in its life: `draining` means that it finishes what it has and takes on nothing new."""

    draining: bool = False


@dataclass(frozen=True)
class Service:
    """What every route may use."""

    options: ServeOptions
    door: Door
    workers: Workers
    admission: Admission
    files: Files
    jobs: Jobs
    keys: Keys
    metrics: Metrics
    life: Lifecycle
    uploads: Uploads = field(default_factory=Uploads)
