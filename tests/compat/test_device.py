"""Pipelines that people wrote to others' guides, on a device that is not the CPU: their weights are read to it, and
they draw what they draw on a CPU. Where the loop is the engine's, no step makes the host wait but in their own code.

The device is that of `tests/second_device.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchsde._brownian import brownian_interval

from omnimuse.core.output import Event, Progress
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.checkpoints.adapters import write
from tests.compat.checkpoints import worn_by
from tests.compat.guests import GUESTS
from tests.invariants import test_device_telling
from tests.invariants.conftest import drain, outputs, run, submit, tick
from tests.second_device import SecondDevice, started
from tests.waits import ticking, waits_of_steps

pytestmark = [pytest.mark.crossed, pytest.mark.filterwarnings("ignore:Should have .*t[01]:UserWarning")]
device = test_device_telling.device
THEIRS = re.compile(r"at steps\.py:\d+ .*pipe\.(denoise_step|step_scheduler)\(|scheduler\.step\($|= scheduler\.step\(")
"""Where the host may wait in a step: in the pipeline's own code, and in diffusers' solver, which it has chosen."""


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
