"""The voices that lie beside the weights of a model that answers aloud, in a file as torch saves one: a pickle.

Only numbers are read of it: nothing that the file names is imported, looked up or run. No torch, so that the server's
front process can tell which voices there are.
"""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from pickletools import genops
from typing import Any

import numpy as np

from omnimuse.core.amounts import told_bytes
from omnimuse.core.errors import ModelError
from omnimuse.loader.files import AGAIN

VOICES = "spk_dict.pt"
"""What that file is called."""
PLAIN = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
"""Opcodes that stand for themselves."""
MOST_BYTES, MOST_NUMBERS = 64 * 2**20, 4_000_000
KINDS = {"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4"}
"""Kinds of tensors that are read, and their numbers."""


def read_voices(path: Path) -> dict[str, dict[str, Any]]:
    """By the name of a voice what the file has of it, tensors as nested lists; ModelError for anything else."""
    if path.stat().st_size > MOST_BYTES:
        raise ModelError(f"{path} has more than {told_bytes(MOST_BYTES)}, and no voices have; {AGAIN}")
    try:
        with zipfile.ZipFile(path) as archive:
            found = _Numbers(archive).load()
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"{path} cannot be read as voices that torch has saved: {error}; {AGAIN}") from None
    if not isinstance(found, dict) or not all(isinstance(voice, dict) for voice in found.values()):
        raise ModelError(f"{path} is no table of voices; {AGAIN}")
    tensors = [value for voice in found.values() for value in voice.values() if isinstance(value, np.ndarray)]
    if sum(tensor.size for tensor in tensors) > MOST_NUMBERS:
        raise ModelError(f"{path} has more than {MOST_NUMBERS} numbers, and no voices have; {AGAIN}")
    return {str(name): {key: _plain(value) for key, value in voice.items()} for name, voice in found.items()}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


class _Numbers:
    """What the opcodes of such a file build, done here for those that write tables of tensors; others are refused."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        [name] = [each for each in archive.namelist() if each.endswith("data.pkl")]
        self._archive, self._root = archive, name.removesuffix("data.pkl")
        self._stack, self._marks, self._memo = list[Any](), list[int](), dict[int, Any]()
        self._left, self._read_before = MOST_BYTES, dict[str, bytes]()
        self._code = self._read(name)

    def load(self) -> Any:
        """What the file holds."""
        for opcode, value, _ in genops(self._code):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._do(opcode.name, value)
        raise ValueError("it does not end")

    def _do(self, name: str, value: Any) -> None:
        stack = self._stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[value] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[value])
            case "EMPTY_DICT":
                stack.append({})
            case "NEWTRUE" | "NEWFALSE" | "NONE":
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(name))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = 0 if name == "EMPTY_TUPLE" else int(name[-1])
                stack.append(tuple(self._taken(len(stack) - count)))
            case "TUPLE":
                stack.append(tuple(self._taken(self._marks.pop())))
            case "SETITEM" | "SETITEMS":
                items = self._taken(len(stack) - 2 if name == "SETITEM" else self._marks.pop())
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                stack.append(_known(*value.split(" ")))
            case "STACK_GLOBAL":
                stack.append(_known(*self._taken(len(stack) - 2)))
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case "REDUCE":
                made, given = self._taken(len(stack) - 2)
                stack.append(made(*given))
            case _ if name in PLAIN:
                stack.append(value)
            case _:
                raise ValueError(f"it holds what is no table of numbers ({name})")

    def _taken(self, start: int) -> list[Any]:
        """What lies on the stack from `start` on, which is there no more."""
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def _read(self, name: str) -> bytes:
        if name not in self._read_before:
            self._left -= self._archive.getinfo(name).file_size
            if self._left < 0:
                raise ValueError(f"it holds more than {told_bytes(MOST_BYTES)}")
            self._read_before[name] = self._archive.read(name)
        return self._read_before[name]

    def _storage(self, _: str, kind: str, key: str, *others: Any) -> np.ndarray:
        return np.frombuffer(self._read(f"{self._root}data/{key}"), dtype=kind)


def _known(module: str, name: str) -> Any:
    """What stands for a name in the file: how a tensor is made of numbers, a kind of these, or a table."""
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return _tensor
    if (module, name) == ("collections", "OrderedDict"):
        return dict
    if module == "torch" and name in KINDS:
        return KINDS[name]
    raise ValueError(f"it names {module}.{name}, which is no number")


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A tensor of which all numbers lie one after the other."""
    whole = [prod(size[axis + 1 :]) for axis in range(len(size))]
    if any(have != want for have, want, length in zip(stride, whole, size, strict=True) if length > 1):
        raise ValueError("a tensor is not contiguous")
    return storage[offset : offset + prod(size)].reshape(size)
