"""The build passes of several ranks: what each rank holds of every network, and what runs around its stacks.

`build.py` lists them among the others. A pass refuses by numbers that are the same on every rank, so that all refuse
alike. On one rank they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from omnimuse.ar.kv import Decoder
from omnimuse.components.autoencoder_kl import AutoencoderKL
from omnimuse.core.autoencoder import factor
from omnimuse.core.config import Choice, DecodeConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.plans import Slices
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Block
from omnimuse.loader.tensors import stored_tensors
from omnimuse.parallel.mesh import ALL, PIPE, SEQUENCE, TENSOR
from omnimuse.parallel.pipe import PipeRunner, longest
from omnimuse.parallel.pipe import share_blocks as share_out
from omnimuse.parallel.shard import ShardRunner
from omnimuse.parallel.shard import share_blocks as keep_parts
from omnimuse.parallel.tensor import share_weights, sharing
from omnimuse.parallel.tiles import TileRunner
from omnimuse.pipeline.decode import DecodeImage
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.tiles import Tiling
from omnimuse.pipeline.video import DecodeVideo
from omnimuse.quant.linear import HELD, quantized_layers
from omnimuse.worker.find import pipeline_for

if TYPE_CHECKING:
    from omnimuse.worker.build import Build

TILE = 512
"""Pixels a side of a tile, where an autoencoder's configuration does not say how large pictures it was trained on."""


def check_ranks(under: Build) -> None:
    """Choices that several ranks exclude."""
    config, offload = under.found.config, under.found.config.offload
    if config.parallel.shard > 1 and offload.mode != "none":
        raise ConfigError(
            f"parallel shard={config.parallel.shard} and offload={offload.mode} both say where blocks wait; choose one"
        )
    guidance = under.found.spec.guidance
    if config.parallel.cfg > (most := 2 if guidance is None else guidance.most):
        raise ConfigError(
            f"parallel cfg={config.parallel.cfg} cannot be: the guidance of this model has {most} branches; use "
            f"cfg={most}"
        )
    if config.parallel.elastic:
        _check_elastic(under)


def _check_elastic(under: Build) -> None:
    """What every rank must know of every step, or be alike whoever else is drawn, cannot be where ranks divide."""
    config, spec = under.found.config, under.found.spec
    grows = not spec.library and any(isinstance(stage, Loop) and stage.grows for stage in pipeline_for(spec).stages)
    chosen = {
        f"cache={config.cache.kind}": (
            not config.cache.off,
            "each rank would remember some steps only; let requests ask",
        ),
        f"compile={config.compile.mode}": (under.compiles, "blocks are compiled for a part of the tokens"),
        f"tier={config.schedule.tier}": (
            config.schedule.tier in ("exact", "invariant"),
            "how many ranks add up depends on who else is drawn",
        ),
        f"a library that runs {spec.arch}": (bool(spec.library), "its ranks are its own"),
    }
    for name, (given, why) in chosen.items():
        if given:
            raise ConfigError(f"parallel elastic cannot be with {name}: {why}; leave one of them out")
    if grows:
        raise _writing_first(under)


def _writing_first(under: Build) -> ConfigError:
    """What is remembered of tokens is on the ranks that have read them, which are some of those that divide."""
    return ConfigError(
        f"parallel elastic cannot be with {under.found.spec.family}, which writes first: every rank must have read "
        "what is written; leave one of them out"
    )


def lend(under: Build) -> None:
    """Libraries' networks that read prompts: one rank alone has each and runs it, and tells the others what it found.

    Those of one stage stay together; the largest come first, to the rank that has least.
    """
    size = under.mesh.size
    if size == 1 or under.found.spec.library:
        return
    weights = {name: sum(each.nbytes for each, _ in stored_tensors(part).values()) for name, part in _lendable(under)}
    held = [0] * size
    for names in sorted(_together(under, set(weights)), key=lambda names: -sum(map(weights.__getitem__, names))):
        rank = min(range(size), key=lambda each: (held[each], -each))
        held[rank] += sum(map(weights.__getitem__, names))
        for name in names:
            under.held.lent[name] = rank
            under.choices.append(Choice("ranks", name, f"on rank {rank}", "it tells the others what it found"))


def _lendable(under: Build) -> list[tuple[str, nn.Module]]:
    """Modules that no stage uses but such as can be told, and that run once for a prompt."""
    stages = pipeline_for(under.found.spec).stages
    used = {name for stage in stages if stage.lendable for name in stage.uses}
    used -= {name for stage in stages if not stage.lendable for name in stage.uses}
    found = under.modules.items()
    used -= under.held.lent.keys()  # those are in another pool
    return [(name, module) for name, module in found if name in used and not isinstance(module, Network)]


def _together(under: Build, names: set[str]) -> list[list[str]]:
    """`names` by who of them is used by one stage; what is used by none stands alone."""
    groups = [{name} for name in sorted(names)]
    for stage in pipeline_for(under.found.spec).stages:
        mine = names & set(stage.uses)
        joined = set().union(*(group for group in groups if group & mine))
        groups = [group for group in groups if not group & mine] + ([joined] if joined else [])
    return [sorted(group) for group in groups]


def sequence(under: Build) -> None:
    """Every attention site learns to attend across the ranks that share a row's tokens."""
    axis, parallel = under.mesh.axis(SEQUENCE), under.found.config.parallel
    if parallel.elastic and any(network.packing == "tokens" for network in under.networks.values()):
        raise _writing_first(under)
    if axis.size == 1:
        return
    from omnimuse.parallel.sequence import bind as bind_across  # it imports torch's compiler, which takes a second

    for name, network in under.drawing.items():
        bind_across(network, under.mesh, name)
        how = f"ulysses={parallel.ulysses} x ring={parallel.ring}"
        if parallel.elastic:
            how += f", or {', '.join(map(str, parallel.divisions[1:]))} teams of fewer"
        each = "a part of each row" if network.parted else "all of each row, as its tokens cannot be shared out"
        under.choices.append(Choice("ranks", f"{name}, tokens", how, f"asked for: every rank has {each}"))


def tensor_parallel(under: Build) -> None:
    """Every rank of the tensor axis gets its share of each network's weights."""
    axis = under.mesh.axis(TENSOR)
    if axis.size == 1:
        return
    drawing, by_token = under.drawing.items(), under.found.spec.by_token
    draws = {name: network for name, network in drawing if network.plan() or not by_token}
    for name, network in _with_decoders(under, draws, TENSOR, "heads", partial(sharing, ranks=axis.size)).items():
        whole = sum(each.numel() for each in network.parameters())
        under.held.cuts[name] = under.held.shares[name] = share_weights(network, axis)
        here = sum(each.numel() for each in network.parameters())
        alike = whole - sum(_places(network.get_parameter(path), cut) for path, cut in under.held.cuts[name].items())
        shared = f"{here / whole:.2f} of the weights on rank {under.mesh.rank}, {alike / whole:.2f} on every rank alike"
        under.choices.append(Choice("ranks", f"{name}, tensor", shared, "asked for"))


def _with_decoders(
    under: Build, draws: dict[str, Network], axis: str, what: str, count: Callable[[Network], int]
) -> dict[str, Network]:
    """The networks that the ranks of an axis share out: what `draws`, or of a model that only writes and speaks the
    first, in any case; others that write or speak where they have enough of `what`, else they are whole.
    """
    found = dict(draws)
    for name, network in under.networks.items():
        if name in found or not isinstance(network, Decoder):
            continue
        if found and (has := count(network)) < under.mesh.axis(axis).size:
            why = f"it has {has} {what} to share out, and writes the same on all of them"
            under.choices.append(Choice("ranks", f"{name}, {axis}", "whole on every rank", why))
        else:
            found[name] = network
    return found


def pipe(under: Build) -> None:
    """Every rank of the pipe axis keeps its blocks only."""
    axis = under.mesh.axis(PIPE)
    if axis.size == 1:
        return
    draws = {} if under.found.spec.by_token else under.drawing
    for name, network in _with_decoders(under, draws, PIPE, "blocks", longest).items():
        spans, under.held.cuts[name] = share_out(network, axis, under.held.cuts.get(name, {}))
        under.held.spans[name] = {label: each[axis.index] for label, each in spans.items()}
        if isinstance(network, Decoder):
            [each] = spans.values()
            network.keep_layers(each, axis.index)
        for label, (start, stop) in under.held.spans[name].items():
            count = len(network.stacks()[label].blocks())
            held = f"blocks {start} to {stop - 1} of {count} on rank {under.mesh.rank}"
            under.choices.append(Choice("ranks", f"{name}.{label}, pipe", held, "asked for"))


def held_blocks(under: Build, name: str, label: str) -> list[Block[Any]]:
    """Those of a network's stack that this rank has: all of them, if ranks do not share them out."""
    span = under.held.spans.get(name, {}).get(label, (None, None))
    return under.networks[name].stacks()[label].blocks()[slice(*span)]


def shard(under: Build) -> None:
    """Ranks that share tokens keep a part of every block's weights each."""
    config, axis = under.found.config, under.mesh.axis(SEQUENCE)
    if config.parallel.shard == 1:
        return
    for name, network in under.drawing.items():
        codes = {f"{path}.{HELD}": f"{path}.weight" for path in quantized_layers(network)}  # by which they are read
        shards, under.held.cuts[name] = keep_parts(network, axis, under.held.cuts.get(name, {}), codes)
        for label, stack in network.stacks().items():
            stack.runner = ShardRunner({block: shards[block] for block in held_blocks(under, name, label)}, axis)
            how = f"1/{axis.size} of every block, put together while it runs"
            under.choices.append(Choice("ranks", f"{name}.{label}, shard", how, "asked for"))


def rank_runners(under: Build) -> None:
    """Around whatever runs a stack: every rank runs its blocks, and around that, its part of the tokens."""
    pipes, tokens = under.mesh.axis(PIPE), under.mesh.axis(SEQUENCE)
    for name, network in under.networks.items():
        for label, stack in network.stacks().items():
            if label in under.held.spans.get(name, {}):
                stack.runner = PipeRunner(stack.runner, pipes, held_blocks(under, name, label))
            if tokens.size > 1 and name in under.drawing:
                from omnimuse.parallel.sequence import SequenceRunner

                stack.runner = SequenceRunner(stack.runner, under.mesh)


def tiles(under: Build) -> None:
    """How pictures are decoded, if in tiles, and where there is no room otherwise."""
    found, usual = tiling_of(under), usual_tiles(under)
    less = found.halves[1:] if found else usual.halves if usual else []
    if found is not None:
        who = f"shared out to {under.mesh.size} ranks" if under.found.config.parallel.vae_tiles > 1 else "one at a time"
        how = f"tiles of {found.pixels} pixels a side, {who}"
        under.choices.append(Choice("decode", "pictures", how, "asked for"))
    if less:
        how = f"tiles of {' or '.join(str(each.pixels) for each in less)} pixels a side"
        why = "the largest that have room, by what small ones take"
        under.choices.append(Choice("decode", "pictures that have no room", how, why))


def tiling_of(under: Build) -> Tiling | None:
    """Tiles as large as the pictures that the autoencoder was trained on, or as diffusers has it; ConfigError for a
    model that decodes neither pictures nor videos.
    """
    config = under.found.config
    shared = config.parallel.vae_tiles > 1
    if under.found.spec.library:
        return None  # its door has refused it, or its autoencoder does it
    if not (config.decode.in_tiles or shared):
        return None
    found = usual_tiles(under)
    if found is None:
        asked = f"parallel vae_tiles={config.parallel.vae_tiles}" if shared else "decode tiling"
        raise ConfigError(f"{asked} cannot be: this model has no autoencoder of pictures or videos; leave it out")
    if config.decode.own:
        found = _own(found, config.decode)
    return replace(found, run=TileRunner(under.mesh.axis(ALL)), ranks=under.mesh.size) if shared else found


def _own(usual: Tiling, chosen: DecodeConfig) -> Tiling:
    """Tiles of the size and overlap that were chosen, in whole latents."""
    scale = usual.pixels // usual.cells
    cells = usual.cells if chosen.tile is None else max(1, chosen.tile // scale)
    overlap = usual.overlap if chosen.overlap is None else chosen.overlap
    return replace(usual, cells=cells, pixels=cells * scale, overlap=overlap, own=True)


def usual_tiles(under: Build) -> Tiling | None:
    """Those tiles, decoded one at a time; None where there is no autoencoder of pictures or videos."""
    vae: Any = under.modules.get("vae")
    config = under.found.checkpoint.config("vae") if vae is not None else {}
    if isinstance(vae, AutoencoderKL):
        side = int(config.get("sample_size") or TILE)
        return Tiling(side // vae.scale, side)
    if under.found.spec.library:
        return None
    for stage in pipeline_for(under.found.spec).stages:
        if isinstance(stage, DecodeVideo):
            return Tiling(stage.side(vae) // factor(config), stage.side(vae))
        if isinstance(stage, DecodeImage):
            return Tiling(vae.tile_sample_min_height // factor(config), vae.tile_sample_min_height)
    return None


def _places(held: Tensor, cut: Slices) -> int:
    """How many numbers the whole tensor has of which `held` is a share."""
    return held.numel() // held.shape[cut.dim] * cut.whole
