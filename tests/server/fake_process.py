"""A worker without torch: speaks to the front process as `deploy/process.py` does and "draws" a few bytes.

Run by a `Pool` in tests, as `python tests/server/fake_process.py`. Every step takes 20 ms; each request has a thread,
and as many run at once as the configuration says.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from contextlib import closing

import msgspec

from omnimuse.core.errors import OmnimuseError
from omnimuse.core.request import Request
from omnimuse.deploy.carry import carry
from omnimuse.deploy.child import Settings, read_settings
from omnimuse.deploy.faults import ALWAYS, Faults
from omnimuse.deploy.folder import PrivateFolder
from omnimuse.deploy.line import Line
from omnimuse.deploy.ranks import die_with_parent, watch_parent
from omnimuse.deploy.wire import (
    Beat,
    Cancel,
    Command,
    Ended,
    Finished,
    Form,
    MadeFile,
    NotStarted,
    Profile,
    Profiled,
    Ready,
    Stepped,
    Submit,
    Told,
    TriedOn,
    TryOn,
    unpack,
)
from omnimuse.worker.find import find
from omnimuse.worker.pace import Shared

PACE = 0.02
SHARED = Shared("transformer", 64, 2, 0.75)
"""What it says that two at once take."""
HELD = (3, 4)
"""The bytes of adapters that it says are worn there, and are not."""


class FakeWorker:
    """Requests that are being drawn, and those that were cancelled."""

    def __init__(self, settings: Settings, line: Line) -> None:
        self.settings, self.line = settings, line
        self.faults = Faults.read(settings.faults, settings.first)
        self.spec = find(settings.config).spec
        self.ticks = 0
        self.places = threading.Semaphore(settings.config.schedule.max_running)
        self.live: set[str] = set()
        self.cancelled: set[str] = set()

    def load(self) -> None:
        try:
            self.faults.reach("worker.start", 1, ALWAYS)
        except OmnimuseError as error:
            self.line.send(NotStarted(type(error).__name__, str(error)))
            self.line.end()
            return
        self.line.send(Told("info", "drawing with nothing"))
        self.line.send(Ready(0.0, {"dtype": "float32", "device": "cpu"}))

    def obey(self, command: Command) -> None:
        if isinstance(command, Submit):
            request = unpack(command.request, self.spec)
            self.live.add(request.id)
            threading.Thread(target=self.draw, args=(request, command.form), daemon=True).start()
        elif isinstance(command, Cancel):
            self.cancelled.add(command.request_id)
        elif isinstance(command, TryOn):
            self.try_on(command)
        elif isinstance(command, Profile):
            threading.Thread(target=self.profile, args=(command,), daemon=True).start()
        else:
            self.line.end()

    def try_on(self, command: TryOn) -> None:
        """Refuse what is called as this worker is, or end."""
        name = f"worker {self.settings.name.split('-')[0]}"
        if f"death of {name}" in (lora.source for lora in command.loras):
            os._exit(1)
        unfit = name in (lora.source for lora in command.loras)
        self.line.send(TriedOn(Ended("", "RequestError", f"not for {name}", "loras") if unfit else None))

    def profile(self, command: Profile) -> None:
        """A trace of nothing."""
        time.sleep(command.seconds)
        file = self.settings.spool / f"profile-{self.settings.name}-{self.ticks}.json.gz"
        file.write_bytes(b"")
        self.line.send(Profiled(file.name))

    def beat(self) -> Beat:
        return Beat(self.ticks, bool(self.live), 2**20, company=[SHARED], adapters=HELD)

    def draw(self, request: Request, form: Form) -> None:
        with self.places:
            self.work(request, form)

    def work(self, request: Request, form: Form) -> None:
        steps = request.params.num_inference_steps or 1
        for step in range(1, steps + 1):
            time.sleep(PACE)
            self.ticks += 1
            if request.id in self.cancelled:
                return self.end(request, Ended(request.id, "RequestCancelled", "the request was cancelled"))
            self.line.send(Stepped(request.id, 0, "denoise", step, steps))
            try:
                self.faults.reach("worker.step", step, request.prompt)
            except OmnimuseError as error:
                return self.end(request, Ended(request.id, type(error).__name__, str(error)))
            except MemoryError as error:
                return self.end(request, Ended(request.id, "MemoryError", str(error)))
        content = f"seed {request.seed(0)}".encode()
        made = MadeFile(
            f"{request.id}-{self.settings.name}-0.png",
            len(content),
            hashlib.sha256(content).hexdigest(),
            request.seed(0),
            16,
            16,
        )
        part = self.settings.spool / f".{made.name}.x.part"
        part.write_bytes(content)
        self.faults.reach("worker.encode", 1, request.prompt)
        part.replace(self.settings.spool / made.name)
        if self.settings.key:
            carry(self.settings.spool / made.name, request.id, self.line.send)
        return self.end(request, Finished(request.id, [made], {"denoise": PACE * steps}))

    def end(self, request: Request, report: Finished | Ended) -> None:
        self.live.discard(request.id)
        self.line.send(report)


def main() -> None:
    die_with_parent()
    settings = read_settings(sys.stdin.buffer.readline())
    threading.Thread(target=watch_parent, daemon=True).start()
    if settings.rank:
        threading.Event().wait()
    if settings.key:  # as on another machine, which knows no folder of the front's
        with closing(PrivateFolder()) as folder:
            talk(msgspec.structs.replace(settings, spool=folder.path))
    else:
        talk(settings)
    os._exit(0)


def talk(settings: Settings) -> None:
    line = Line(settings.address, settings.key)
    worker = FakeWorker(settings, line)
    worker.load()
    line.talk(worker.obey, worker.beat, 0.05)
    line.close()


if __name__ == "__main__":
    main()
