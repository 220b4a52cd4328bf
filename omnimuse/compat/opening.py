"""A model that is one file of weights, opened as any other: what it is, its names and shapes tell. And a model of which
a component's weights are in such a file.

`worker/find.py` asks for its folder. That is made once per file, in the cache, by a process of its own, since it takes
torch and much memory; the rest of the checkpoint is linked, not copied. Who only asks imports no torch.
"""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from omnimuse.core.errors import ModelError, OmnimuseError
from omnimuse.core.spec import Component
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.files import SINGLE
from omnimuse.loader.hub import Hub
from omnimuse.loader.resolve import Folder

logger = logging.getLogger("omnimuse.compat.opening")  # as `__main__` it would have another name
PLACE = "omnimuse-files"
"""The folder beside the hub's cache in which such models lie, under the names of the checkpoints that they are like."""


def is_file(model: str) -> bool:
    """Whether `model` names a file of weights on this machine."""
    path = Path(model).expanduser()
    return path.suffix in SINGLE and path.is_file()


def opened(model: str, ours: Mapping[str, Mapping[str, Component]], cache: Path | None = None) -> Folder:
    """The folder of the model in the file `model`; ModelError where it cannot be told what that is, or is not whole.

    Packed weights stay packed in components of `ours`, by the name of their pipeline, where they can. `cache` is where
    such folders are (None: beside the hub's cache).
    """
    return Folder(model, _there(Job(Path(model).expanduser().resolve()), model, ours, cache), "local")


def filled(
    folder: Folder, component: str, file: str, ours: Mapping[str, Mapping[str, Component]], cache: Path | None = None
) -> Folder:
    """The model in `folder` with the weights of `component` that are in `file`; otherwise as `opened`."""
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ModelError(f"component {component}={file}: there is no such file on this machine")
    return replace(folder, path=_there(Job(path, component, folder.path), f"{component}={file}", ours, cache))


def _there(job: Job, called: str, ours: Mapping[str, Mapping[str, Component]], cache: Path | None) -> Path:
    """The folder that `job` is to make, which people know as `called`, made or not."""
    cache = cache or Hub.standard().cache.parent / PLACE
    if (folder := _made(job, cache)) is None:
        words = [str(job.file), str(cache), _as_text(ours), job.component, str(job.folder)]
        command = [sys.executable, "-m", "omnimuse.compat.opening", *words]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ModelError(f"{called} cannot be opened: its conversion ended with code {done.returncode}")
        told = json.loads(done.stdout)
        if told["trouble"]:
            raise ModelError(f"{called}: {told['trouble']}")
        for note in told["notes"]:
            logger.warning("%s: %s", called, note)
        folder = _made(job, cache)
    if folder is None:
        raise ModelError(f"{called} changed while it was opened; try again")
    return folder


@dataclass(frozen=True)
class Job:
    """What is to be opened: a file that is a model, or `component` of the model in `folder`."""

    file: Path
    component: str = ""
    folder: Path = Path()

    @property
    def name(self) -> str:
        """What the folder of this file, as it is now, is called."""
        state = self.file.stat()
        about = f"{self.file} {state.st_size} {state.st_mtime_ns}"
        if self.component:
            about += f" {self.component} {self.folder} {Checkpoint(self.folder).fingerprint()}"
        return f"{self.file.stem}-{sha256(about.encode()).hexdigest()[:12]}"


def _made(job: Job, cache: Path) -> Path | None:
    return next(iter(cache.glob(f"models--*/{glob.escape(job.name)}")), None)


def _as_text(ours: Mapping[str, Mapping[str, Component]]) -> str:
    """What a conversion asks of components, for its process."""
    return json.dumps(
        {arch: {n: (c.network, c.part, c.rules) for n, c in found.items()} for arch, found in ours.items()}
    )


def _of_text(text: str) -> dict[str, dict[str, Component]]:
    return {
        arch: {name: Component((), network, part, rules) for name, (network, part, rules) in found.items()}
        for arch, found in json.loads(text).items()
    }


# -- in a process of its own -----------------------------------------------------------------------------------------


def make(job: Job, cache: Path, ours: Mapping[str, Mapping[str, Component]]) -> tuple[str, ...]:
    """Make the folder of `job` in `cache`, unless somebody else does at this moment; what is to be said of the file."""
    from omnimuse.compat.single_file import convert, like_of

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _made(job, cache) is None:
            if job.component:
                like, place = Checkpoint(job.folder), cache / _kept_name(job.folder)
            else:
                found = like_of(job.file)
                like, place = Checkpoint(found.path), cache / f"models--{found.id.replace('/', '--')}"
            place.mkdir(exist_ok=True)
            target, component = place / job.name, job.component or None
            return convert(job.file, like, target, component, linked=True, ours=ours.get(like.arch, {})).notes
    return ()


def _kept_name(folder: Path) -> str:
    """What `folder` lies in if that is named by a published checkpoint, by which it is recognised; else by its own."""
    return next((part for part in reversed(folder.parts) if part.startswith("models--")), f"models--{folder.name}")


def main(file: str, cache: str, ours: str, component: str, folder: str) -> None:
    """Make the folder, and say what went wrong, if anything did, and what is to be said of the file."""
    trouble, notes = "", tuple[str, ...]()
    try:
        notes = make(Job(Path(file), component, Path(folder)), Path(cache), _of_text(ours))
    except OmnimuseError as error:
        trouble = str(error)
    print(json.dumps({"trouble": trouble, "notes": notes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
