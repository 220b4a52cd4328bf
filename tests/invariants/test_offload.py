"""Weights that wait outside the device change no result, and only what runs is on the device: for every pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from omnimuse.core.config import CacheConfig, CompileConfig, OffloadConfig, ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.network import Network
from omnimuse.loader.tensors import stored_tensors
from tests.checkpoints.families import BLOCKS
from tests.compiling import Counter, compile_with
from tests.invariants.conftest import Subject, drain, of, run, submit
from tests.skipping import ENOUGH, counting

pytestmark = pytest.mark.crossed

Make = Callable[..., Engine]
MODES = ("components", "layers")
SHOWN = [pytest.param(mode, marks=pytest.mark.shows(mode, "company", "previews", wishes=True)) for mode in MODES]
COMPILED = [pytest.param(mode, marks=pytest.mark.shows("compile", mode)) for mode in MODES]
CACHED = [pytest.param(mode, marks=pytest.mark.shows(mode, "TeaCache", "company")) for mode in MODES]


def modules(engine: Engine) -> dict[str, nn.Module]:
    """Every network of the engine, wherever its weights are."""
    components = engine.runner.pipeline.ctx.components
    found = {name: components.wherever(name) for name in components}
    return {name: each for name, each in found.items() if isinstance(each, nn.Module)}


def inside(module: nn.Module) -> bool:
    """Whether weights of `module`, other than those of its blocks, are on the device."""
    blocks = [block for stack in module.stacks().values() for block in stack.blocks()] if blocky(module) else []
    within = {id(tensor) for block in blocks for tensor, _ in stored_tensors(block).values()}
    return any(not t.is_meta for t, _ in stored_tensors(module).values() if id(t) not in within)


def blocky(module: nn.Module) -> bool:
    return isinstance(module, Network)


@pytest.mark.parametrize("mode", SHOWN)
def test_every_mode_of_offload_is_resident_bit_for_bit(
    subject: Subject, shared: Engine, engine_with: Make, tmp_path: Path, mode: str
) -> None:
    asks = [subject.ask(i, output_type="pt", previews=2) for i in range(len(subject.family.wishes))]
    engine = engine_with(offload=OffloadConfig(mode, tmp_path))
    assert not any(inside(module) for module in modules(engine).values()), "nothing comes in before it is wanted"
    for expected, found in zip(run(shared, *asks), run(engine, *asks), strict=True):
        assert torch.equal(found, expected)
    assert not list(tmp_path.iterdir()), "what waits has no name that could be left behind"


@pytest.mark.parametrize("mode", MODES)
def test_one_component_at_a_time_is_on_the_device(
    subject: Subject, engine_with: Make, tmp_path: Path, mode: str
) -> None:
    engine = engine_with(offload=OffloadConfig(mode, tmp_path))
    parts, seen = modules(engine), set()

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: object) -> None:
            assert [other for other in parts if inside(parts[other])] == [name]
            seen.add(name)

        return look

    for name, module in parts.items():
        first = module.decoder if name in ("vae", "audio_vae") else module
        first.register_forward_pre_hook(watch(name))
    submit(engine, *(subject.ask(i, output_type="pt") for i in range(len(subject.family.wishes))))
    drain(engine)
    assert seen == set(parts), "every network was wanted"
    blocks = [b for part in parts.values() if blocky(part) for s in part.stacks().values() for b in s.blocks()]
    if mode == "layers":
        assert all(tensor.is_meta for block in blocks for tensor, _ in stored_tensors(block).values())


def test_networks_are_swapped_once_a_step_and_not_once_a_row(
    subject: Subject, engine_with: Make, tmp_path: Path
) -> None:
    """Two requests whose steps need different networks share a tick: each network comes in once."""
    engine = engine_with(
        offload=OffloadConfig("components", tmp_path), schedule=ScheduleConfig(tier="exact", strict_slots=True)
    )
    submit(engine, *(subject.ask(i, num_inference_steps=6) for i in range(2)))
    engine.tick()
    entered: list[str] = []
    for name, module in modules(engine).items():
        module.register_forward_pre_hook(lambda module, args, name=name: entered.append(name))
    for _ in range(4):
        entered.clear()
        engine.tick()
        assert sum(before != after for before, after in pairwise(entered)) <= 1


@pytest.mark.parametrize("mode", CACHED)
def test_a_step_cache_and_offload_work_together(subject: Subject, engine_with: Make, tmp_path: Path, mode: str) -> None:
    cache = CacheConfig("teacache", 1e6)
    cached, both = engine_with(cache=cache), engine_with(cache=cache, offload=OffloadConfig(mode, tmp_path))
    asks = [subject.ask(i, **ENOUGH) for i in range(2)]
    with counting(both) as skipped:
        found = run(both, *asks)
    assert len(skipped) == len(asks) and all(skipped.values()), "each skips a step"
    for expected, drawn in zip(run(cached, *asks), found, strict=True):
        assert torch.equal(drawn, expected)


def test_random_weights_that_wait_are_those_that_stay(subject: Subject, tmp_path: Path) -> None:
    pictures = []
    for offload in (OffloadConfig(), OffloadConfig("layers", tmp_path)):
        config = subject.config(offload=offload)
        engine = start(replace(config, model=replace(config.model, load="dummy")))
        pictures.append(run(engine, subject.ask(0, output_type="pt"))[0])
        engine.close()
    assert torch.equal(*pictures)


@of(BLOCKS)
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_blocks_that_wait_are_those_that_stay_bit_for_bit_and_compiled_no_more_often(
    subject: Subject, engine_with: Make, tmp_path: Path, mode: str
) -> None:
    chosen = {"compile": CompileConfig("blocks"), "schedule": ScheduleConfig(tier="fast", company="always")}
    asks, found, graphs = subject.asks(), [], []
    for offload in (OffloadConfig(), OffloadConfig(mode, tmp_path)):
        torch._dynamo.reset()
        engine, counter = engine_with(**chosen, offload=offload), Counter()
        compile_with(engine, counter)
        found.append([*run(engine, *asks), *run(engine, asks[0])])
        graphs.append(counter.graphs)
    for expected, waited in zip(*found, strict=True):
        assert torch.equal(waited, expected)
    assert 0 < graphs[1] <= graphs[0]
