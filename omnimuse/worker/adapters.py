"""The adapters of a build: which layers of which component can wear them, and what speaks against it.

Made when every network has its final layers; an adapter itself is read when a request first names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from omnimuse.compat.door import Wardrobe
from omnimuse.core.errors import AdaptersFullError, CapacityError, OmnimuseError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.core.plans import Slices
from omnimuse.layers.network import Network
from omnimuse.loader.adapter_file import stamp
from omnimuse.loader.adapters import Reader
from omnimuse.loader.named import import_named, rules_of
from omnimuse.loader.sites import Sites
from omnimuse.lora.adapters import Adapters, adapt
from omnimuse.lora.linear import Adapted
from omnimuse.parallel.agree import most_of_all, trouble_of_all
from omnimuse.parallel.mesh import Mesh
from omnimuse.parallel.tensor import GatheredLinear, Gathering, SummedLinear
from omnimuse.quant.linear import QuantizedLinear
from omnimuse.worker.failures import settle
from omnimuse.worker.ranks import held_blocks

if TYPE_CHECKING:
    from omnimuse.worker.build import Build


LINEAR = (nn.Linear, QuantizedLinear, GatheredLinear, SummedLinear)


OWN_READING = (
    "the pipeline reads its weights itself, so that nobody knows what its checkpoint calls its layers; let it have "
    "`weights_sources` and `load_weights`"
)


def obstacle(under: Build) -> str:
    """Why no network of this build can wear adapters; empty if they can."""
    config = under.found.config
    if under.wearing.wardrobe is not None:
        return "" if under.wearing.wardrobe.sites else OWN_READING
    if under.found.spec.library:
        return f"{under.found.spec.library} runs this pipeline, and its networks are not ours to change"
    if under.replaced:
        return f"another engine writes in the place of {under.replaced}; use writer=own"
    if config.model.load == "dummy":
        return "they are found by the names in a checkpoint's files, and load=dummy reads none; use load=weights"
    return ""


def adapters_of(under: Build) -> Adapters:
    """What requests may have their networks wear."""
    found, config = under.found, under.found.config
    if under.wearing.wardrobe is not None:
        return _of_others(under, under.wearing.wardrobe)
    sites = {
        name: Sites(
            module,
            found.checkpoint.weights(name),
            partial(rules_of, found.spec.components[name], found.checkpoint, name, module),
            under.held.cuts.get(name, {}),
            import_named(aliases) if (aliases := found.spec.components[name].aliases) else (),
            _shares(under, name),
        )
        for name, module in under.modules.items()
    }
    if under.compiles and not obstacle(under):
        _dress(under)
    main = [name for name, module in under.modules.items() if isinstance(module, Network)]
    invariant = any((choice.name, choice.value) == ("tier", "invariant") for choice in under.choices)
    return Adapters(
        partial(adapt, under.modules),
        Reader(sites, main, under.device, config.lora.folder, kinds=_kinds(under)),
        partial(stamp, folder=config.lora.folder),
        limit=config.lora.memory,
        alone=invariant,
        obstacle=obstacle(under),
        rack=under.wearing.rack,
    )


def try_on_together(adapters: Adapters, loras: Sequence[Lora], mesh: Mesh) -> OmnimuseError | None:
    """Read what requests are to wear, on every rank; why they cannot, if any rank says so, here before others. Each is
    as large as on the rank that has most of it.
    """
    failure: Exception | None = None
    try:
        adapters.fetch(loras)
    except (OmnimuseError, OSError, MemoryError, RuntimeError, ValueError) as error:  # other ranks wait to hear of it
        failure = error
    found = None if failure is None else settle(failure, "reading adapters")
    wrong = trouble_of_all(mesh, found)
    own = [next(iter(adapters.sizes([lora]).values()), 0) for lora in loras]
    refused, *sizes = most_of_all(mesh, [found is not None and not isinstance(found, CapacityError), *own])
    adapters.heed(loras, sizes)
    if not wrong or (found is not None and refused == (not isinstance(found, CapacityError))):
        return found
    return RequestError(wrong, "loras") if refused else AdaptersFullError(wrong, retry_after=1.0)


def _of_others(under: Build, wardrobe: Wardrobe) -> Adapters:
    """The same for a pipeline from elsewhere."""
    folder = under.found.config.lora.folder
    return Adapters(
        wardrobe.dress,
        Reader(wardrobe.sites, wardrobe.main, under.device, folder, wardrobe.within, _kinds(under)),
        partial(stamp, folder=folder),
        limit=under.found.config.lora.memory,
        obstacle=obstacle(under),
        rack=under.wearing.rack,
    )


def _kinds(under: Build) -> dict[str, str]:
    """The class of every component, as its checkpoint says."""
    return {name: kind for name, (_, kind) in under.found.checkpoint.components.items()}


def _shares(under: Build, name: str) -> dict[str, Slices]:
    """Which inputs or outputs a layer of a component computes with here, where not all: none where another process has
    it.

    A layer whose outputs every rank is given has all of them.
    """
    module = under.modules[name]
    whole = {path for path, part in module.named_modules() if isinstance(part, Gathering)}
    found = {tensor.removesuffix(".weight"): share for tensor, share in under.held.shares.get(name, {}).items()}
    absent = dict.fromkeys(_absent(under, name, module), Slices(0, 0, ()))
    return {path: share for path, share in found.items() if path not in whole} | absent


def _absent(under: Build, name: str, module: nn.Module) -> set[str]:
    """The parts of a component that another process has."""
    if name not in under.here:
        return {path for path, _ in module.named_modules()}
    away = set[nn.Module]()
    for label in under.held.spans.get(name, {}):
        away.update(under.networks[name].stacks()[label].blocks())
        away.difference_update(held_blocks(under, name, label))
    inside = {part for block in away for part in block.modules()}
    return {path for path, part in module.named_modules() if part in inside}


def _dress(under: Build) -> None:
    """Every linear layer of compiled blocks here can wear adapters from the start: what is compiled would be compiled
    once more where its layers change. On several ranks who wears something runs past it.
    """
    under.wearing.rack.joins = under.mesh.size == 1
    here = under.here
    for name, network in ((name, network) for name, network in under.compiling.items() if name in here):
        inside = {part for block in network.all_blocks() for part in block.modules()}
        layers = [path for path, part in network.named_modules() if isinstance(part, LINEAR) and part in inside]
        for path in layers:
            adapt(under.modules, (name, path), under.wearing.rack)
            layer = network.get_submodule(path)
            assert isinstance(layer, Adapted)
            under.wearing.rack.compiled[name, path] = layer
