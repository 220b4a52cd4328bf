"""Builds the components that diffusers and transformers implement: VAEs, text encoders, tokenizers.

Called by the worker's build, with class names from `model_index.json`. Behaves as `from_pretrained(dtype=...)` of those
libraries: computed buffers stay float32. Imports a library only when a checkpoint needs it, and keeps it quiet; a
tokenizer that does without is ours.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.differences import Differences, refuse_differences
from omnimuse.loader.files import AGAIN, read_json, weight_files
from omnimuse.loader.tensors import DtypePolicy, construct_unfilled, settle
from omnimuse.loader.tokenizer import LibraryTokenizer, PlainTokenizer, suffices
from omnimuse.loader.weights import load_weights, randomise, stored_shapes

LIBRARIES = ("diffusers", "transformers")
"""The libraries whose classes a checkpoint may name."""

_HEADS = re.compile(r"(^|\.)(lm_head|score|classifier|qa_outputs)\.")


def load_library_component(
    checkpoint: Checkpoint,
    name: str,
    dtype: torch.dtype,
    device: torch.device | str,
    load: Literal["weights", "dummy"] = "weights",
    seed: int = 0,
) -> Any:
    """The component `name` of `checkpoint`: a network on `device` in eval mode without gradients, or a tokenizer.

    `load="dummy"` needs configurations and tokenizer files but no weights; its numbers come from `seed`.
    ModelError says what is missing, damaged or not known to the installed library.
    """
    folder, device = checkpoint.path(name), torch.device(device)
    library, _ = checkpoint.components[name]
    cls = library_class(checkpoint, name)
    if cls is PlainTokenizer:
        return PlainTokenizer(folder)
    with quiet(library):
        if not issubclass(cls, nn.Module):
            return _load_plain(cls, folder)
        if load == "weights" and library == "transformers":
            return _load_transformers(cls, folder, dtype, device)
        module = construct_unfilled(lambda: _from_config(cls, checkpoint, name))
        policy = DtypePolicy(dtype, _float32(cls, library, dtype))
        if load == "dummy":
            randomise(module, seed, name, policy, device)
        else:
            load_weights(module, folder, (), policy, device)
        return module


def library_class(checkpoint: Checkpoint, name: str) -> Any:
    """The class of component `name`, imported from its library; most of a start's time goes into these imports.

    For a tokenizer that needs no library it is `PlainTokenizer`.
    """
    library, kind = checkpoint.components[name]
    if library not in LIBRARIES:
        raise ModelError(
            f"component {name!r} of {checkpoint.folder} is {library}.{kind}: code from elsewhere is never "
            f"run; only classes of {' and '.join(LIBRARIES)} are allowed"
        )
    if library == "transformers" and suffices(checkpoint.path(name), kind):
        return PlainTokenizer
    with quiet(library):
        package = import_module(library)
        known = kind.isidentifier() and not kind.startswith("_") and hasattr(package, kind)
        found = getattr(package, kind) if known else None
    if not known:
        raise ModelError(
            f"component {name!r} of {checkpoint.folder} is a {library}.{kind}, which {library} "
            f"{package.__version__} does not have; install a version of {library} that does"
        )
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise ModelError(f"component {name!r} of {checkpoint.folder}: {library}.{kind} cannot be loaded from a folder")
    return found


def _from_config(cls: Any, checkpoint: Checkpoint, name: str) -> nn.Module:
    """A network built from its configuration alone."""
    if checkpoint.components[name][0] == "diffusers":
        built = cls.from_config(dict(checkpoint.config(name)))
    else:
        _check_json(checkpoint.path(name))
        built = cls(cls.config_class.from_pretrained(checkpoint.path(name), local_files_only=True))
    assert isinstance(built, nn.Module)
    return built


def _float32(cls: Any, library: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Names of parts that the library itself keeps in float32 when asked for `dtype`."""
    kept = cls._keep_in_fp32_modules or ()
    kept = (kept,) if isinstance(kept, str) else tuple(kept)
    if library == "diffusers":
        return kept
    strict = tuple(cls._keep_in_fp32_modules_strict or ())
    return (*kept, *strict) if dtype is torch.float16 else strict


def _load_plain(cls: Any, folder: Path) -> Any:
    """A tokenizer or processor."""
    _check_json(folder)
    try:
        found = cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as problem:
        raise ModelError(f"the {cls.__name__} in {folder} cannot be read ({problem}); {AGAIN}") from problem
    if cls.__module__.startswith("transformers.") and hasattr(found, "apply_chat_template"):
        return LibraryTokenizer(found, folder) if hasattr(found, "get_chat_template") else found
    return found


def _check_json(folder: Path) -> None:
    """ModelError for a JSON file that a library would read without bounds."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)


def _load_transformers(cls: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    _check_json(folder)
    for path in weight_files(folder):
        stored_shapes(path)  # refuses damaged files with their names
    try:
        module, info = cls.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    except (OSError, ValueError, SafetensorError) as problem:
        raise ModelError(f"the {cls.__name__} in {folder} cannot be read ({problem}); {AGAIN}") from problem
    refuse_differences(folder, _differences(info))
    module.to(device)  # buffers keep their dtype
    settle(module, device)
    assert isinstance(module, nn.Module)
    return module


def _differences(info: Mapping[str, Any]) -> Differences:
    """What transformers reports, in our words; heads that an encoder does not need may be left over."""
    unexpected = sorted(name for name in info["unexpected_keys"] if not _HEADS.search(name))
    misshaped = sorted((name, tuple(want), tuple(have)) for name, have, want in info["mismatched_keys"])
    return Differences(tuple(sorted(info["missing_keys"])), tuple(unexpected), tuple(misshaped))


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silences progress bars, logging below errors and warnings of `library`; restores everything afterwards."""
    if library not in LIBRARIES:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging = import_module(f"{library}.utils.logging")
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
