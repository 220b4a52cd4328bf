"""Where the file of an adapter is, and what tells it from others. No torch: the command line looks first, too."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from omnimuse.core.errors import RequestError, plain, reason
from omnimuse.loader.files import PICKLES
from omnimuse.loader.resolve import BUNDLED

USUAL = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What files of adapters are called in folders."""


def find_file(source: str, folder: Path | None = None) -> Path:
    """The file that `source` names, itself or in its folder; RequestError where there is none that can be read.

    With a `folder`, what is not inside of it is not there. Without, `omnimuse/MODEL/NAME` is a bundled one.
    """
    try:
        path = _bundled(source) or Path(source).expanduser() if folder is None else _inside(source, folder)
        path.stat()
    except FileNotFoundError:
        pass  # said below, where it is no pickle
    except (OSError, ValueError, RuntimeError) as problem:  # too long, a loop of links, a folder that is closed
        raise refusal(
            source, f"cannot be looked up ({reason(problem)}); give the path of a *.safetensors file"
        ) from None
    if path.suffix in PICKLES:
        raise refusal(source, "is a pickle, which can run any code when it is opened; use a *.safetensors file")
    if path.is_dir():
        there = [path / name for name in USUAL if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(there) != 1:
            found = f"{len(there)} adapters; name the file that is meant" if there else "no *.safetensors file"
            raise refusal(source, f"is a folder with {found}")
        return find_file(str(Path(source) / there[0].name), folder)
    if not path.is_file():
        raise refusal(source, "is no file or folder on this machine; give the path of a *.safetensors file")
    if path.suffix != ".safetensors":
        raise refusal(source, "is no *.safetensors file; other formats are not read")
    return path


def _bundled(source: str) -> Path | None:
    """Where the bundled adapter that `source` names would be; None if it names none."""
    owner, _, rest = source.partition("/")
    model, slash, name = rest.partition("/")
    if owner != BUNDLED or not slash or "/" in name:
        return None
    home = Path(str(files("omnimuse"))) / "bundled" / model / "loras"
    there = sorted(file.stem for file in home.glob("*.safetensors"))
    if name not in there:
        known = f"; there are {', '.join(f'{owner}/{model}/{stem}' for stem in there)}" if there else ""
        raise refusal(source, f"is not bundled with omnimuse{known}")
    return home / f"{name}.safetensors"


def _inside(source: str, folder: Path) -> Path:
    """`source` as a path in `folder`; RequestError for one that leads out of it, through links as well."""
    path = folder / source
    if not path.resolve().is_relative_to(folder.resolve()):
        raise refusal(source, "is not inside of the folder of adapters; name a file that is")
    return path


def stamp(source: str, folder: Path | None = None) -> str:
    """What tells the file that `source` names from any other, and from itself when it is changed."""
    file = find_file(source, folder).resolve()
    about = file.stat()
    return f"{file}@{about.st_mtime_ns}-{about.st_size}"


def refusal(source: str, why: str) -> RequestError:
    """The error for an adapter that is not worn."""
    return RequestError(plain(f"the adapter {source} {why}"), "loras")
