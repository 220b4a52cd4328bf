"""Where a finished file goes: checked before any work, written whole or not at all.

The command line calls `check_destination` and `numbered` before a model is loaded; writers of pictures (and later
of video and sound) hand their bytes to `write_whole`. Light: imports neither numpy nor Pillow.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from omnimuse.core.errors import RequestError


def check_destination(path: Path, suffixes: Collection[str]) -> None:
    """RequestError unless a file can be written at `path` and its suffix is one of `suffixes` (".png" ...).

    A folder that does not exist yet is fine when it could be made; nothing is left behind by asking.
    """
    _check_suffix(path, suffixes)
    if path.is_dir():
        raise RequestError(
            f"{path} is a folder; name a file in it, such as {path / ('picture' + path.suffix)}", "output"
        )
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


def numbered(path: Path, count: int) -> list[Path]:
    """`count` names from one: `demo.png` alone, or `demo-1.png`, `demo-2.png` ... for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it: readers see the old file or the new one.

    Missing folders are made. OSError when the disk refuses; the temporary file is gone then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_suffix(path: Path, suffixes: Collection[str]) -> None:
    suffix = path.suffix.lower()
    if suffix in suffixes:
        return
    near = get_close_matches(suffix, suffixes, n=1)
    hint = f"; did you mean {path.with_suffix(near[0]).name}?" if near else ""
    got = f"the suffix {path.suffix!r}" if suffix else "no suffix"
    raise RequestError(f"{path.name} has {got}; use one of {', '.join(sorted(suffixes))}{hint}", "output")
