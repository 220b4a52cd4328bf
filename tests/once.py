"""What many tests read is made once a run, by whichever process of pytest-xdist needs it first, for all of them."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Once:
    """Folders in `home` that are whole or not there."""

    home: Path

    def folder(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder `name`, which `make` has filled (read only: copy it before you change it). Who comes while it is
        being made waits; if `make` fails, the next one tries again.
        """
        made, begun = self.home / name, self.home / f"{name}.begun"
        with (self.home / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(begun, ignore_errors=True)
                make(begun)
                begun.rename(made)
        return made


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Once:
    """For all processes of this run: the temporary folder of each lies in that of the run."""
    own = tmp_path_factory.getbasetemp()
    home = (own.parent if hasattr(request.config, "workerinput") else own) / "once"
    home.mkdir(exist_ok=True)
    return Once(home)
