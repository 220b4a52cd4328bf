"""What an engine would choose for a model, and why; `omnimuse explain` prints it. Nothing is loaded, nothing changed.

Runs the build passes that need no memory, and adds what the model's own defaults and the engine's settings are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from torch import nn

from omnimuse.ar.kv import Decoder
from omnimuse.core.amounts import told_bytes
from omnimuse.core.config import RANK_WAIT, Choice, Config, ParallelConfig, ScheduleConfig
from omnimuse.core.errors import ConfigError
from omnimuse.core.guidance import Guidance
from omnimuse.core.pools import PoolConfig
from omnimuse.core.spec import Limits, SoundLimits
from omnimuse.loader.files import weight_files
from omnimuse.loader.tensors import stored_tensors
from omnimuse.parallel.mesh import BRANCHES, ORDER, Mesh, lines
from omnimuse.pipeline.denoise import Denoise
from omnimuse.worker.allocator import kept_memory
from omnimuse.worker.build import SHAPES, Build, begin, run
from omnimuse.worker.find import Found, find, pipeline_for
from omnimuse.worker.part import ELSEWHERE, parts
from omnimuse.worker.room import held, lone_blocks, token_bytes


def explain(config: Config) -> list[Choice]:
    """Everything a build would choose, and why; networks are constructed without memory, no weights are read. Of a
    model in pools, what all of them would, then what one of them would: topics of that have its name before them.
    """
    if not config.deploy.pools:
        under = _shapes(config, 0)
        return [*_model_choices(under.found), *_build_choices(under)]
    found = find(config)
    parts(config, found.spec)  # raises what is wrong with all of them together
    built = {pool.name: _pool_choices(config, pool) for pool in config.deploy.pools}
    common = [each for each in next(iter(built.values())) if all(each in choices for choices in built.values())]
    return [
        *_model_choices(found),
        *common,
        *(choice for choices in built.values() for choice in choices if choice.topic == "pools"),
        *(
            replace(choice, topic=f"{name}: {choice.topic}")
            for name, choices in built.items()
            for choice in choices
            if choice.topic != "pools" and choice not in common
        ),
    ]


def _pool_choices(config: Config, pool: PoolConfig) -> list[Choice]:
    """How often a pool is there and how it is reached, and what one replica of it would choose."""
    one = config.of_pool(pool, 0)
    try:
        under = _shapes(one, 0)
    except ConfigError as error:
        raise config.deploy.wrong_of(pool.name, error) from None
    times = f"{pool.replicas} x {pool.parallel.ranks} process{'es' if pool.parallel.ranks > 1 else ''}"
    what = f"{times}, each with at most {pool.window} requests; reached by {pool.connector}"
    return [Choice("pools", f"{pool.name}, replicas", str(pool.replicas), what), *_build_choices(under)]


def _build_choices(under: Build) -> list[Choice]:
    """What the passes of a build chose, and what follows from that."""
    kept = kept_memory(under.device)
    library = under.found.spec.library
    later = "made when an engine starts, and what is asked of their attention, weights and blocks is looked at then"
    return [
        *under.choices,
        *((Choice("model", "networks", f"by {library}", later),) if library else ()),
        *_share_choices(under),
        *((kept,) if kept else ()),
        *_memory_choices(under),
        *_engine_choices(under),
    ]


def _model_choices(found: Found) -> tuple[Choice, ...]:
    folder, spec, door, variant = found.folder, found.spec, found.door, found.recognised.variant
    defaults: Mapping[str, Any] = {
        name: value for name, value in vars(door.defaults).items() if value is not None and name != "extra"
    }
    limits = door.limits
    frames = Choice("limits", "frames", f"1 + {limits.frame_step}k", f"at most {limits.max_frames}")
    return (
        Choice("model", "folder", str(folder.path), f"{folder.source}, found for {folder.id!r}"),
        Choice("model", "family", spec.family, found.checkpoint.why),
        Choice("model", "defaults", f"of {variant.name}", found.recognised.why),
        *(Choice("defaults", name, str(value), f"of {variant.name}") for name, value in defaults.items()),
        *((_negative(spec.guidance),) if spec.guidance is not None else ()),
        *((_size_limit(limits),) if spec.medium != "audio" else ()),
        *((frames,) if limits.max_frames > 1 else ()),
        *(_sound_limits(limits.sound) if limits.sound is not None else ()),
        *((Choice("limits", "picture", "beside a text", "where the text asks for one"),) if limits.draws else ()),
    )


def _negative(guidance: Guidance) -> Choice:
    """What a request is guided away from where it does not say."""
    off = f"guidance is on while {guidance.scales[0]} is above {guidance.neutral}"
    if guidance.negative is None:
        return Choice("defaults", "negative_prompt", "none", f"{off} and there is one")
    return Choice("defaults", "negative_prompt", repr(guidance.negative), off)


def _size_limit(limits: Limits) -> Choice:
    return Choice("limits", "size", f"multiples of {limits.size_multiple}", f"at most {limits.max_side} a side")


def _sound_limits(sound: SoundLimits) -> Iterator[Choice]:
    longest = f"at most {sound.seconds:.5g} s" if sound.seconds else "as long as it likes"
    yield Choice("limits", "sound", longest, f"{sound.rate} samples a second in {sound.channels} channels")
    if (speech := sound.speech) is None:
        return
    for name, words in speech.choices.items():
        if words:
            yield Choice("limits", name, ", ".join(words), "those that the checkpoint has")
    if speech.clones:
        yield Choice("limits", "sounds", "one is needed", "in whose voice it speaks")
    for name in sorted(speech.needed):
        yield Choice("limits", name, "needed", "without them nothing can be said")


def _memory_choices(under: Build) -> list[Choice]:
    """What the weights of every network take, by number format, and where they are; from shapes alone."""
    found = []
    if under.found.spec.library:  # it makes its networks itself: only files tell
        dummy = under.found.config.model.load == "dummy"
        size = "" if dummy else told_bytes(_stored(under.found))
        return [Choice("memory", "all weights", size, "in files; without what requests need")] if size else []
    for name, module in under.modules.items():
        if name not in under.here:
            rank = under.held.lent[name]
            found.append(Choice("memory", name, "none", "in another pool" if rank == ELSEWHERE else f"on rank {rank}"))
            continue
        sizes: Counter[str] = Counter()
        for tensor, _ in stored_tensors(module).values():
            sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
        value = " + ".join(f"{told_bytes(size)} {dtype}" for dtype, size in sizes.most_common())
        found.append(Choice("memory", name, value, _where(under, module)))
        if token := token_bytes(module, under.dtype):
            why = "at the least, while the widest layer runs; requests that can never fit are refused"
            found.append(Choice("memory", f"{name}, a token of a row", told_bytes(token), why))
        if isinstance(module, Decoder):
            token = module.sizes.token_bytes
            kept = "keys and values of what an output has it read and write, gone when it has written all"
            found.append(Choice("memory", f"{name}, remembered", f"{told_bytes(token)} a token", kept))
    total = sum(map(held, under.here.values()))
    return [*found, Choice("memory", "all weights", told_bytes(total), "without what requests need")]


def _stored(found: Found) -> int:
    """The size of all weights as they lie in files."""
    checkpoint = found.checkpoint
    networks = [name for name in checkpoint.components if checkpoint.has_weights(name)]
    files = [file for name in networks for file in weight_files(checkpoint.weights(name)).paths]
    return sum(file.stat().st_size for file in files)


def _where(under: Build, module: nn.Module) -> str:
    mode = under.found.config.offload.mode
    if mode == "none":
        return f"always on {under.device}"
    folder = under.found.config.offload.folder or Path(gettempdir())
    waits = f"waits in a file in {folder}" if under.device.type == "cpu" else "waits in pinned host memory"
    blocks = [held(block) for block in lone_blocks(module)] if mode == "layers" else []
    if not blocks:
        return f"{waits}, on {under.device} when it is its turn"
    largest, rest = max(blocks), held(module) - sum(blocks)
    how = "one at a time" if under.device.type == "cpu" else "two at a time"
    blocks_told = f"blocks of at most {told_bytes(largest)} {how}"
    return f"{waits}; on {under.device} {told_bytes(rest)} in its turn, and {blocks_told}"


def _engine_choices(under: Build) -> list[Choice]:
    config, checkpoint, spec = under.found.config, under.found.checkpoint, under.found.spec
    if spec.library:
        told = ((name, note.partition(": ")) for name, note in spec.notes.items())
        return [Choice(spec.library, name, answer, reason) for name, (answer, _, reason) in told]
    loops = [stage for stage in pipeline_for(spec).stages if isinstance(stage, Denoise)]
    solvers = [(loop, *loop.solver(checkpoint.configs)) for loop in loops]
    features = {"cache": str(config.cache), "offload": config.offload.mode, "compile": config.compile.mode}
    return [
        *(Choice("solver", loop.name, type(solver).__name__, why) for loop, solver, why in solvers),
        *(Choice("features", name, value, _asked(value)) for name, value in features.items()),
        *_rank_choices(config.parallel),
        Choice(
            "batching",
            "tick_tokens",
            str(config.schedule.tick_tokens),
            "row tokens that one tick may compute, as far as there is memory",
        ),
        _company_choice(config, under.device.type),
        *(_writing_choices(config.schedule) if spec.writes else []),
    ]


def _company_choice(config: Config, device: str) -> Choice:
    """Which requests share forwards; where that is measured, a server tells what it found."""
    if config.schedule.exact:
        return Choice("batching", "company", "never", "in the tier exact every row has a forward of its own")
    if config.schedule.company == "always":
        return Choice("batching", "company", "always", "asked for: requests share forwards whenever they can")
    if config.parallel.elastic:
        return Choice("batching", "company", "reckoned", "of what the ranks take, which may be divided")
    if device != "cpu":
        return Choice("batching", "company", "always", f"the host does not wait for {device}: nothing is measured")
    why = "requests share forwards as far as that saves time; a server tells at /load what it has found"
    return Choice("batching", "company", "measured", why)


def _writing_choices(schedule: ScheduleConfig) -> list[Choice]:
    """What is remembered of texts, and how much of it there may be."""
    bound = schedule.running_bytes
    told = ("half of what is free when the engine starts", "default")
    if bound is not None:
        told = told_bytes(bound), "asked for"
    return [
        Choice("memory", "texts in progress", *told),
        Choice("memory", "beginnings", f"at most {told_bytes(schedule.memo_bytes)}", "begun alike, they are read once"),
    ]


def _share_choices(under: Build) -> list[Choice]:
    """Which ranks work together along every axis, and what each holds of every component, and of all of one rank."""
    config = under.found.config
    parallel = config.parallel
    if parallel.ranks == 1:
        return []
    shared = {axis: lines(parallel, axis) for axis in ORDER if len(lines(parallel, axis)[0]) > 1}
    names = {axis: "cfg" if axis == BRANCHES else axis for axis in shared}
    asked = " x ".join(f"{names[axis]}={len(groups[0])}" for axis, groups in shared.items())
    found = [Choice("ranks", "mesh", f"{parallel.ranks} ranks", asked)]
    for axis, groups in shared.items():
        together = ", ".join(" ".join(map(str, ranks)) for ranks in groups)
        found.append(Choice("ranks", f"along {names[axis]}", together, "ranks that share what this axis shares out"))
    one = replace(config, parallel=ParallelConfig())
    whole = {name: held(module) for name, module in _shapes(one, 0).here.items()}
    for rank in range(parallel.ranks):
        here = (under if rank == under.mesh.rank else _shapes(config, rank)).here
        parts = {name: held(module) for name, module in here.items()}
        told = ", ".join(f"{size / max(1, whole[name]):.2f} of {name}" for name, size in parts.items())
        found.append(Choice("memory", f"weights of rank {rank}", told_bytes(sum(parts.values())), told))
    return found


def _shapes(config: Config, rank: int) -> Build:
    """What `rank` would build, without memory."""
    named = config.model.device.split(",")  # one for every rank, or for all
    config = replace(config, model=replace(config.model, device=named[rank % len(named)]))
    under = run(begin(config, Mesh.planned(config.parallel, rank)), SHAPES)
    under.resources.close()  # the threads are as many as before
    return under


def _rank_choices(parallel: ParallelConfig) -> list[Choice]:
    """How long ranks wait for one another."""
    if parallel.ranks == 1:
        return []
    why = "default" if parallel.wait == RANK_WAIT else "asked for"
    return [
        Choice("ranks", "wait", f"{parallel.wait:g} s", f"{why}: who has waited that long for another ends the engine")
    ]


def _asked(value: str) -> str:
    return "default" if value == "none" else "asked for"
