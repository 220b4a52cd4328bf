"""Where the file of an adapter is, and what tells it from others. No torch: the command line looks first, too."""

from __future__ import annotations

from pathlib import Path

from omnimuse.core.errors import RequestError
from omnimuse.loader.files import PICKLES

USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What files of adapters are called in folders."""


def find_file(source: str) -> Path:
    """The file that `source` names, itself or in its folder; RequestError where there is none that can be read."""
    path = Path(source).expanduser()
    if path.suffix in PICKLES:
        raise refusal(source, "is a pickle, which can run any code when it is opened; use a *.safetensors file")
    if path.is_dir():
        there = [path / name for name in USUAL if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(there) != 1:
            found = f"{len(there)} adapters; name the file that is meant" if there else "no *.safetensors file"
            raise refusal(source, f"is a folder with {found}")
        return there[0]
    if not path.is_file():
        raise refusal(source, "is no file or folder on this machine; give the path of a *.safetensors file")
    if path.suffix != ".safetensors":
        raise refusal(source, "is no *.safetensors file; other formats are not read")
    return path


def stamp(source: str) -> str:
    """What tells the file that `source` names from any other, and from itself when it is changed."""
    file = find_file(source).resolve()
    about = file.stat()
    return f"{file}@{about.st_mtime_ns}-{about.st_size}"


def refusal(source: str, why: str) -> RequestError:
    """The error for an adapter that is not worn."""
    return RequestError(f"the adapter {source} {why}", "loras")
