"""`Service`: everything the routes share, in one frozen object that the app carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omnimuse.core.request import Door
from omnimuse.loader.identity import Taught
from omnimuse.server.http.uploads import Uploads
from omnimuse.server.options import ServeOptions
from omnimuse.server.shelf import Shelf
from omnimuse.server.traces import NoTracer, Tracer
from omnimuse.server.voices import Voices
from omnimuse.server.workers import Workers

if TYPE_CHECKING:
    from omnimuse.server.http.keys import Keys
    from omnimuse.server.jobs.book import Jobs
    from omnimuse.server.jobs.files import Files
    from omnimuse.server.metrics import Metrics
    from omnimuse.server.orders.admission import Admission


@dataclass
class Lifecycle:
    """Where the server is in its life: `draining` means that it finishes what it has and takes on nothing new."""

    draining: bool = False


@dataclass(frozen=True)
class Service:
    """What every route may use; `taught` is what the model was trained on, where it says so. `voices` are those
    that are kept for one that speaks with the voice of a sound.
    """

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
    tracer: Tracer = NoTracer()
    taught: Taught | None = None
    shelf: Shelf = field(default_factory=lambda: Shelf(None))
    voices: Voices | None = None
