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
from torchsde._brownian import brownian_interval

from omnimuse import Config, ModelConfig
from omnimuse.core.config import CacheConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.output import Event, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints import flux, wan
from tests.checkpoints.adapters import write
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import COMPOSED, PLUGIN, customised, renamed, worn_by
from tests.compat.test_documented import CASES, Case
from tests.compat.test_sglang import WISHES
from tests.compat.test_sglang_stages import CHANGED, DRAWN, FILMED, TOKENS, medium
from tests.invariants import test_device_telling
from tests.invariants.conftest import drain, outputs, run, submit, tick
from tests.second_device import SecondDevice, started
from tests.waits import ticking, waits_of_steps

pytestmark = [pytest.mark.crossed, pytest.mark.filterwarnings("ignore:Should have .*t[01]:UserWarning")]
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
THEIRS = re.compile(r"at steps\.py:\d+ .*pipe\.(denoise_step|step_scheduler)\(|scheduler\.step\($|= scheduler\.step\(")
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
    ways = ("layers", *(["dbcache"] if steps else []), *(["teacache"] if name != "experts" else []))
    declared = () if name == "sound" else ways  # its network is diffusers' own
    return Guest(case.steps if steps else case.whole, PLUGIN, build, case.wishes, (*ANY, *declared), loops=steps)


def own_kind(case: Case, folder: Path) -> Path:
    return customised(case.build(folder), folder.with_name(f"{folder.name}-own"), case.whole)


def composed(arch: str, build: Callable[[Path], Path], wishes: tuple[Wish, ...], **more: Any) -> Guest:
    """One as SGLang Diffusion's guide has it."""
    asked = tuple(replace(wish, params=replace(wish.params, max_sequence_length=None)) for wish in wishes)
    return Guest(arch, COMPOSED, build, asked, **more)


TOLD = {"sampling": {"empty_tokens": TOKENS}}
GUESTS = {
    **{f"{name}, whole": written(name, steps=False) for name in CASES},
    **{f"{name}, in steps": written(name, steps=True) for name in CASES},
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
COUNTED = [name for name in LOOPING if not name.startswith("sound")]
"""The pipeline of sound keeps its rotations on the CPU, and its network uploads them in every block."""


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver of sound draws with generators of the device's own, which the second device does not have: it draws on
    the CPU here. On an accelerator it is another noise.
    """
    drawn = brownian_interval._randn

    def there(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
        return drawn(size, dtype, torch.device("cpu"), seed).to(device, non_blocking=True)

    monkeypatch.setattr(brownian_interval, "_randn", there)


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


@pytest.mark.parametrize("name", LOOPING)
def test_who_wears_adapters_and_is_shown_and_waits_draws_what_it_draws_on_the_cpu(
    folders: Callable[[str], Path], device: SecondDevice, name: str
) -> None:
    guest, folder = GUESTS[name], folders(name)
    chosen = guest.config(folder)
    worn = write(folder.with_name(f"{folder.name}.safetensors"), worn_by(folder), seed=1)
    asks = guest.asks(previews=1, loras=[f"{worn}:0.8"])
    with closing(start(chosen)) as engine:
        expected, bare = interrupted(engine, asks), run(engine, *guest.asks())
    assert not any(torch.equal(*pair) for pair in zip(expected, bare, strict=True))
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
        for name in COUNTED
        if way in GUESTS[name].ways
    ],
)
def test_no_step_makes_the_host_wait(folders: Callable[[str], Path], device: SecondDevice, name: str, way: str) -> None:
    guest = GUESTS[name]
    with closing(started(guest.config(folders(name), way), device)) as engine:
        submit(engine, *guest.asks(num_inference_steps=6))
        found = waits_of_steps(engine.runner, device, ticking(engine))["denoise"]
    assert found, "no tick took only steps"
    assert [wait for _, waited in found for wait in waited if not THEIRS.search(wait)] == []
