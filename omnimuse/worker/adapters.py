"""The adapters of a build: which layers of which component can wear them, and what speaks against it.

Made when every network has its final layers; an adapter itself is read when a request first names it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from omnimuse.layers.network import Network
from omnimuse.loader.adapter_file import stamp
from omnimuse.loader.adapters import Reader
from omnimuse.loader.sites import Sites
from omnimuse.lora.adapters import Adapters
from omnimuse.worker.named import import_named, rules_of

if TYPE_CHECKING:
    from omnimuse.worker.build import Build


def obstacle(under: Build) -> str:
    """Why no network of this build can wear adapters; empty if they can."""
    config = under.found.config
    if under.found.spec.library:
        return f"{under.found.spec.library} runs this pipeline, and its networks are not ours to change"
    if config.model.load == "dummy":
        return "they are found by the names in a checkpoint's files, and load=dummy reads none; use load=weights"
    if config.compile.mode != "none":
        return "blocks are compiled as they are; start the engine without compile"
    if config.parallel.tensor > 1:
        return "layers are cut by parallel tensor; share out tokens instead (ulysses, ring)"
    return ""


def adapters_of(under: Build) -> Adapters:
    """What requests may have their networks wear."""
    found, config = under.found, under.found.config
    sites = {
        name: Sites(
            module,
            found.checkpoint.path(name),
            partial(rules_of, found.spec.components[name], found.checkpoint, name, module),
            under.cuts.get(name, {}),
            import_named(aliases) if (aliases := found.spec.components[name].aliases) else (),
        )
        for name, module in under.modules.items()
    }
    main = [name for name, module in under.modules.items() if isinstance(module, Network)]
    invariant = any((choice.name, choice.value) == ("tier", "invariant") for choice in under.choices)
    return Adapters(
        under.modules,
        Reader(sites, main, under.device, config.lora.folder),
        partial(stamp, folder=config.lora.folder),
        limit=config.lora.memory,
        alone=invariant,
        obstacle=obstacle(under),
    )
