"""`Service`: everything the routes share, in one frozen object that the app carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omnimuse.core.request import Door
from omnimuse.server.options import ServeOptions
from omnimuse.server.uploads import Uploads
from omnimuse.server.workers import Workers

if TYPE_CHECKING:
    from omnimuse.server.admission import Admission
    from omnimuse.server.files import Files
    from omnimuse.server.jobs import Jobs
    from omnimuse.server.keys import Keys
    from omnimuse.server.metrics import Metrics


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
