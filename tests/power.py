"""A folder whose power can be cut: what was not put onto the disk by then is gone.

Its `sync` goes where the code takes `os.fsync`. Names that were not synced may or may not be there afterwards, as real
file systems have it; contents that were not synced are empty.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path


class PowerCutError(Exception):
    """The power went while something was being written."""


class PoweredFolder:
    """Everything below `root`, and what of it is on the disk: at first all. At the `cut_at`th sync the power goes."""

    def __init__(self, root: Path, cut_at: int = 0) -> None:
        self.root = root
        self.syncs = 0
        self._cut_at = cut_at
        places = [root, *root.rglob("*")]
        self._contents = {path.stat().st_ino: path.read_bytes() for path in places if path.is_file()}
        self._names = {path: _names(path) for path in places if path.is_dir()}
        self._at_the_cut: dict[Path, int] | None = None

    def sync(self, handle: int) -> None:
        """Put onto the disk what an open file or folder holds."""
        self.syncs += 1
        if self.syncs == self._cut_at:
            self._at_the_cut = self._look()  # code that cleans up behind the error does so in vain
            raise PowerCutError
        status = os.fstat(handle)
        places = [self.root, *self.root.rglob("*")]
        for path in (place for place in places if place.stat().st_ino == status.st_ino):
            if stat.S_ISDIR(status.st_mode):
                self._names[path] = _names(path)
            else:
                self._contents[status.st_ino] = path.read_bytes()

    def restart(self, names_survive: bool) -> None:
        """Leave what the power loss leaves; `names_survive` where also names that were not synced are found."""
        before = self._look() if self._at_the_cut is None else self._at_the_cut
        folders = [path for path in [self.root, *before] if path == self.root or path.is_dir()]
        names = {folder: self._names.get(folder, {}) for folder in folders}
        if names_survive:
            for path, inode in before.items():
                names.setdefault(path.parent, {})[path.name] = inode
        kept = {folder / name: inode for folder in folders for name, inode in names[folder].items()}
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path, inode in kept.items():
            if path in folders:
                path.mkdir(parents=True, exist_ok=True)
            elif path.parent == self.root or path.parent in kept:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._contents.get(inode, b""))

    def _look(self) -> dict[Path, int]:
        return {path: path.stat().st_ino for path in sorted(self.root.rglob("*"))}


def _names(folder: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_ino for entry in folder.iterdir()}
