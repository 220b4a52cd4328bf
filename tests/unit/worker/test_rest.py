"""An engine that sleeps holds no weights, keeps its requests, and goes on to the bit when it wakes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from omnimuse.core.config import OffloadConfig, QuantConfig
from omnimuse.core.errors import ConfigError, DeadlineError, MemoryShortageError
from omnimuse.core.machine import resident
from omnimuse.core.output import Event, Failed
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import FileStore
from omnimuse.worker.rest import Rest
from tests.checkpoints import z_image
from tests.checkpoints.adapters import layers_of, write
from tests.invariants.conftest import Subject, drain, nap, outputs, run, submit, with_params
from tests.second_device import ELSEWHERE, SHELF, SecondDevice


def modules(engine: Engine) -> list[nn.Module]:
    components = engine.runner.pipeline.ctx.components
    return [part for name in components if isinstance(part := components.wherever(name), nn.Module)]


def held(engine: Engine) -> int:
    """Bytes of weights that are in memory; tables that no file stores are none."""
    stored = [tensor for module in modules(engine) for tensor in module.state_dict().values()]
    return sum(tensor.nbytes for tensor in stored if isinstance(tensor, Tensor) and not tensor.is_meta)


@pytest.fixture
def subject(z_image_folder: Path) -> Subject:
    return Subject(z_image.FAMILIES[0], z_image_folder)


KINDS: dict[str, Callable[[Path], dict[str, object]]] = {
    "resident": lambda folder: {},
    "packed": lambda folder: {"quantize": QuantConfig({"": "int4"})},
    "offloaded": lambda folder: {"offload": OffloadConfig("layers", folder)},
}


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS)
def test_a_request_in_progress_waits_without_weights_and_ends_to_the_bit(
    subject: Subject, tmp_path: Path, parts: Callable[[Path], dict[str, object]]
) -> None:
    engine = start(subject.config(**parts(tmp_path)))
    adapter = write(tmp_path / "worn.safetensors", layers_of(subject.folder))
    asks = [subject.ask(0), with_params(subject.ask(1), loras=[f"{adapter}:0.8"])]
    expected = run(engine, *asks)
    ids = submit(engine, *asks)
    events: list[Event] = []
    for _ in range(2):
        events += engine.tick()
    engine.sleep()
    assert engine.asleep and engine.idle and held(engine) == 0
    assert engine.sleep() == 0, "it sleeps already"
    for _ in range(3):
        assert engine.tick() == []
    ids += submit(engine, subject.ask(0))  # waits, too
    engine.wake_up()
    engine.wake_up()
    events += drain(engine)
    assert not engine.asleep
    for name, wanted in zip(ids, [*expected, expected[0]], strict=True):
        assert torch.equal(outputs(events, name), wanted)
    engine.close()


def test_who_has_begun_goes_on_when_the_weights_are_back_though_nobody_comes(subject: Subject) -> None:
    engine = start(subject.config())
    [expected] = run(engine, subject.ask(0))
    [id_] = submit(engine, subject.ask(0))
    events = engine.tick()
    nap(engine)
    events += drain(engine)
    assert torch.equal(outputs(events, id_), expected)
    engine.close()


def test_what_is_not_offloaded_is_all_that_leaves_and_deadlines_pass_in_sleep(subject: Subject) -> None:
    now = [0.0]
    engine = start(subject.config())
    engine.clock = lambda: now[0]
    whole = held(engine)
    late = subject.ask(0)
    request = engine.make_request(late)
    engine.submit(type(request)(**{**vars(request), "deadline": 5.0}))
    left = engine.sleep()
    assert whole <= left < 1.1 * whole, "but for what makes tensors begin where matrix libraries want them"
    assert engine.rest() == 5.0
    now[0] = 6.0
    [event] = engine.tick()
    assert isinstance(event, Failed) and isinstance(event.error, DeadlineError)
    engine.close()  # in its sleep


def test_weights_of_an_engine_that_rests_wait_where_others_do(subject: Subject, tmp_path: Path) -> None:
    config = subject.config(offload=OffloadConfig("layers", tmp_path / "weights"))
    with contextlib.closing(start(config)) as engine:
        engine.sleep()
        assert isinstance(engine.runner.rest._store, FileStore)
        assert engine.runner.rest._store.folder == tmp_path / "weights"


def test_what_leaves_is_no_memory_of_the_process_any_more() -> None:
    before = resident()
    linear = nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    rest, weight = Rest(Residency({"network": linear}), torch.device("cpu")), linear.weight.clone()
    full = resident()
    assert rest.begin() == weight.nbytes
    assert full - resident() > 0.9 * weight.nbytes, f"of {full - before} bytes for two copies"
    rest.end()
    assert torch.equal(linear.weight, weight) and not rest.begun


def test_what_leaves_an_accelerator_is_no_memory_of_it_any_more() -> None:
    with SecondDevice():
        linear = nn.Linear(64, 64, bias=False).requires_grad_(False)
        weight, size = linear.weight.clone(), linear.weight.nbytes
        rest = Rest(Residency({"network": linear.to(ELSEWHERE)}), ELSEWHERE)
        gc.collect()  # what other tests have left there
        full = SHELF.now()
        assert rest.begin() == size and full - SHELF.now() == size
        rest.end()
        assert linear.weight.device == ELSEWHERE and SHELF.now() == full
        assert torch.equal(linear.weight.cpu(), weight)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("out of memory")], ids=["host", "device"])
def test_where_memory_runs_out_before_all_weights_have_left_they_stay(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    engine = start(subject.config())
    expected, whole = run(engine, subject.ask(0)), held(engine)
    with monkeypatch.context() as short:
        short.setattr(FileStore, "content", mock.Mock(side_effect=error))
        with pytest.raises(ConfigError, match="the weights cannot leave: falling asleep ran out of memory"):
            engine.sleep()
    assert not engine.asleep and held(engine) == whole
    assert torch.equal(*run(engine, subject.ask(0)), *expected)
    engine.close()


def test_where_there_is_no_room_for_all_weights_they_stay_away_until_there_is(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, plain, room = start(subject.config()), FileStore.fetch, [1]
    expected = run(engine, subject.ask(0))
    left = engine.sleep()

    def fetch(store: FileStore, arena: int) -> Tensor:
        room[0] -= 1
        if room[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(store, arena)

    monkeypatch.setattr(FileStore, "fetch", fetch)
    for _ in range(2):
        with pytest.raises(
            MemoryShortageError, match=r"cannot come back: waking up ran out of memory: CUDA out of mem"
        ):
            engine.wake_up()
        assert engine.asleep and held(engine) == 0 < left
    room[0] = 10
    engine.wake_up()
    assert torch.equal(*run(engine, subject.ask(0)), *expected)
    engine.close()
