"""Reads the components of a checkpoint in the library's own way, with the very classes that it names.

Our loader reads networks tensor by tensor into memory of its own, and takes simpler tokenizers where they suffice. Here
everything must be as the library has it: even where weights lie in memory changes the last bits of a product. What our
loader refuses is refused here, too: pickles, damaged files, missing weights, code from elsewhere.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import PACKERS, Checkpoint
from omnimuse.loader.components import LIBRARIES, quiet
from omnimuse.loader.files import AGAIN, few, read_json, weight_files
from omnimuse.loader.headers import stored_in

log = logging.getLogger(__name__)


def read_components(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, load: Literal["weights", "dummy"]
) -> dict[str, Any]:
    """Every component that `checkpoint` has: networks on `device`, in eval mode and without gradients, and the rest."""
    return {name: read_component(checkpoint, name, dtype, device, load) for name in checkpoint.components}


def named_class(checkpoint: Checkpoint, name: str) -> Any:
    """The class that the checkpoint names for component `name`; ModelError if it is not one of the libraries'."""
    library, kind = checkpoint.components[name]
    module = _module(library)
    if module is None or not kind.isidentifier():
        raise ModelError(
            f"component {name!r} of {checkpoint.folder} is {library}.{kind}: code from elsewhere is never "
            f"run; only classes of {' and '.join(LIBRARIES)} are allowed"
        )
    with quiet(_library(library)):
        package = import_module(module)
        if not hasattr(package, kind):  # what older versions of transformers called an image processor
            kind = re.sub("FeatureExtractor$", "ImageProcessor", kind)
        found = getattr(package, kind) if hasattr(package, kind) and not kind.startswith("_") else None
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        version = import_module(_library(library)).__version__
        raise ModelError(
            f"component {name!r} of {checkpoint.folder} is a {module}.{kind}, which {_library(library)} {version} "
            "does not have; install a version that does"
        )
    return found


def _library(name: str) -> str:
    return name if name in LIBRARIES else "diffusers"


def _module(library: str) -> str | None:
    """The module of what a checkpoint calls a library; None if no code of it is ever run.

    A few components stand beside the pipeline that they were made for: diffusers then names the package of that.
    """
    if library in LIBRARIES:
        return library
    home = Path(str(import_module("diffusers").__file__)).parent / "pipelines" / library
    return f"diffusers.pipelines.{library}" if library.isidentifier() and home.is_dir() else None


def read_component(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, device: torch.device, load: Literal["weights", "dummy"]
) -> Any:
    """One of them."""
    cls, folder = named_class(checkpoint, name), checkpoint.path(name)
    with quiet("diffusers"), quiet("transformers"):
        if not issubclass(cls, nn.Module):
            return _plain(cls, folder)
        ours = hasattr(cls, "config_class")  # of transformers; the networks of diffusers are configured by themselves
        module = _drawn(cls, folder, ours).to(dtype) if load == "dummy" else _stored(cls, folder, dtype, ours)
    return module.to(device).eval().requires_grad_(False)


def _plain(cls: Any, folder: Path) -> Any:
    """A tokenizer, a processor, a scheduler or a guider."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    try:
        return cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as problem:
        raise ModelError(f"the {cls.__name__} in {folder} cannot be read ({problem}); {AGAIN}") from problem


def _drawn(cls: Any, folder: Path, of_transformers: bool) -> nn.Module:
    """A network with the random weights that its library begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if of_transformers:
            made = cls(cls.config_class.from_pretrained(folder, local_files_only=True))
        else:
            made = cls.from_config(cls.load_config(folder, local_files_only=True))
    assert isinstance(made, nn.Module)
    return made


def _stored(cls: Any, folder: Path, dtype: torch.dtype, of_transformers: bool) -> nn.Module:
    stored = stored_in(folder)  # refuses damaged files with their names
    if any(each.parts for each in stored.values()) and not _unpacks(folder, of_transformers):
        raise ModelError(
            f"the weights of the {cls.__name__} in {folder} are packed, and its library would take what is stored for "
            "floats; use the checkpoint that they were made from"
        )
    if how := to_install([folder]):
        raise ModelError(f"the {cls.__name__} in {folder} needs a package that is not here, which packed it; {how}")
    files = weight_files(folder).paths
    chosen = {"ignore_mismatched_sizes": True} if of_transformers else {"variant": _variant(files[0])}
    try:
        module, info = cls.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, local_files_only=True, **chosen
        )
    except ImportError as problem:
        raise ModelError(
            f"the {cls.__name__} in {folder} needs a package that is not here ({problem}); install it"
        ) from problem
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise ModelError(f"the {cls.__name__} in {folder} cannot be read ({problem}); {AGAIN}") from problem
    _refuse_gaps(cls, folder, info)
    assert isinstance(module, nn.Module)
    return module


def _unpacks(folder: Path, of_transformers: bool) -> bool:
    """Whether a library knows by its configuration how weights are packed, or says why it does not."""
    said = _packing(folder)
    return said in PACKERS or (of_transformers and said is not None)


def packed_in(checkpoint: Checkpoint) -> list[str]:
    """The components whose files are packed."""
    there = [name for name in checkpoint.components if checkpoint.has_weights(name)]
    return [name for name in there if any(each.parts for each in stored_in(checkpoint.path(name)).values())]


def taken_for_floats(checkpoint: Checkpoint) -> list[str]:
    """Those of them whose libraries would take what is stored for floats."""
    libraries = {name: library for name, (library, _) in checkpoint.components.items()}
    return [
        name for name in packed_in(checkpoint) if not _unpacks(checkpoint.path(name), libraries[name] == "transformers")
    ]


def _packing(folder: Path) -> str | None:
    """What the library that has packed weights calls itself in their configuration."""
    said = read_json(folder / "config.json").get("quantization_config")
    return str(said.get("quant_method")) if isinstance(said, Mapping) else None


def to_install(folders: Iterable[Path]) -> str:
    """How to get the libraries that have packed these components and are not here; our families read theirs
    themselves.
    """
    lacking = {packed for folder in folders if (packed := _packing(folder)) in PACKERS and find_spec(packed) is None}
    return f'pip install "omnimuse[{",".join(sorted(lacking))}]"' if lacking else ""


def _variant(file: Path) -> str | None:
    """`fp16` of `model.fp16.safetensors` and of its shards."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", file.stem).partition(".")[2] or None


def _refuse_gaps(cls: Any, folder: Path, info: Mapping[str, Any]) -> None:
    missing = [str(name) for name in sorted(info["missing_keys"])]
    misshaped = [str(each[0]) for each in info.get("mismatched_keys") or ()]
    if missing or misshaped:
        what = f"lacks {few(missing)}" if missing else f"has other shapes for {few(misshaped)}"
        raise ModelError(f"{folder} {what}, of the weights that {cls.__name__} needs; {AGAIN}")
    if left := sorted(info["unexpected_keys"]):
        log.warning("%s holds weights that %s does not use: %s", folder, cls.__name__, few(left))
