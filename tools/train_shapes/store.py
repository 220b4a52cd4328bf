"""Tensors and JSON notes in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save(path: Path, tensors: dict[str, torch.Tensor], notes: dict[str, Any]) -> None:
    """Replaces ``path``; ``notes`` is anything JSON can hold."""
    fresh = path.with_suffix(".partial")
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()},
        fresh,
        {"notes": json.dumps(notes)},
    )
    fresh.replace(path)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What ``save`` was given.  Raises FileNotFoundError that names the missing file."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the stage that writes it first (see README.md)")
    with safe_open(path, framework="pt") as file:
        notes = json.loads(file.metadata()["notes"])
        return {name: file.get_tensor(name) for name in file.keys()}, notes  # noqa: SIM118 - not a dict


def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names start with ``prefix`` and a dot, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def prefixed(groups: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The inverse of ``under`` for several prefixes."""
    return {f"{prefix}.{name}": value for prefix, tensors in groups.items() for name, value in tensors.items()}
