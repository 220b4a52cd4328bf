"""Which files of a component's folder hold its weights: one safetensors file, or shards named by an index.

Called by `checkpoint` (to refuse early) and `weights` (to read). Reads names and indexes only, never tensors; no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import ModelError, reason

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
"""Endings of weight files that are pickles: opening one can run any code, so none is ever opened."""
SINGLE = (".safetensors", ".gguf")
"""How the name of a file ends that may be a model by itself."""

USUAL_STEMS = ("diffusion_pytorch_model", "model")
AGAIN = "get the checkpoint again (for a hub id, `hf download ID` resumes where it stopped)"
"""What to do about files that are incomplete or damaged."""

JSON_BYTES, JSON_DEPTH, JSON_DIGITS = 256 * 2**20, 64, 64
"""Bounds of a JSON file of a checkpoint: its size, how deep it is, and the digits of a number."""

_FILE = re.compile(r"(?P<stem>.+?)(\.(?P<variant>[^.]+))?(-(?P<part>\d{5})-of-(?P<parts>\d{5}))?\.safetensors")
_OLD_FILE = re.compile(r"(?P<stem>.+?)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.(?P<variant>[^.]+)\.safetensors")
_INDEX = re.compile(r"(?P<stem>.+?)\.safetensors\.index(\.(?P<variant>[^.]+))?\.json")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ModelError if it cannot be read, is something else, or beyond the bounds above."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ModelError(f"{path} has more than {told_bytes(JSON_BYTES)}, and no JSON of a checkpoint has; {AGAIN}")
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text, parse_int=_integer, parse_float=_finite)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; {AGAIN}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path} cannot be read: {reason(problem)}") from problem
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno}, column {problem.colno}"
        raise ModelError(f"{path} is not valid JSON ({problem.msg} at {where}); {AGAIN}") from problem
    except _NumberError as problem:
        raise ModelError(f"{path} has a number that no setting has ({problem}); {AGAIN}") from None
    except RecursionError:
        raise _too_deep(path) from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, not an object of names and values; {AGAIN}")
    if text.count("[") + text.count("{") > JSON_DEPTH and _depth(content) > JSON_DEPTH:
        raise _too_deep(path)
    return content


class _NumberError(ValueError):
    """Digits without end, or a number too large for a float."""


def _integer(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise _NumberError(f"{digits[:16]}... of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits) if len(digits) <= JSON_DIGITS else math.inf
    if math.isinf(number):  # `Infinity`, which diffusers writes, is a word and does not come here
        raise _NumberError(f"{digits[:16]}{'...' * (len(digits) > 16)}")
    return number


def _depth(content: Any) -> int:
    """How deep lists and objects lie in each other; looks no deeper than it matters."""
    level, depth = [content], 0
    while level and depth <= JSON_DEPTH:
        depth += 1
        inner = [value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer)]
        level = [value for value in inner if isinstance(value, dict | list)]
    return depth


def _too_deep(path: Path) -> ModelError:
    return ModelError(f"{path} has lists or objects more than {JSON_DEPTH} deep, and no checkpoint has; {AGAIN}")


@dataclass(frozen=True)
class WeightFiles:
    """The files with a component's weights, in name order; of shards with an `index`, which file has which tensor."""

    paths: tuple[Path, ...]
    index: Path | None = None
    owners: Mapping[str, str] = field(default_factory=dict)


def weight_files(folder: Path) -> WeightFiles:
    """The safetensors files that together hold the weights of the component in `folder`, which may be the one file.

    Plain files win; those of a variant (`model.fp16.safetensors`) are taken only if there are no plain ones. ModelError
    names a missing shard, refuses pickles and says which choice is open if there are several.
    """
    if folder.suffix == ".safetensors" and folder.is_file():
        return WeightFiles((folder,))
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    indexes = {(m["stem"], m["variant"]): name for name in names if (m := _INDEX.fullmatch(name))}
    singles = {name: m for name in names if (m := _OLD_FILE.fullmatch(name) or _FILE.fullmatch(name))}
    for plain in (True, False):
        found = sorted((key for key in indexes if (key[1] is None) is plain), key=str)
        if found:
            return _shards(folder, indexes[_one(folder, found)])
        keys = sorted({(m["stem"], m["variant"]) for m in singles.values() if (m["variant"] is None) is plain}, key=str)
        if keys:
            chosen = _one(folder, keys)
            group = {name: m for name, m in singles.items() if (m["stem"], m["variant"]) == chosen}
            return WeightFiles(_group(folder, group))
    raise ModelError(_why_none(folder, names))


def _one(folder: Path, keys: list[tuple[str, str | None]]) -> tuple[str, str | None]:
    usual = [key for key in keys if key[0] in USUAL_STEMS]
    if len(keys) == 1 or len(usual) == 1:
        return usual[0] if usual else keys[0]
    names = ", ".join(".".join(part for part in key if part) + ".safetensors" for key in keys)
    raise ModelError(f"{folder} holds several sets of weights ({names}) and only one is expected; remove the others")


def _shards(folder: Path, index: str) -> WeightFiles:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ModelError(f"{folder / index} has no `weight_map` that says which file holds which tensor; {AGAIN}")
    owners = {str(tensor): str(name) for tensor, name in weight_map.items()}
    files = sorted(set(owners.values()))
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / index} names the file {name!r}; only *.safetensors beside it are allowed")
    return WeightFiles(_all_there(folder, files, f"named by {index}"), folder / index, owners)


def _group(folder: Path, group: Mapping[str, re.Match[str]]) -> tuple[Path, ...]:
    whole = [name for name, match in group.items() if match["part"] is None]
    if whole:
        return (folder / whole[0],)
    name, match = next(iter(group.items()))
    parts = int(match["parts"])
    head, tail = name[: match.start("part")], name[match.end("parts") :]
    files = [f"{head}{part:05d}-of-{parts:05d}{tail}" for part in range(1, parts + 1)]
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
