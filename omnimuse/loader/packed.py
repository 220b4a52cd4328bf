"""Writes tensors, some of them packed rows, into safetensors files whose headers say which are parts of what.

`headers` reads them. Used where single files become folders, and where a checkpoint is packed once for all.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from omnimuse.core.errors import StorageError, reason
from omnimuse.loader.headers import PACKED
from omnimuse.media.destination import Sync, sync_path
from omnimuse.quant.packings import Rows

SHARD = 2 * 2**30
"""Bytes of tensors after which another file is begun."""
_PART = ".part"


@contextmanager
def new_folder(target: Path, sync: Sync = os.fsync) -> Iterator[Path]:
    """A folder that is yet to be made, which is `target` when the block has ended: all of it, or nothing, also where
    the power goes. `sync` puts onto the disk what was written; what is linked is there. Folders around it are
    made, too.

    Several processes may write the same `target`, of which the first to end has it. What those left that were killed is
    removed. StorageError where the disk refuses.
    """
    lock = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        lock, room = _begin(target)
        part = room / target.name
        yield part
        for path in (part, *part.rglob("*")):
            if not path.is_symlink():
                sync_path(path, sync)
        part.rename(target)
    except (OSError, SafetensorError) as problem:
        why = f"{_why(problem)}; free some space, or choose another place"
        raise StorageError(f"{target} could not be written, and nothing is left of it: {why}") from problem
    finally:
        if lock is not None:
            shutil.rmtree(room, ignore_errors=True)
            os.close(lock)


def _begin(target: Path) -> tuple[int, Path]:
    """A new folder beside `target`, and what is open and locked for as long as somebody writes into it."""
    while True:
        room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PART, dir=target.parent))
        room.chmod(0o755)
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = os.open(room, os.O_RDONLY | os.O_CLOEXEC)
            with suppress(OSError):  # a disk without locks: nobody can have this one, and sweep it
                fcntl.flock(lock, fcntl.LOCK_EX)
            if room.exists():
                return lock, room
            os.close(lock)


def _sweep(target: Path) -> None:
    """Remove folders beside `target`, begun for it, that nobody writes into any more."""
    for room in target.parent.glob(f".{glob.escape(target.name)}.*{_PART}"):
        with suppress(OSError):  # it is somebody else's, or has gone meanwhile
            lock = os.open(room, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(room, ignore_errors=True)
            finally:
                os.close(lock)


def _why(problem: Exception) -> str:
    """In words; of all that copying a folder complains of, the first."""
    said = problem.args[0][0][2] if isinstance(problem, shutil.Error) else reason(problem)
    return re.sub(r"^\[Errno \d+\] ([^:]*).*", r"\1", said, flags=re.DOTALL)


def save_packed(contents: Mapping[str, Tensor | Rows], path: Path) -> None:
    """Write `contents` to the new file `path`."""
    tensors: dict[str, Tensor] = {}
    table = {}
    for name, content in contents.items():
        if isinstance(content, Tensor):
            tensors[name] = content
            continue
        names = {part: name + part.removeprefix("weight") for part in content.parts}
        tensors |= {names[part]: tensor for part, tensor in content.parts.items()}
        table[name] = [content.packing, *content.shape, names]
    about = {"format": "pt"} | ({PACKED: json.dumps(table)} if table else {})
    save_file({name: each.contiguous().clone() for name, each in tensors.items()}, path, metadata=about)


def save_in_shards(contents: Iterable[tuple[str, Tensor | Rows]], folder: Path, stem: str, most: int = SHARD) -> None:
    """Write `contents`, as they come, to files of at most `most` bytes each (or of one tensor), with an index."""
    held: dict[str, Tensor | Rows] = {}
    places: list[Path] = []
    names: dict[str, int] = {}
    size = total = 0
    for name, content in contents:
        if held and size + content.nbytes > most:
            places.append(_write_next(held, folder, len(places)))
            held, size = {}, 0
        held[name] = content
        names[name] = len(places)
        size, total = size + content.nbytes, total + content.nbytes
    places.append(_write_next(held, folder, len(places)))
    if len(places) == 1:
        places[0].rename(folder / f"{stem}.safetensors")
        return
    final = [f"{stem}-{number:05d}-of-{len(places):05d}.safetensors" for number in range(1, len(places) + 1)]
    for place, name in zip(places, final, strict=True):
        place.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: final[number] for name, number in names.items()}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write_next(contents: Mapping[str, Tensor | Rows], folder: Path, number: int) -> Path:
    path = folder / f"{number}.part"
    save_packed(contents, path)
    return path
