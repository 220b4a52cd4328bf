"""Builds the components that diffusers and transformers implement: VAEs, text encoders, tokenizers.

Called by the worker's build, with class names from `model_index.json`. Behaves as `from_pretrained(dtype=...)` of those
libraries: computed buffers stay float32. Imports a library only when a checkpoint needs it, and keeps it quiet; a
tokenizer that does without is ours.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.files import AGAIN, read_json
from omnimuse.loader.rules import Rule, Translate
from omnimuse.loader.tensors import construct, outline
from omnimuse.loader.tokenizer import LibraryTokenizer, PlainTokenizer, suffices

LIBRARIES = ("diffusers", "transformers")
"""The libraries whose classes a checkpoint may name."""

PACKAGES = ("sentencepiece", "tiktoken")
"""What some tokenizers of transformers need besides."""

_HEADS = re.compile(r"(^|\.)(lm_head|score|classifier|qa_outputs)\.")
"""Heads that an encoder does not need may be left over."""


def load_tokenizer(checkpoint: Checkpoint, name: str, part: str) -> Any:
    """The tokenizer or processor `name`; of a processor perhaps the tokenizer alone, its `part` of that name."""
    folder = checkpoint.path(name)
    if part:
        assert part == "tokenizer", "the other parts of a processor are ours"
        cls = import_module("transformers").AutoTokenizer
    else:
        cls = library_class(checkpoint, name)
    if cls is PlainTokenizer:
        return PlainTokenizer(folder)
    _check_json(folder)
    try:
        with quiet(checkpoint.components[name][0]):
            found = cls.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as problem:
        if package := _lacks(folder, problem):
            raise ModelError(
                f"the {cls.__name__} in {folder} needs {package}, which is not installed: pip install {package}"
            ) from problem
        raise ModelError(f"the {cls.__name__} in {folder} cannot be read ({problem}); {AGAIN}") from problem
    if type(found).__module__.startswith("transformers.") and hasattr(found, "apply_chat_template"):
        return LibraryTokenizer(found, folder) if hasattr(found, "get_chat_template") else found
    return found


def construct_library_network(checkpoint: Checkpoint, name: str, part: str = "") -> nn.Module:
    """The network `name`, or a `part` of it, as its library builds it, its stored tensors on the meta device."""
    return _built(construct, checkpoint, name).get_submodule(part)


def _built(how: Callable[[Callable[[], nn.Module]], nn.Module], checkpoint: Checkpoint, name: str) -> nn.Module:
    """The network `name` as its library makes it; `how` says where its tensors are."""
    cls, library = library_class(checkpoint, name), checkpoint.components[name][0]
    _check_json(checkpoint.path(name))
    with quiet(library):
        return how(lambda: from_config(cls, checkpoint, name))


def library_rules(checkpoint: Checkpoint, name: str, module: nn.Module, part: str = "") -> tuple[Rule, ...]:
    """How the names in the files become those of `module`, which is the `part` of `name`, by the library's own tables.

    ModelError where transformers would compute other tensors from the stored ones.
    """
    whole = _built(outline, checkpoint, name) if part else module
    if checkpoint.components[name][0] == "transformers":
        rule = _transformers_names(checkpoint, name, whole)
    else:
        rule = library_names(whole)
    return (rule, _only(part, frozenset(whole.state_dict()))) if part else (rule,)


def library_names(module: Any) -> Translate:
    """What diffusers does to stored names: it leaves out those that its class knows to be left over."""
    known = frozenset(module.state_dict())
    unneeded = [*map(re.compile, module._keys_to_ignore_on_load_unexpected or ())]
    return Translate(lambda name: "" if name not in known and any(each.search(name) for each in unneeded) else name)


def _transformers_names(checkpoint: Checkpoint, name: str, module: nn.Module) -> Translate:
    """What transformers does to stored names."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    cls: Any = type(module)
    transforms, known = get_model_conversion_mapping(module), module.state_dict()
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    unneeded = [_HEADS, *map(re.compile, cls._keys_to_ignore_on_load_unexpected or ())]

    def translate(stored: str) -> str:
        new, converted = rename_source_key(stored, renamings, converters, cls.base_model_prefix, known)
        if converted is not None:
            raise ModelError(
                f"{checkpoint.path(name)}: transformers computes weights of {cls.__name__} from {stored} and others "
                "while it loads them, which omnimuse does not do; save the model once with this transformers"
            )
        return "" if new not in known and any(pattern.search(new) for pattern in unneeded) else new

    return Translate(translate)


def _only(part: str, known: frozenset[str]) -> Translate:
    """Of the names that are `known`, those in `part`, as it has them; others are left out."""

    def translate(name: str) -> str:
        if name.startswith(f"{part}."):
            return name.removeprefix(f"{part}.")
        return "" if name in known else name

    return Translate(translate)


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


def from_config(cls: Any, checkpoint: Checkpoint, name: str) -> nn.Module:
    """A network built from its configuration alone."""
    if checkpoint.components[name][0] == "diffusers":
        built = cls.from_config(dict(checkpoint.config(name)))
    else:
        _check_json(checkpoint.path(name))
        built = cls(cls.config_class.from_pretrained(checkpoint.path(name), local_files_only=True))
    assert isinstance(built, nn.Module)
    return built


def kept_float32(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Names of parts of the network `name` that its library itself keeps in float32 when asked for `dtype`."""
    cls, library = library_class(checkpoint, name), checkpoint.components[name][0]
    kept = cls._keep_in_fp32_modules or ()
    kept = (kept,) if isinstance(kept, str) else tuple(kept)
    if library == "diffusers":
        return kept
    strict = tuple(cls._keep_in_fp32_modules_strict or ())
    return (*kept, *strict) if dtype is torch.float16 else strict


def _check_json(folder: Path) -> None:
    """ModelError for a JSON file that a library would read without bounds."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)


def _lacks(folder: Path, problem: Exception) -> str:
    """The package without which the library cannot read the tokenizer in `folder`; empty if it is not that."""
    if not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model")) and not find_spec("sentencepiece"):
        return "sentencepiece"  # the library's own message may name another one, which it tried last
    return next((name for name in PACKAGES if name in str(problem).lower() and not find_spec(name)), "")


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
