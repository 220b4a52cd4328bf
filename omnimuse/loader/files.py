"""Which files of a component's folder hold its weights: one safetensors file, or shards named by an index.

Called by `checkpoint` (to refuse early) and `weights` (to read). Reads names and indexes only, never tensors; no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ModelError

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
"""Endings of weight files that are pickles: opening one can run any code, so none is ever opened."""

USUAL_STEMS = ("diffusion_pytorch_model", "model")
AGAIN = "get the checkpoint again (for a hub id, `hf download ID` resumes where it stopped)"
"""What to do about files that are incomplete or damaged."""

_FILE = re.compile(r"(?P<stem>.+?)(\.(?P<variant>[^.]+))?(-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.safetensors")
_INDEX = re.compile(r"(?P<stem>.+?)\.safetensors\.index(\.(?P<variant>[^.]+))?\.json")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ModelError if it cannot be read or is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; {AGAIN}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path} cannot be read: {problem}") from problem
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}"
        raise ModelError(f"{path} is not valid JSON ({problem.msg} at {where}); {AGAIN}") from problem
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object of names and values; {AGAIN}")
    return content


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that together hold the weights of the component in `folder`, in name order.

    Plain files win; those of a variant (`model.fp16.safetensors`) are taken only if there are no plain ones. ModelError
    names a missing shard, refuses pickles and says which choice is open if there are several.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    indexes = {(m["stem"], m["variant"]): name for name in names if (m := _INDEX.fullmatch(name))}
    singles = {name: m for name in names if (m := _FILE.fullmatch(name))}
    for plain in (True, False):
        found = sorted((key for key in indexes if (key[1] is None) is plain), key=str)
        if found:
            return _shards(folder, indexes[_one(folder, found)])
        keys = sorted({(m["stem"], m["variant"]) for m in singles.values() if (m["variant"] is None) is plain}, key=str)
        if keys:
            chosen = _one(folder, keys)
            group = {name: m for name, m in singles.items() if (m["stem"], m["variant"]) == chosen}
            return _group(folder, group)
    raise ModelError(_why_none(folder, names))


def _one(folder: Path, keys: list[tuple[str, str | None]]) -> tuple[str, str | None]:
    usual = [key for key in keys if key[0] in USUAL_STEMS]
    if len(keys) == 1 or len(usual) == 1:
        return usual[0] if usual else keys[0]
    names = ", ".join(".".join(part for part in key if part) + ".safetensors" for key in keys)
    raise ModelError(f"{folder} holds several sets of weights ({names}) and only one is expected; remove the others")


def _shards(folder: Path, index: str) -> tuple[Path, ...]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ModelError(f"{folder / index} has no `weight_map` that says which file holds which tensor; {AGAIN}")
    files = sorted({str(name) for name in weight_map.values()})
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / index} names the file {name!r}; only *.safetensors beside it are allowed")
    return _all_there(folder, files, f"named by {index}")


def _group(folder: Path, group: Mapping[str, re.Match[str]]) -> tuple[Path, ...]:
    whole = [name for name, match in group.items() if match["part"] is None]
    if whole:
        return (folder / whole[0],)
    name, match = next(iter(group.items()))
    parts = int(match["parts"])
    head = name[: match.start("part")]
    files = [f"{head}{part:05d}-of-{parts:05d}.safetensors" for part in range(1, parts + 1)]
    return _all_there(folder, files, "numbered in the names of the others")


def _all_there(folder: Path, files: list[str], why: str) -> tuple[Path, ...]:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of its {len(files)} weight files, {why}: {few(missing)}; {AGAIN}"
        )
    return tuple(folder / name for name in files)


def _why_none(folder: Path, names: list[str]) -> str:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f"{folder} holds its weights as pickles only ({few(pickles)}); opening a pickle can run any code, so "
            "omnimuse reads *.safetensors only. Use a revision of the model that has safetensors, or convert it where "
            "you trust it: load the pipeline with diffusers and call "
            "save_pretrained(NEW_FOLDER, safe_serialization=True)"
        )
    there = f"it holds {few(names)}" if names else "it is empty" if folder.is_dir() else "there is no such folder"
    return f"{folder} has no *.safetensors weights: {there}; {AGAIN}"


def few(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """`names` as a phrase, cut after `most`."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
