"""A fresh clone with what `make demo` installs standing ready, in which the lines of a page are run as pasted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.docs.blocks import ROOT

LONG = 300.0
"""Seconds after which a line hangs; on a busy machine it takes a while."""
HELD = ("README.md", "Makefile", "pyproject.toml", "constraints.txt", "omnimuse", "tools", "docs", "examples")
"""What a page may speak of."""
KEPT = (". ", "source ", "export ", "cd ")
"""How lines begin that change the shell for those after them."""

DIAGNOSES = ("omnimuse doctor",)
"""Commands that end with 1 where this machine, not the project, has a problem."""


def make_clone(folder: Path) -> Path:
    """The files of the project in `folder`, and a `.venv` that runs this interpreter: as after `make install`."""
    folder.mkdir(parents=True)
    for name in HELD:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    _script(programs / "python", f'exec "{sys.executable}" "$@"')
    _script(programs / "omnimuse", f'exec "{sys.executable}" -m omnimuse "$@"')
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    (folder / ".venv/.installed").touch()
    return folder


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Shell:
    """Runs blocks one after the other in `clone`; activation and folders last from one to the next.

    A page that is `activated` is read by somebody who did what the README says.
    """

    def __init__(self, clone: Path, *, activated: bool = True) -> None:
        self.clone = clone
        home = clone.parent / "home"
        home.mkdir(exist_ok=True)
        self.environment = {**os.environ, "PYTHONPATH": str(clone), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
        self._kept = [". .venv/bin/activate"] if activated else []

    def run(self, text: str) -> None:
        """Every command of a block; one that serves is stopped as soon as it is ready."""
        for command in commands(text):
            if command.startswith(KEPT):
                self._kept.append(command)
            if "serve" in command.split()[:2]:
                self._serve(command)
            else:
                self._finish(command)

    def _finish(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-ec", "\n".join([*self._kept, command])],
            cwd=self.clone, env=self.environment, capture_output=True, text=True, timeout=LONG, check=False,
        )  # fmt: skip
        fine = (0, 1) if command in DIAGNOSES else (0,)
        assert done.returncode in fine, f"{command}\n{done.stdout}{done.stderr}"

    def _serve(self, command: str) -> None:
        free = command.replace("make serve", 'make serve ARGS="--port 0"')
        free = free if free != command else f"{command} --port 0"
        process = subprocess.Popen(
            ["bash", "-ec", "\n".join([*self._kept, f"exec {free}"])],
            cwd=self.clone, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        printed = []
        try:
            for line in process.stdout:
                printed.append(line)
                if "ready in" in line:
                    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
            process.wait(LONG)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
        assert any("ready in" in line for line in printed), f"{free}\n{''.join(printed)}"


def commands(text: str) -> Iterator[str]:
    """The commands of a block without their comments; a line that ends in a backslash goes on in the next."""
    for line in text.replace("\\\n", " ").splitlines():
        command = re.sub(r"\s+# .*$", "", line).strip()
        if command and not command.startswith("#"):
            yield command


def python(texts: Sequence[str], clone: Path, shell: Shell) -> None:
    """The Python blocks of a page as one program: later ones know what earlier ones did."""
    file = clone / f"page-{time.monotonic_ns()}.py"
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        cwd=clone, env=shell.environment, capture_output=True, text=True, timeout=LONG, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
