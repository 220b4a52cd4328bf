"""From a configuration to a live pipeline: the build passes (seam B), listed once, in order.

Called by the engine's start-up and, up to where memory is needed, by `explain`. Each pass takes the build so far and
adds to it; a pass that cannot do what was asked raises with the reason. A model file knows nothing of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from omnimuse.ar.kv import Decoder
from omnimuse.attention.selection import bind_all
from omnimuse.compat.door import Place, Wardrobe, door_of
from omnimuse.core.config import Choice, Config
from omnimuse.core.environment import Environment
from omnimuse.core.errors import ConfigError
from omnimuse.core.plans import Slices, Span
from omnimuse.core.request import Door
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.network import Network
from omnimuse.loader.components import (
    construct_library_network,
    kept_float32,
    library_class,
    load_tokenizer,
)
from omnimuse.loader.named import import_named, rules_of
from omnimuse.loader.tensors import DtypePolicy, Home, OnDevice, cast, stored_tensors
from omnimuse.loader.tensors import construct as construct_empty
from omnimuse.loader.weights import load_weights, randomise
from omnimuse.lora.linear import Rack
from omnimuse.offload.host import store_beside
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.parcels import Away, Parcel
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import check_folder
from omnimuse.offload.visited import block_lists, visit
from omnimuse.parallel.mesh import SEQUENCE, Mesh
from omnimuse.parallel.shard import ShardRunner
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Context
from omnimuse.worker.abreast import choose_reading, lay_abreast
from omnimuse.worker.adapters import adapters_of
from omnimuse.worker.allocator import keep_memory
from omnimuse.worker.compiler import prepare
from omnimuse.worker.crew import Crew, choose_crew
from omnimuse.worker.find import Found, find, pipeline_for
from omnimuse.worker.governor import WATCHED, Governor, choose_waiting, govern
from omnimuse.worker.kernels import choose_kernels, give_kernels
from omnimuse.worker.part import keep_part, part_of
from omnimuse.worker.place import choose_device, choose_dtype, component_dtype, compute_on, shorter_products
from omnimuse.worker.quantize import quantize
from omnimuse.worker.ranks import (
    check_ranks,
    held_blocks,
    lend,
    pipe,
    rank_runners,
    sequence,
    shard,
    tensor_parallel,
    tiles,
    tiling_of,
    usual_tiles,
)
from omnimuse.worker.steady import choose_tier
from omnimuse.worker.step_caches import check_cache, step_cache
from omnimuse.worker.threads import Room, choose_threads
from omnimuse.worker.writing import replace_writer, start_writer

logger = logging.getLogger(__name__)


@dataclass
class Held:
    """What one rank has of networks, by component: of which tensors a share (`cuts`), with which of these shares it
    computes as they are (`shares`), and which blocks of a stack (`spans`). What is `lent` that rank alone has.
    """

    cuts: dict[str, dict[str, Slices]] = field(default_factory=dict)
    shares: dict[str, dict[str, Slices]] = field(default_factory=dict)
    spans: dict[str, dict[str, Span]] = field(default_factory=dict)
    lent: dict[str, int] = field(default_factory=dict)


@dataclass
class Wearing:
    """What networks wear is on the `rack` while they compute; what a door says of its layers is its `wardrobe`."""

    rack: Rack = field(default_factory=Rack)
    wardrobe: Wardrobe | None = None


@dataclass
class Hands:
    """How many threads compute, how they wait for each other, and the crew that can spare one, if there may be one."""

    threads: Choice
    waiting: Choice
    crew: Crew | None = None

    @property
    def count(self) -> int:
        return int(self.threads.value)


@dataclass
class Build:
    """A model under construction: its networks, their number formats and homes, and all components.

    `held` is what this rank has of them; where the network `replaced` would be another engine writes. `parcels` are the
    weights that networks bring to the device when it is their turn. `resources` close with the engine.
    """

    found: Found
    mesh: Mesh
    device: torch.device
    dtype: torch.dtype
    hands: Hands
    modules: dict[str, nn.Module] = field(default_factory=dict)
    formats: dict[str, DtypePolicy] = field(default_factory=dict)
    held: Held = field(default_factory=Held)
    replaced: str = ""
    homes: dict[str, Home] = field(default_factory=dict)
    parcels: dict[str, Parcel] = field(default_factory=dict)
    components: dict[str, Any] = field(default_factory=dict)
    wearing: Wearing = field(default_factory=Wearing)
    choices: list[Choice] = field(default_factory=list)
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def here(self) -> dict[str, nn.Module]:
        """The modules whose weights are on this rank: all but those that another one alone has."""
        rank = self.mesh.rank
        return {name: module for name, module in self.modules.items() if self.held.lent.get(name, rank) == rank}

    @property
    def dtype_asked(self) -> bool:
        """Whether somebody has said in which number format networks compute."""
        return self.found.config.model.dtype != "auto" or bool(Environment.read().dtype)

    @property
    def compiles(self) -> bool:
        """Whether blocks are compiled."""
        return self.found.config.compile.mode != "none"

    @property
    def networks(self) -> dict[str, Network]:
        """Those of our modules that run at every step."""
        return {name: module for name, module in self.modules.items() if isinstance(module, Network)}

    @property
    def compiling(self) -> dict[str, Network]:
        """Those of them whose blocks are compiled if any are: what draws, and of what writes the pieces of blocks."""
        by_token = self.found.spec.by_token
        found = {name: network for name, network in self.drawing.items() if not by_token}
        for name, network in self.networks.items():
            if all(block.pieces for block in network.all_blocks()):
                found[name] = network
        return found

    @property
    def drawing(self) -> dict[str, Network]:
        """Those of them that do more than write one token at a time: what changes how blocks run is there for these.

        Ranks share the weights of a decoder that writes, and nothing else of it: all of them write the same.
        """
        writers = {name for name, each in self.networks.items() if isinstance(each, Decoder) and not each.draws}
        return {name: network for name, network in self.networks.items() if name not in writers}


@dataclass(frozen=True)
class Built:
    """A live pipeline, the door in front of it, and everything that was chosen on the way."""

    pipeline: Pipeline
    door: Door
    choices: tuple[Choice, ...]
    resources: ExitStack
    governor: Governor | None
    crew: Crew | None = None


Pass = Callable[[Build], None]


def build(config: Config, mesh: Mesh | None = None) -> Built:
    """Run every pass and return the live pipeline. Takes as long as reading the weights."""
    under = begin(config, mesh or Mesh.single())
    compute_on(under.device)
    keep_memory(under.device)
    with run(under, (*SHAPES, *WEIGHTS)).resources as opened:
        return replace(_assemble(under), resources=opened.pop_all())


def import_libraries(config: Config) -> None:
    """Import the library classes that a build will need: the longest part of starting a small model."""
    found = find(config)
    if found.spec.library:
        door_of(found.spec).preload(found.spec)
        return
    for name, component in found.spec.components.items():
        if component.built and not component.network and name in found.checkpoint.components:
            library_class(found.checkpoint, name)


# -- the passes, in order: first those that need no memory and refuse what cannot be ----------------------------------


def check(under: Build) -> None:
    """Choices that exclude each other."""
    offload = under.found.config.offload
    check_writing(under)
    check_ranks(under)
    if offload.mode != "none":
        check_folder(offload.folder, under.device)


def check_writing(under: Build) -> None:
    """What a model that makes one token at a time cannot be given, whatever else it is."""
    config, family = under.found.config, under.found.spec.family
    parallel, drawn = config.parallel, under.found.door.limits.draws  # its pictures are drawn in steps like any
    if not under.found.spec.by_token:
        return
    chosen = {
        f"cache={config.cache.kind}": (config.cache.kind != "none" and not drawn, "no step is like the one before"),
        f"{parallel}": (
            parallel.ranks > parallel.tensor * parallel.pipe,
            "one token has no parts, and one branch; use tensor, pipe, or replicas",
        ),
    }
    for name, (given, why) in chosen.items():
        if given:
            what = "writes text" if under.found.spec.writes else "speaks"
            raise ConfigError(f"{family} {what}, for which {name} is not there ({why}); leave it out")


def construct(under: Build) -> None:
    """Every network, on the meta device: shapes without memory. (A library that runs the pipeline makes its own.)"""
    checkpoint = under.found.checkpoint
    if under.found.spec.library:
        return
    for name, component in under.found.spec.components.items():
        if name == under.replaced or not component.built or name not in checkpoint.components:
            continue
        if not checkpoint.has_weights(name):
            continue
        if component.network:
            make = partial(import_named(component.network).from_config, checkpoint.config(name))
            module = construct_empty(make)
        else:
            module = construct_library_network(checkpoint, name, component.part)
        under.modules[name] = module.eval().requires_grad_(False)


def check_blocks(under: Build) -> None:
    """What is done to blocks alone, where a library runs those of a network."""
    parallel, mode = under.found.config.parallel, under.found.config.compile.mode
    for name, network in under.networks.items():
        chosen = {f"compile={mode}": mode != "none", f"{parallel}": parallel.tensor > 1 or parallel.pipe > 1}
        for what in (what for what, given in chosen.items() if given and not network.stacks()):
            raise ConfigError(
                f"{what} is not there for {name}, whose blocks are run by {under.found.checkpoint.components[name][0]} "
                "as it has them; leave it out"
            )


def formats(under: Build) -> None:
    """The number format of every weight; convolutions in channels-last order, which matrix units need not reorder."""
    checkpoint = under.found.checkpoint
    for name, module in under.modules.items():
        component = under.found.spec.components[name]
        dtype, why = component_dtype(component, checkpoint.config(name), under.dtype)
        kept = component.keep_float32 if component.network else kept_float32(checkpoint, name, dtype)
        under.formats[name] = DtypePolicy(dtype, kept)
        cast(module, under.formats[name])
        if why:
            under.choices.append(Choice("place", f"{name} dtype", str(dtype).removeprefix("torch."), why))
        # A GPU's own group norm is slow in that order; the compiler's is not (`docs/devices.md`).
        if _has_flat_convolutions(module) and (under.device.type != "cuda" or under.compiles):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            under.choices.append(Choice("place", f"{name} order", "channels last", "its convolutions are faster so"))
    under.choices += shorter_products(under.device, {policy.default for policy in under.formats.values()})


def threads(under: Build) -> None:
    """As many threads as were chosen, until the engine closes."""
    under.resources.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(under.hands.count)
    logger.info("threads: %s, %s", under.hands.count, under.hands.threads.reason)


def attention(under: Build) -> None:
    """Every attention site gets its backend; what writes has no site beside what draws, and is refused a backend."""
    found = under.found
    if found.spec.library:  # whose door has done it
        return
    under.choices += bind_all(under.drawing or under.networks, found.config, under.device, under.dtype)


def kernels(under: Build) -> None:
    """Norms, rotations and gated sums of our networks, plain or fused."""
    if under.found.spec.library:
        return
    chosen, choice = choose_kernels(under.found.config, under.device)
    counts = {name: give_kernels(module, chosen) for name, module in under.modules.items()}
    where = ", ".join(f"{count} parts of {name}" for name, count in counts.items() if count)
    under.choices.append(replace(choice, reason=f"{choice.reason} ({where or 'no part'})"))


def tier(under: Build) -> None:
    """Networks that give a row the same bits in any company, where the tier asks for it."""
    if (foreign := under.found.spec.foreign) is not None:
        wanted = under.found.config.schedule.tier
        if foreign.shares and wanted == "invariant":
            why = f"{foreign.library} calls its networks itself"
            raise ConfigError(f"tier=invariant cannot be: {why}; use tier=exact (own forwards) or tier=fast")
        tier, reason = "exact", "every tier is kept: each output is a call of its own"
        if foreign.shares:
            tier, reason = ("exact", "asked for") if wanted == "exact" else ("fast", "outputs share forwards")
        under.choices.append(Choice("batching", "tier", tier, reason))
        return
    policies = {network: under.formats[name] for name, network in under.networks.items()}
    chosen = choose_tier(under.found.config, under.device, policies, under.mesh)
    under.choices.append(chosen)
    if under.hands.waiting.value == WATCHED:
        under.hands.crew, spare = choose_crew(under.found.config, under.hands.count, chosen.value, policies)
        under.choices.append(spare)


# -- then those that take memory ---------------------------------------------------------------------------------------


def offload(under: Build) -> None:
    """Where every network's weights go: to the device, or to a store from which they come when they are wanted."""
    config = under.found.config.offload
    if config.mode == "none":
        under.homes = {name: OnDevice(under.device) for name in under.here}
        return
    store = store_beside(under.device, config.folder)
    under.resources.callback(store.close)
    for name, module in under.here.items():
        layers = config.mode == "layers"
        stacks = module.stacks() if layers and isinstance(module, Network) else {}
        lists = block_lists(module) if layers and not stacks else []
        blocks: list[nn.Module] = [block for stack in stacks.values() for block in stack.blocks()]
        blocks += [block for each in lists for block in each]
        home = Away(module, stored_tensors(module), under.device, store, blocks)
        under.homes[name], under.parcels[name] = home, home.rest
        for label, stack in stacks.items():
            stack.runner = LayerwiseOffload({block: home.blocks[block] for block in held_blocks(under, name, label)})
        for each in lists:
            visit(each, home.blocks)
        how = f"components, and {len(blocks)} blocks one at a time" if blocks else "components"
        under.choices.append(Choice("offload", name, how, "asked for"))


def load(under: Build) -> None:
    """Weights, streamed from the checkpoint (or random ones, for `load="dummy"`) straight to their homes."""
    checkpoint = under.found.checkpoint
    if under.found.spec.library:
        found = under.found
        place = Place(found.spec, checkpoint, found.config, under.device, under.dtype, under.mesh, under.wearing.rack)
        made = door_of(found.spec).make(place)
        under.components, under.wearing.wardrobe = made.components, made.wardrobe
        under.choices += made.choices
        for close in made.closes:
            under.resources.callback(close)
        return
    for name, component in under.found.spec.components.items():
        if name in under.modules:
            if name in under.here:
                _fill(under, name)
            under.components[name] = under.modules[name]
        elif name in checkpoint.components and component.built and name != under.replaced:
            under.components[name] = load_tokenizer(checkpoint, name, component.part)


def compile_blocks(under: Build) -> None:
    """Blocks that are compiled when they first run."""
    if not under.compiles:
        return
    prepare()  # for networks of a library, too, which its door has told to be compiled
    whole = under.mesh.axis(SEQUENCE).size == 1
    # Ranks may have parts of a layer, and of what adapters make of it: such requests go past what is compiled.
    rack = under.wearing.rack
    changed = rack.full if under.mesh.size > 1 else lambda: False
    for name in under.networks:
        if name not in under.compiling:
            why = "its blocks look at frames beside theirs, and have no pieces that a compiler could be given"
            under.choices.append(Choice("compile", name, "as it is", why))
    for name, network in under.compiling.items():
        for label, stack in network.stacks().items():
            runner = CompiledRunner(stack.blocks(), changed=changed, whole=whole, within=rack.joining)
            if isinstance(stack.runner, LayerwiseOffload | ShardRunner):
                stack.runner.inner = runner
            else:
                stack.runner = runner
            stack.instead = runner.instead
            how = "blocks" if whole else "blocks, but for attention across ranks"
            how = "blocks, but for attention to what they remember" if runner.pieces else how
            under.choices.append(Choice("compile", f"{name}.{label}", how, "asked for"))
    for name, module in under.modules.items():
        decoder = dict(module.named_children()).get("decoder")
        if under.device.type == "cuda" and decoder is not None and _has_flat_convolutions(module):
            decoder.compile()
            why = "convolutions and norms between them are fused, which takes a GPU less than half the time"
            under.choices.append(Choice("compile", f"{name}.decoder", "whole", why))


SHAPES: tuple[Pass, ...] = (
    check,
    replace_writer,
    construct,
    check_blocks,
    check_cache,
    formats,
    keep_part,
    lend,
    sequence,
    tensor_parallel,
    pipe,
    quantize,
    threads,
    attention,
    kernels,
    tiles,
    tier,
    shard,
    choose_reading,
)
WEIGHTS: tuple[Pass, ...] = (offload, load, lay_abreast, compile_blocks, rank_runners, step_cache, start_writer)


def begin(config: Config, mesh: Mesh) -> Build:
    """What there is before the first pass: a model that was found and checked, a device, a number format."""
    found = find(config)
    device, device_choice = choose_device(config.model)
    dtype, dtype_choice = choose_dtype(config.model, device, Environment.read().dtype)
    count, threads = choose_threads(config.host, Room.here(torch.get_num_threads()))
    waiting = choose_waiting(device, count, Environment.read().omp_wait_policy)
    choices = [device_choice, dtype_choice, threads, waiting]
    return Build(found, mesh, device, dtype, Hands(threads, waiting), choices=choices)


def run(under: Build, passes: tuple[Pass, ...]) -> Build:
    """Run `passes` in order; what they opened is closed if one fails."""
    with under.resources as opened:
        for build_pass in passes:
            build_pass(under)
        under.resources = opened.pop_all()
    return under


def _assemble(under: Build) -> Built:
    found = under.found
    ctx = Context(
        spec=found.spec,
        limits=found.door.limits,
        configs=found.checkpoint.configs,
        components=Residency(under.components, under.parcels),
        device=under.device,
        dtype=under.dtype,
        mesh=under.mesh,
        adapters=adapters_of(under),
        tiling=tiling_of(under),
        narrow=usual_tiles(under),
        lent=under.held.lent,
    )
    pipeline = pipeline_for(found.spec, under.components)(ctx, part_of(found.config, found.spec))
    governor = govern(under.hands.waiting, under.hands.count, under.hands.crew)
    if governor is not None:
        under.resources.callback(governor.close)
    blocks = min((len(each.last_stack().blocks()) for each in under.drawing.values()), default=0)
    door = replace(found.door, fits=replace(found.door.fits, blocks=blocks))
    return Built(pipeline, door, tuple(under.choices), under.resources, governor, under.hands.crew)


def _fill(under: Build, name: str) -> None:
    checkpoint, module, component = under.found.checkpoint, under.modules[name], under.found.spec.components[name]
    policy, home = under.formats[name], under.homes[name]
    if under.found.config.model.load == "dummy":
        randomise(module, 0, name, policy, home, under.held.cuts.get(name, {}))
        return
    rules = rules_of(component, checkpoint, name, module)
    load_weights(module, checkpoint.weights(name), rules, policy, home, under.held.cuts.get(name, {}))


def _has_flat_convolutions(module: nn.Module) -> bool:
    """Whether there are convolutions over pictures and none over videos, whose weights have no such order."""
    parts = list(module.modules())
    return any(isinstance(part, nn.Conv2d) for part in parts) and not any(isinstance(part, nn.Conv3d) for part in parts)
