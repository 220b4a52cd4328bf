"""Where a finished file goes: checked before any work, written whole or not at all.

The command line calls `destination`, `check_destination` and `free_names` before a model is loaded; writers of
pictures, videos and sound hand their bytes to `write_whole`. Light: imports neither numpy nor Pillow.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from omnimuse.core.errors import RequestError, refused

DIGITS = 3
"""How many digits the number in a file's name has, at least."""
_PART = (".omnimuse-", ".part")
"""How names of files begin and end that are being written."""
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

Sync = Callable[[int], object]
"""Makes what an open file or folder holds survive a power loss: `os.fsync`."""


def check_destination(path: Path, suffixes: Collection[str]) -> None:
    """RequestError unless a file can be written at `path` and its suffix is one of `suffixes` (".png" ...).

    A folder that does not exist yet is fine when it could be made; nothing is left behind by asking.
    """
    _check_suffix(path, suffixes)
    if path.is_dir():
        raise RequestError(
            f"{path} is a folder; name a file in it, such as {path / ('picture' + path.suffix)}", "output"
        )
    _check_folder(path)


def check_new_folder(path: Path) -> None:
    """RequestError unless a folder can be made at `path`, where nothing is yet."""
    if os.path.lexists(path):
        raise RequestError(f"{path} exists; name a folder that does not", "output")
    _check_folder(path)


def _check_folder(path: Path) -> None:
    """RequestError unless something can be written beside `path`."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise RequestError(f"cannot write {path}: {folder} is a file, not a folder; choose another place", "output")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = f"the folder {folder} refuses new files ({error.strerror})"
        raise RequestError(f"cannot write {path}: {why}; choose another place", "output") from None


def destination(given: str | None, name: str) -> Path:
    """Where a file goes that somebody calls `given`: that file, or `name` in the folder that `given` is or ends as.

    `None` is the current folder. A folder need not exist when its name ends with a slash.
    """
    if given is None:
        return Path(name)
    return Path(given) / name if given.endswith(("/", os.sep)) or Path(given).is_dir() else Path(given)


def numbered(path: Path, count: int, first: int = 1) -> list[Path]:
    """`count` names that sort as they count, from `first` on: `demo-001.png`, `demo-002.png` ..."""
    digits = max(DIGITS, len(str(first + count - 1)))
    return [path.with_name(f"{path.stem}-{number:0{digits}}{path.suffix}") for number in range(first, first + count)]


def next_number(path: Path) -> int:
    """One more than the highest number among the files that are called like `path` with a number; 1 without any."""
    name = re.compile(rf"{re.escape(path.stem)}-(\d+){re.escape(path.suffix)}", re.ASCII)
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    return 1 + max((int(match[1]) for file in there if (match := name.fullmatch(file.name))), default=0)


def free_names(path: Path, count: int) -> list[Path]:
    """`count` names that no file has: `path` itself for one, if it is free; else the next numbers after those taken."""
    if count == 1 and not os.path.lexists(path):
        return [path]
    return numbered(path, count, next_number(path))


def write_whole(
    path: Path,
    content: bytes,
    *,
    replace: bool = True,
    mode: int = 0o644,
    sync: Sync = os.fsync,
) -> None:
    """Write `content` to `path` through a temporary file beside it: readers see the old file or the new one.

    Missing folders are made; `sync` puts what was written onto the disk. FileExistsError where there is a file that
    may not be replaced, OSError of `path` when the disk refuses; the temporary file is gone then. Those that processes
    left which were killed are gone, too, once this process has written into their folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute())
    try:
        _write_whole(path, content, replace, mode, sync)
    except OSError as problem:
        raise refused(problem, path) from problem


def sync_path(path: Path, sync: Sync = os.fsync) -> None:
    """Make the content of a file, or the names in a folder, survive a power loss."""
    handle = os.open(path, os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def _write_whole(path: Path, content: bytes, replace: bool, mode: int, sync: Sync) -> None:
    handle, part = _begin(path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
            part.chmod(mode)
            if replace:  # still open, so that nobody sweeps it
                part.replace(path)
            else:
                _name_it(part, path)
    finally:
        part.unlink(missing_ok=True)


def _begin(folder: Path) -> tuple[int, Path]:
    """A new temporary file, open and locked for as long as it is: so others know that somebody writes it."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_PART[0], suffix=_PART[1])
        with suppress(OSError):  # a disk without locks: nobody can have this one, and sweep it
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept before it was locked


@lru_cache(maxsize=64)
def _sweep(folder: Path) -> None:
    """Remove temporary files in `folder` that nobody writes any more; once, as a folder may be large."""
    for part in folder.glob(f"{_PART[0]}*{_PART[1]}"):
        with suppress(OSError):  # it is somebody else's, or has gone meanwhile
            handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(handle)


def _name_it(part: Path, path: Path) -> None:
    """Give `part` the name `path` if nobody has it: in one step, so that two programs never get the same name."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        part.replace(path)  # a disk without hard links, such as FAT, leaves a moment between the two


def _check_suffix(path: Path, suffixes: Collection[str]) -> None:
    suffix = path.suffix.lower()
    if suffix in suffixes:
        return
    near = get_close_matches(suffix, suffixes, n=1)
    hint = f"; did you mean {path.with_suffix(near[0]).name}?" if near else ""
    got = f"the suffix {path.suffix!r}" if suffix else "no suffix"
    raise RequestError(f"{path.name} has {got}; use one of {', '.join(sorted(suffixes))}{hint}", "output")
