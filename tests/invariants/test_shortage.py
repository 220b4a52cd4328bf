"""Where memory runs out, for every family: what is decoded in tiles is decoded in smaller ones, and a step is taken one
row after the other, then with blocks outside of the device, on a CPU and on one that is not (`tests/second_device.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import DecodeConfig
from omnimuse.core.errors import MemoryShortageError
from omnimuse.core.output import Done, Failed
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.network import Network
from omnimuse.models import REGISTRY
from omnimuse.pipeline import video
from omnimuse.pipeline.video import DecodeVideo
from omnimuse.worker.aside import can_wait
from omnimuse.worker.find import pipeline_for
from tests.checkpoints.families import FAMILIES
from tests.invariants.conftest import Subject, drain, of, outputs, run, submit
from tests.invariants.test_device import FAST
from tests.second_device import SecondDevice, moved
from tests.waits import loops

FILMS = [
    family
    for family in FAMILIES
    if any(isinstance(stage, DecodeVideo) for stage in pipeline_for(REGISTRY.spec(family.arch)).stages)
]


def narrow(patch: pytest.MonkeyPatch, room: int) -> None:
    """Where frames are decoded, no more than so many latents of a frame fit."""

    def refused(decode: Callable[..., Any]) -> Callable[..., Any]:
        def inner(vae: Any, latents: Tensor, *rest: Any) -> Any:
            if latents.shape[-1] * latents.shape[-2] > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(vae, latents, *rest)

        return inner

    for name in ("decode_frames", "decode_clip"):
        patch.setattr(video, name, refused(getattr(video, name)))


@pytest.mark.crossed
@of(FILMS)
def test_a_video_whose_tiles_are_too_large_is_decoded_anew_in_smaller_ones(
    subject: Subject, engine_with: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, small = engine_with(), engine_with(decode=DecodeConfig(tile=64))
    ask = subject.ask(0, width=128, height=128, output_type="pt")
    [expected] = run(small, ask)
    cells = small.runner.pipeline.ctx.tiling
    assert cells is not None
    narrow(monkeypatch, cells.cells**2)
    [id_] = submit(plain, ask)
    events = drain(plain)
    assert torch.equal(outputs(events, id_), expected)
    [said] = [event.result.said for event in events if isinstance(event, Done)]
    assert said == ("memory ran out in decode, which was done again with less: pictures in tiles",)
    assert plain.runner.retried_stages == {"decode": 1}
    narrow(monkeypatch, 0)
    [id_] = submit(plain, ask)
    with pytest.raises(MemoryShortageError, match="decode ran out of memory"):
        outputs(drain(plain), id_)
    assert plain.runner.retried_stages == {"decode": 1} and not plain.runner.states


def many(network: Network, given: tuple[Sequence[object], ...]) -> bool:
    """Rows together are too much."""
    return len(given[0]) > 1


def whole(network: Network, given: tuple[Sequence[object], ...]) -> bool:
    """Anything is too much while all weights are there."""
    return all(not part.is_meta for part in network.parameters())


def anything(network: Network, given: tuple[Sequence[object], ...]) -> bool:
    """There is no room at all."""
    return True


Outcome = Tensor | MemoryShortageError
Refuse = Callable[[Network, tuple[Sequence[object], ...]], bool]
TOLD = "memory ran out in a step of {}, which was done with its blocks outside of the device"
SAYS = "CUDA out of memory. Tried to allocate 20.00 GiB"


def drawing(engine: Engine) -> dict[str, Network]:
    """The networks of the loop that draws."""
    components = engine.runner.pipeline.ctx.components
    [loop] = [loop for loop in loops(engine.runner) if loop.name == "denoise"]
    parts = {name: components.wherever(name) for name in loop.uses if name in [*components]}
    return {name: part for name, part in parts.items() if isinstance(part, Network)}


@contextmanager
def short(engine: Engine, refuse: Refuse) -> Iterator[None]:
    """Meanwhile memory runs out in these networks where `refuse` says so."""

    def refused(network: Network, given: tuple[Sequence[object], ...]) -> None:
        if refuse(network, given):
            raise torch.OutOfMemoryError(SAYS)

    hooks = [network.register_forward_pre_hook(refused) for network in drawing(engine).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ended(engine: Engine, asks: Sequence[Ask]) -> list[Outcome]:
    """What became of all of them in flight together. Whose blocks went aside is told so, of networks that it ran."""
    [*names], ids = drawing(engine), submit(engine, *asks)
    events, aside = drain(engine), engine.runner.forwards.asides.total()
    told = {TOLD.format(each) for each in names}
    failed = {event.request_id: event.error for event in events if isinstance(event, Failed)}
    for event in events:
        if isinstance(event, Done):
            assert {*event.result.said} <= told and bool(event.result.said) == bool(aside)
    found = [failed[id_] if id_ in failed else outputs(events, id_) for id_ in ids]
    assert all(isinstance(each, Outcome) for each in found)
    return found  # type: ignore[return-value]


def alike(found: Outcome, expected: Outcome) -> bool:
    """The same to the bit, or the same refusal."""
    if isinstance(found, Tensor) and isinstance(expected, Tensor):
        return torch.equal(found, expected)
    return str(found) == str(expected)


@pytest.mark.crossed
@pytest.mark.parametrize("refuse", [many, whole, anything])
def test_a_step_without_room_is_taken_with_less_or_refused_with_the_figure_and_the_engine_lives(
    subject: Subject, refuse: Refuse
) -> None:
    asks = [subject.ask(0), subject.ask(0, seed=7)]
    with closing(start(subject.config())) as engine:
        expected = run(engine, *asks)
        fits = refuse is many or (refuse is whole and can_wait_all(engine))
        with short(engine, refuse):
            found = ended(engine, asks)
        assert engine.runner.forwards.retries
        if fits:
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))  # type: ignore[arg-type]
        else:
            assert all(str(each).endswith(f"ran out of memory: {SAYS}") for each in found)
        assert all(torch.equal(*pair) for pair in zip(run(engine, *asks), expected, strict=True))


@pytest.mark.slow
@pytest.mark.crossed
@pytest.mark.parametrize("refuse", [many, whole, anything])
def test_a_second_device_without_room_for_a_step_does_what_the_cpu_does(subject: Subject, refuse: Refuse) -> None:
    asks = [subject.ask(0), subject.ask(0, seed=7)]
    with SecondDevice() as device, closing(start(subject.config(schedule=FAST))) as engine:
        expected, after = shortly(engine, refuse, asks)
        there = moved(engine, device)
        found, later = shortly(there, refuse, asks)
        assert there.runner.forwards.retries == engine.runner.forwards.retries
        assert all(map(alike, (*found, *later), (*expected, *after)))


def shortly(engine: Engine, refuse: Refuse, asks: Sequence[Ask]) -> tuple[list[Outcome], list[Tensor]]:
    """What becomes of them while memory runs out, and what is drawn when there is room again."""
    with short(engine, refuse):
        found = ended(engine, asks)
    return found, run(engine, *asks)


def can_wait_all(engine: Engine) -> bool:
    return all(can_wait(engine.runner.pipeline.ctx.components, name) for name in drawing(engine))
