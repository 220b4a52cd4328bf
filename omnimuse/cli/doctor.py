"""Check this installation and say what to do about what is wrong.

examples:
  omnimuse doctor
  omnimuse doctor --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from omnimuse.cli.table import columns
from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import HostConfig
from omnimuse.core.errors import CapacityError, ConfigError, ModelError
from omnimuse.media.sandbox import Sandbox
from omnimuse.worker.threads import Room, choose_threads

LITTLE_DISK, TOO_LITTLE_DISK = 20e9, 1e9  # bytes: a large checkpoint, and not even a small one
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
NEEDED = ("diffusers", "transformers", "huggingface_hub", "safetensors", "numpy", "pillow", "msgspec")
_IMPORT_SECONDS = 120


Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do and is empty where all is well."""

    topic: str
    level: Level
    detail: str
    advice: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `omnimuse doctor`."""
    parser.add_argument("--json", action="store_true", help="print a JSON list on stdout")


def run(args: argparse.Namespace, examine: Callable[[], Iterator[Finding]] | None = None) -> int:
    """Print the findings; 1 if there is a problem. `examine` looks at this machine unless a test passes another."""
    findings = list((examine or examine_machine)())
    print(json.dumps([asdict(f) for f in findings], indent=2) if args.json else text(findings))
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def text(findings: Sequence[Finding]) -> str:
    """The findings for people, and one closing line."""
    rows: list[tuple[str, str, str]] = []
    for finding in findings:
        rows.append((finding.level, finding.topic, finding.detail))
        if finding.advice:
            rows.append(("", "", f"-> {finding.advice}"))
    count = {level: sum(f.level == level for f in findings) for level in ("problem", "warning")}
    closing = (
        "all is well" if not any(count.values()) else f"problems: {count['problem']}, warnings: {count['warning']}"
    )
    return f"{columns(rows, indent=0)}\n{closing}"


def examine_machine() -> Iterator[Finding]:
    """Everything worth knowing about this machine, cheap things first."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name in NEEDED:
        yield needed(name, installed(name))
    yield from examine_torch()
    for name in UNWANTED:
        yield unwanted(name, installed(name), installed("torch"), import_error)
    yield from examine_cache()
    yield bundled_model()
    yield asyncio.run(examine_sandbox(Sandbox()))
    yield writable("this folder", Path.cwd(), "pictures go here unless -o names another place; change the folder")


# -- packages ------------------------------------------------------------------------------------------------------


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def import_error(name: str) -> str | None:
    """The last line that importing `name` in a process of its own complains with, or None."""
    command = [sys.executable, "-c", f"import {name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"importing it took more than {_IMPORT_SECONDS} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it crashed"])[-1]


def needed(name: str, version: str | None) -> Finding:
    """A package that omnimuse cannot do without."""
    if version is None:
        return Finding(name, "problem", "not installed", f"python -m pip install {name}")
    return Finding(name, "ok", version)


def unwanted(name: str, version: str | None, torch_version: str | None, probe: Callable[[str], str | None]) -> Finding:
    """A package that other packages import if it is there, and that breaks them if it does not fit torch."""
    if version is None:
        return Finding(name, "ok", "not installed, not needed")
    error = probe(name)
    if error is None:
        return Finding(name, "ok", f"{version}, imports beside torch {torch_version}; omnimuse does not use it")
    return Finding(
        name,
        "problem",
        f"{version} does not import beside torch {torch_version} ({error}), and other packages trip over it",
        f"python -m pip uninstall {name}; omnimuse does not need it",
    )


# -- torch and the processor ---------------------------------------------------------------------------------------


def examine_torch() -> Iterator[Finding]:
    """The torch build, the devices it sees, its threads and its number formats."""
    if installed("torch") is None:
        yield Finding("torch", "problem", "not installed", "python -m pip install -c constraints.txt torch")
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            "torch", "problem", f"does not import: {error}", "reinstall it: pip install --force-reinstall torch"
        )
        return
    from omnimuse.core.config import ModelConfig
    from omnimuse.layers.native import native_bfloat16
    from omnimuse.worker.place import choose_device

    build = (
        f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"HIP {torch.version.hip}"
        if torch.version.hip
        else "CPU"
    )
    yield Finding("torch", "ok", f"{torch.__version__}, {build} build")
    device, choice = choose_device(ModelConfig(""))
    yield accelerator(str(device), choice.reason, Path("/dev/nvidia0").exists())
    yield thread_count(lambda: Room.here(torch.get_num_threads()))
    native, why = native_bfloat16(device)
    yield Finding("bfloat16", "ok", f"{'the default here' if native else 'float32 is the default here'}: {why}")


def accelerator(device: str, reason: str, has_nvidia: bool) -> Finding:
    """The device that is used when none is asked for."""
    if device == "cpu" and has_nvidia:
        advice = "install a CUDA build of torch that fits the driver (nvidia-smi tells its version)"
        return Finding("device", "warning", f"cpu, although this machine has an NVIDIA device: {reason}", advice)
    return Finding("device", "ok", f"{device}: {reason}")


def thread_count(look: Callable[[], Room]) -> Finding:
    """How many threads an engine computes with, and why."""
    try:
        room = look()
    except ConfigError as error:
        return Finding("threads", "problem", str(error), "unset OMP_NUM_THREADS, or set it to a whole number")
    count, choice = choose_threads(HostConfig(), room)
    detail = f"{count} for {room.cores} cores: {choice.reason}"
    if count == 1 < min(room.cores, room.quota or room.cores):
        return Finding("threads", "warning", detail, "unset OMP_NUM_THREADS, or set it to the number of cores")
    if count > room.cores:
        advice = f"threads that wait for each other on fewer cores are slow: set OMP_NUM_THREADS to {room.cores}"
        return Finding("threads", "warning", detail, advice)
    return Finding("threads", "ok", detail)


# -- folders -------------------------------------------------------------------------------------------------------


def examine_cache() -> Iterator[Finding]:
    """The folder that downloaded models go to."""
    if installed("huggingface_hub") is None:
        return
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    yield writable("model cache", cache, "set HF_HOME to a folder that you can write to")
    yield disk(cache, shutil.disk_usage(existing(cache)).free)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def writable(topic: str, folder: Path, advice: str) -> Finding:
    """Whether files can be made in `folder` (or in the nearest folder above it that exists)."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            return Finding(topic, "ok", f"{folder}, can be written")
    except OSError as error:
        return Finding(topic, "problem", f"{folder} cannot be written: {error.strerror}", advice)


def disk(folder: Path, free: float) -> Finding:
    """The room for models, in bytes."""
    detail = f"{told_bytes(int(free))} free for {folder}"
    if free < TOO_LITTLE_DISK:
        return Finding("disk", "problem", detail, "make room, or set HF_HOME to a folder on a larger disk")
    if free < LITTLE_DISK:
        return Finding("disk", "warning", detail, "large models will not fit; set HF_HOME to a folder on a larger disk")
    return Finding("disk", "ok", detail)


async def examine_sandbox(sandbox: Sandbox) -> Finding:
    """What the processes that read strangers' files have given up, by asking one."""
    try:
        lacking = await sandbox.lacking()
    except CapacityError as error:
        return Finding("sandbox", "problem", str(error), "run `python -m omnimuse.media.decoder` to see why")
    if lacking:
        detail = "; ".join(f"without {name} ({why})" for name, why in lacking.items())
        return Finding("sandbox", "warning", detail, "docs/sandbox.md says what each is for and what offers it")
    return Finding("sandbox", "ok", "who reads a stranger's file can do nothing else")


def bundled_model() -> Finding:
    """Whether the model that ships with the package is there and whole."""
    from omnimuse.loader.checkpoint import Checkpoint
    from omnimuse.loader.resolve import list_local

    advice = "reinstall omnimuse: python -m pip install --force-reinstall --no-deps omnimuse"
    folder = next((found for found in list_local() if found.source == "bundled"), None)
    if folder is None:
        return Finding("demo model", "problem", "is not in this installation", advice)
    try:
        wrong = Checkpoint(folder.path).incomplete()
    except ModelError as error:
        wrong = str(error)
    if wrong:
        return Finding("demo model", "problem", f"{folder.id}: {wrong}", advice)
    return Finding("demo model", "ok", f"{folder.id}, bundled")
