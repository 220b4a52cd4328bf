"""A model that is one file of weights, opened as any other: what it is, its names and shapes tell.

`worker/find.py` asks for its folder. That is made once per file, in the cache, by a process of its own, since it takes
torch and much memory; the rest of the checkpoint is linked, not copied. Who only asks imports no torch.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from omnimuse.core.errors import ModelError, OmnimuseError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.files import SINGLE
from omnimuse.loader.hub import Hub
from omnimuse.loader.resolve import Folder, resolve

PLACE = "omnimuse-files"
"""The folder beside the hub's cache in which such models lie, under the names of the checkpoints that they are like."""


def is_file(model: str) -> bool:
    """Whether `model` names a file of weights on this machine."""
    path = Path(model).expanduser()
    return path.suffix in SINGLE and path.is_file()


def opened(model: str, ours: Mapping[str, Sequence[str]], cache: Path | None = None) -> Folder:
    """The folder of the model in the file `model`; ModelError where it cannot be told what that is, or is not whole.

    Packed weights stay packed in networks that are `ours`: components by the name of their pipeline. `cache` is where
    such folders are (None: beside the hub's cache).
    """
    file = Path(model).expanduser().resolve()
    cache = cache or Hub.standard().cache.parent / PLACE
    if (folder := _made(file, cache)) is None:
        command = [sys.executable, "-m", "omnimuse.compat.opening", str(file), str(cache), json.dumps(ours)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise ModelError(f"{model} cannot be opened: its conversion ended with code {done.returncode}")
        if trouble := json.loads(done.stdout)["trouble"]:
            raise ModelError(f"{model}: {trouble}")
        folder = _made(file, cache)
    if folder is None:
        raise ModelError(f"{model} changed while it was opened; try again")
    return Folder(model, folder, "local")


def _made(file: Path, cache: Path) -> Path | None:
    return next(iter(cache.glob(f"models--*/{_name(file)}")), None)


def _name(file: Path) -> str:
    """What the folder of this file, as it is now, is called."""
    state = file.stat()
    return f"{file.stem}-{sha256(f'{file} {state.st_size} {state.st_mtime_ns}'.encode()).hexdigest()[:12]}"


# -- in a process of its own -----------------------------------------------------------------------------------------


def make(file: Path, cache: Path, ours: Mapping[str, Sequence[str]]) -> None:
    """Make the folder of `file` in `cache`, unless somebody else does at this moment."""
    from omnimuse.compat.single_file import convert, kind_of

    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _made(file, cache) is None:
            model = kind_of(file)
            place = cache / f"models--{model.replace('/', '--')}"
            place.mkdir(exist_ok=True)
            like = Checkpoint(resolve(model).path)
            convert(file, like, place / _name(file), linked=True, ours=ours.get(like.arch, ()))


def main(file: str, cache: str, ours: str) -> None:
    """Make the folder, and say what went wrong, if anything did."""
    trouble = ""
    try:
        make(Path(file), Path(cache), json.loads(ours))
    except OmnimuseError as error:
        trouble = str(error)
    print(json.dumps({"trouble": trouble}))


if __name__ == "__main__":
    main(*sys.argv[1:])
