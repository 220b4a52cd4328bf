"""Pipelines that people wrote to others' guides, on a device that is not the CPU: their weights are read to it, and
they draw what they draw on a CPU. Where the loop is the engine's, no step makes the host wait but in their own code.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse import Config, ModelConfig
from omnimuse.core.config import CacheConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.output import Event, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import flux, wan
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import COMPOSED, PLUGIN, customised, renamed
from tests.compat.test_documented import CASES, Case
from tests.compat.test_sglang import WISHES
from tests.compat.test_sglang_stages import CHANGED, DRAWN, FILMED, TOKENS, medium
from tests.invariants import test_device_telling
from tests.invariants.conftest import drain, outputs, run, submit, tick
from tests.second_device import SecondDevice, started
from tests.waits import waits_of_steps

pytestmark = pytest.mark.crossed
device = test_device_telling.device
WAYS: dict[str, dict[str, Any]] = {
    "resident": {},
    "components": {"offload": OffloadConfig("components")},
    "int8": {"quantize": QuantConfig({"": "int8"})},
    "layers": {"offload": OffloadConfig("layers")},
    "dbcache": {"cache": CacheConfig("dbcache", 1e9, first=1, last=0, warm_up=1)},
    "teacache": {"cache": CacheConfig("teacache", 0.7)},
}
"""Topics of the configuration: where weights wait, how they are packed, and what skips steps."""
ANY = ("resident", "components", "int8")
"""What is there for every pipeline; the others need blocks that it declares, a loop given away, an extractor."""
THEIRS = re.compile(r"at steps\.py:\d+ made = pipe\.denoise_step\(|scheduler\.step\($|= scheduler\.step\(")
"""Where the host may wait in a step: in the pipeline's own code, and in diffusers' solver, which it has chosen."""


@dataclass(frozen=True)
class Guest:
    """A pipeline from elsewhere, its checkpoint, what it is asked, and the ways that are there for it. `loops`: its
    loop is the engine's.
    """

    arch: str
    plugin: str
    build: Callable[[Path], Path]
    wishes: tuple[Wish, ...]
    ways: tuple[str, ...] = ANY
    loops: bool = True
    extra: dict[str, Any] | None = None

    def config(self, folder: Path, way: str = "resident") -> Config:
        model = ModelConfig(str(renamed(folder, self.arch)), "float32", "cpu", plugins=(self.plugin,))
        return Config(model, schedule=ScheduleConfig(strict_slots=True, company="always"), **WAYS[way])

    def asks(self, previews: int = 0, **choices: Any) -> list[Ask]:
        """All that it is asked, to the end."""
        more = {"output_type": "pt", **({} if self.extra is None else {"extra": self.extra}), **choices}
        return [Ask(wish.asked, replace(wish.params, **more), previews=previews) for wish in self.wishes]


def written(name: str, *, steps: bool) -> Guest:
    """One to the guide of vLLM-Omni."""
    case = CASES[name]
    build = partial(own_kind, case) if case.own else case.build
    ways = (*ANY, "layers", *(["dbcache"] if steps else []), *(["teacache"] if name != "experts" else []))
    return Guest(case.steps if steps else case.whole, PLUGIN, build, case.wishes, ways, loops=steps)


def own_kind(case: Case, folder: Path) -> Path:
    return customised(case.build(folder), folder.with_name(f"{folder.name}-own"), case.whole)


def composed(arch: str, build: Callable[[Path], Path], wishes: tuple[Wish, ...], **more: Any) -> Guest:
    """One as SGLang Diffusion's guide has it."""
    asked = tuple(replace(wish, params=replace(wish.params, max_sequence_length=None)) for wish in wishes)
    return Guest(arch, COMPOSED, build, asked, **more)


TOLD = {"sampling": {"empty_tokens": TOKENS}}
SEEN = [name for name in CASES if name != "sound"]
"""The solver of sound draws its noise on the device itself (`torch.Generator(device)` in torchsde's Brownian interval),
so that on any accelerator it is another noise than on the CPU.
"""
GUESTS = {
    **{f"{name}, whole": written(name, steps=False) for name in SEEN},
    **{f"{name}, in steps": written(name, steps=True) for name in SEEN},
    "composed": composed("ComposedSmallPipeline", flux.build, WISHES, ways=tuple(WAYS)),
    "composed, own stages": composed("ComposedMediumPipeline", medium, DRAWN, extra=TOLD),
    "composed, own guidance": composed("ComposedMediumCombinedPipeline", medium, DRAWN, extra=TOLD),
    "composed, own loop": composed("ComposedMediumWholePipeline", medium, DRAWN, extra=TOLD, loops=False),
    "composed, pictures": composed("ComposedMediumEditPipeline", medium, CHANGED, extra=TOLD),
    "composed, videos": composed(
        "ComposedMotionPipeline", partial(wan.build, kind="A14B"), FILMED, ways=(*ANY, "layers")
    ),
}
LOOPING = [name for name, guest in GUESTS.items() if guest.loops]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a guest, made when it is first asked for."""
    home, made = tmp_path_factory.mktemp("guests"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = GUESTS[name].build(home / name.replace(", ", "-"))
        return made[name]

    return folder


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if way == "resident" else pytest.mark.slow)
        for name, guest in GUESTS.items()
        for way in guest.ways
    ],
)
def test_a_second_device_draws_what_the_cpu_draws(
    folders: Callable[[str], Path], device: SecondDevice, name: str, way: str
) -> None:
    guest = GUESTS[name]
    chosen = guest.config(folders(name), way)
    with closing(start(chosen)) as engine:
        expected = run(engine, *guest.asks())
    with closing(started(chosen, device)) as engine:
        found = run(engine, *guest.asks())
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", [name for name in LOOPING if not name.startswith("own-names")])
def test_who_wears_adapters_and_is_shown_and_waits_draws_what_it_draws_on_the_cpu(
    folders: Callable[[str], Path], device: SecondDevice, name: str
) -> None:
    guest, folder = GUESTS[name], folders(name)
    chosen = guest.config(folder)
    worn = write(folder.with_name(f"{folder.name}.safetensors"), layers_of(folder), seed=1)
    asks = guest.asks(previews=1, loras=[f"{worn}:0.8"])
    with closing(start(chosen)) as engine:
        expected = interrupted(engine, asks)
    with closing(started(chosen, device)) as engine:
        found = interrupted(engine, asks)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def interrupted(engine: Engine, asks: list[Ask]) -> list[Tensor]:
    """What all of them become, the first of which waits for a tick after a step."""
    first, *others = submit(engine, *asks)
    events: list[Event] = []
    while not any(isinstance(event, Progress) and event.stage == "denoise" for event in events):
        events += tick(engine)
    engine.pause(first)
    events += engine.tick()
    engine.resume(first)
    events += drain(engine)
    return [outputs(events, id_) for id_ in (first, *others)]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=marks)
        for way, marks in (("resident", ()), ("layers", pytest.mark.slow))
        for name in LOOPING
        if way in GUESTS[name].ways
    ],
)
def test_no_step_makes_the_host_wait(folders: Callable[[str], Path], device: SecondDevice, name: str, way: str) -> None:
    guest = GUESTS[name]
    with closing(started(guest.config(folders(name), way), device)) as engine:
        submit(engine, *guest.asks(num_inference_steps=6))
        ticks = waits_of_steps(engine.runner, device, lambda: None if engine.idle else engine.tick())["denoise"]
    assert ticks, "no tick took only steps"
    assert [wait for _, waited in ticks for wait in waited if not THEIRS.search(wait)] == []
