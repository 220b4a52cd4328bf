"""The weights of a pipeline of the contract: read from where it says they are, and given to its `load_weights`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from omnimuse.compat.contract.origins import Origins
from omnimuse.compat.vllm.model_executor.models.utils import AutoWeightsLoader
from omnimuse.compat.vllm_omni.diffusion.model_loader.diffusers_loader import ComponentSource
from omnimuse.core.errors import ModelError
from omnimuse.loader.files import few
from omnimuse.loader.headers import opened, stored_in
from omnimuse.loader.resolve import resolve
from omnimuse.loader.sources import Source
from omnimuse.loader.weights import refuse_no_numbers
from omnimuse.quant.packings import Rows

NETWORK = "transformer"
"""The component that weights are of which lie at the root of a checkpoint."""


def fill(pipe: nn.Module, name: str) -> Origins:
    """Read what `weights_sources` of `pipe` names; without any, it has read all of it itself. What went where.

    ModelError names parameters of those parts that `load_weights` says it did not fill.
    """
    sources: Sequence[ComponentSource] = vars(pipe).get("weights_sources") or ()
    origins = Origins()
    if not sources:
        return origins
    given = (each for source in sources for each in read(source, origins))
    load: Any = pipe.load_weights if hasattr(pipe, "load_weights") else AutoWeightsLoader(pipe).load_weights
    with origins:
        loaded: Iterable[str] | None = load(given)
    if loaded is None:
        return origins
    filled = set(loaded)
    parts = {source.prefix for source in sources if source.prefix}
    if any(not source.prefix for source in sources):
        parts |= {f"{key.partition('.')[0]}." for key in filled}
    missing = sorted(key for key, _ in pipe.named_parameters() if key.startswith(tuple(parts)) and key not in filled)
    if missing:
        raise ModelError(
            f"the weights of {name} are not complete: nothing filled {few(missing)}; its checkpoint or its "
            "`load_weights` lacks them (which returns the names of all that it filled)"
        )
    return origins


def sourced(pipe: nn.Module) -> set[str]:
    """The components whose weights are read here."""
    return {source.subfolder or NETWORK for source in vars(pipe).get("weights_sources") or ()}


def read(source: ComponentSource, origins: Origins) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a source, by its prefix and its name in the files, of which `origins` is told; one is in
    memory at a time. Of packed weights it is the floats that they stand for.
    """
    root = Path(source.model_or_path)
    folder = (root if root.is_dir() else resolve(source.model_or_path).path) / (source.subfolder or "")
    stored = stored_in(folder)
    for path in dict.fromkeys(each.path for each in stored.values()):
        if source.allow_patterns_overrides and not any(path.match(each) for each in source.allow_patterns_overrides):
            continue
        with opened(path) as handle:
            for name in (name for name, each in stored.items() if each.path == path):
                content = Source(handle, name, stored[name]).whole()
                tensor = content.floats() if isinstance(content, Rows) else content
                refuse_no_numbers(path, name, tensor)
                yield source.prefix + name, origins.stored((source.subfolder or NETWORK, name), tensor)
