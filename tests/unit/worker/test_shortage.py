"""A stage that runs out of memory tries once more with less, and the engine lives either way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from omnimuse.core.config import Config, DecodeConfig, ModelConfig
from omnimuse.core.errors import MemoryShortageError
from omnimuse.core.output import Done, Failed
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.network import Network
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import FileStore
from omnimuse.worker.failures import settle
from omnimuse.worker.rest import written
from omnimuse.worker.runner import Runner

ASK = Ask("a red circle", DiffusionParams(width=192, height=192, num_inference_steps=1, seed=3, output_type="pt"))
TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 12.00 GiB is "
    "free. Process 7 has 60.00 GiB memory in use"
)


class Narrow(nn.Module):
    """An autoencoder on a device on which latents of more than `room` cells do not fit."""

    def __init__(self, inner: nn.Module, room: int) -> None:
        super().__init__()
        self.inner = inner
        self.room = room

    def decode(self, cells: Tensor) -> Tensor:
        if cells.shape[-1] * cells.shape[-2] > self.room:
            raise torch.OutOfMemoryError(TORCH_SAYS)
        return self.inner.decode(cells)


class Ahead(FileStore):
    """A store that remembers what is on the device ahead of its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.there: set[int] = set()

    def read_ahead(self, arena: int) -> None:
        self.there.add(arena)

    def drop(self, arena: int) -> None:
        self.there.discard(arena)


WHOLE = DecodeConfig()


def engine(room: int | None = None, decode: DecodeConfig = WHOLE) -> Engine:
    """The demo model's, whose autoencoder has `room`, or as much as it likes."""
    model = ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")
    made = start(Config(model, decode=decode))
    if room is None:
        return made
    ctx = made.runner.pipeline.ctx
    parts = {name: ctx.components[name] for name in ctx.components}
    short = replace(ctx, components=Residency({**parts, "vae": Narrow(parts["vae"], room)}))
    return Engine(Runner(type(made.runner.pipeline)(short), made.runner.config), made.door)


def draw(subject: Engine, said: tuple[str, ...] = (), ask: Ask = ASK) -> Tensor | MemoryShortageError:
    subject.submit(subject.make_request(ask))
    while not subject.idle:
        for event in subject.tick():
            if isinstance(event, Done):
                assert event.result.said == said
                return event.result.tensors["image"]
            if isinstance(event, Failed):
                assert isinstance(event.error, MemoryShortageError)
                return event.error
    raise AssertionError("the request never ended")


def test_a_step_that_has_no_room_beside_what_came_ahead_of_its_turn_has_it_leave() -> None:
    made, store, short = engine(), Ahead(), list[bool]()
    ctx = made.runner.pipeline.ctx
    parts = {name: ctx.components[name] for name in ctx.components}
    parcel = written(parts["vae"], store)
    parcel.leave()
    subject = replace(ctx, components=Residency(parts, {"vae": parcel}))
    [network] = [part for part in parts.values() if isinstance(part, Network)]

    def crowd(*inputs: object) -> None:
        short.append(bool(store.there))
        if store.there:
            raise torch.OutOfMemoryError(TORCH_SAYS)

    network.register_forward_pre_hook(crowd)
    found = draw(Engine(Runner(type(made.runner.pipeline)(subject), made.runner.config), made.door))
    assert isinstance(found, Tensor) and torch.equal(found, draw(engine()))
    assert short == [True, False, False], "the decoder came ahead of the last step, and gave way to its rows"


def test_a_picture_too_large_to_decode_as_a_whole_is_decoded_in_tiles(caplog: pytest.LogCaptureFixture) -> None:
    subject = engine(room=16 * 16)
    told = "memory ran out in decode, which was done again with less: pictures in tiles"
    found, expected = draw(subject, (told,)), draw(engine(decode=DecodeConfig(True)))
    assert isinstance(found, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(found, expected)
    assert not torch.equal(found, draw(engine()))
    assert subject.runner.retried_stages == {"decode": 1}
    assert "decode ran out of memory: CUDA out of memory. Tried to allocate 20.00 GiB" in caplog.text


@pytest.mark.parametrize("begun", [False, True], ids=["whole", "in tiles"])
def test_where_tiles_are_too_large_smaller_ones_are_tried(begun: bool) -> None:
    subject = engine(room=8 * 8, decode=DecodeConfig(begun))
    told = "memory ran out in decode, which was done again with less: pictures in tiles"
    found, expected = draw(subject, (told,)), draw(engine(decode=DecodeConfig(tile=64)))
    assert isinstance(found, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(found, expected)
    assert not torch.equal(found, draw(engine(decode=DecodeConfig(True))))
    assert subject.runner.retried_stages == {"decode": 1}


def test_a_picture_whose_tiles_do_not_fit_either_is_refused_with_the_figures_and_the_engine_lives() -> None:
    subject = engine(room=60)
    for _ in range(2):
        error = draw(subject)
        assert isinstance(error, MemoryShortageError)
        assert "Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 12.00 GiB" in str(error)
        assert error.__traceback__ is None
    small = replace(ASK, params=replace(ASK.params, width=48, height=48))
    subject.submit(subject.make_request(small))
    events = [event for _ in range(50) if not subject.idle for event in subject.tick()]
    assert any(isinstance(event, Done) for event in events)
    assert not subject.runner.retried_stages


def test_branches_that_do_not_fit_together_are_computed_one_after_the_other() -> None:
    whole, short = engine(), engine()

    def refuse(network: nn.Module, given: tuple[Sequence[object], ...]) -> None:
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError(TORCH_SAYS)

    short.runner.pipeline.ctx.components["transformer"].register_forward_pre_hook(refuse)
    expected, found = draw(whole), draw(short)
    assert isinstance(expected, Tensor) and isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert short.runner.forwards.retries == {"transformer": 1}


def test_what_was_too_much_together_is_not_tried_at_every_step_and_after_a_while_it_is_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("omnimuse.worker.forwards.AGAIN", 12)
    whole, short, tried = engine(), engine(), list[int]()

    def refuse(network: nn.Module, given: tuple[Sequence[object], ...]) -> None:
        tried.append(len(given[0]))
        if len(given[0]) > 1:
            raise torch.OutOfMemoryError(TORCH_SAYS)

    short.runner.pipeline.ctx.components["transformer"].register_forward_pre_hook(refuse)
    ask = replace(ASK, params=replace(ASK.params, width=64, height=64, num_inference_steps=10))
    expected, found = draw(whole, ask=ask), draw(short, ask=ask)
    assert isinstance(expected, Tensor) and isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert tried == [2] + [1] * 12 + [2] + [1] * 8
    assert short.runner.forwards.retries == {"transformer": 2}


def weights(subject: Engine) -> dict[str, Tensor]:
    return dict(subject.runner.pipeline.ctx.components["transformer"].state_dict())


@pytest.mark.parametrize("cache", ["none", "dbcache,threshold=9,warm_up=1"])
def test_a_row_that_does_not_fit_beside_its_network_is_computed_while_blocks_wait_elsewhere(
    caplog: pytest.LogCaptureFixture, cache: str
) -> None:
    whole, short, told = engine(), engine(), []

    def refuse(network: Network, given: tuple[Sequence[object], ...]) -> None:
        told.append(all(not part.is_meta for part in network.parameters()))
        if told[-1]:
            raise torch.OutOfMemoryError(TORCH_SAYS)

    network = short.runner.pipeline.ctx.network("transformer")
    network.register_forward_pre_hook(refuse)
    before = weights(short)
    ask = replace(ASK, params=replace(ASK.params, num_inference_steps=3, width=64, height=64, cache=cache))
    said = ("memory ran out in a step of transformer, which was done with its blocks outside of the device",)
    expected, found = draw(whole, ask=ask), draw(short, said, ask=ask)
    assert isinstance(expected, Tensor) and isinstance(found, Tensor)
    assert torch.equal(found, expected)
    assert short.runner.forwards.asides["transformer"] == told.count(False) == 6
    assert caplog.text.count("with its blocks outside of the device: transformer ran out of memory: CUDA out of") == 1
    assert all(torch.equal(each, before[name]) for name, each in weights(short).items())


class Shared(TorchFunctionMode):
    """A device that others use, too: of tensors that come back to it, so many find `room`."""

    room = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.empty_strided:
            if not self.room:
                raise torch.OutOfMemoryError(TORCH_SAYS)
            self.room -= 1
        return func(*args, **(kwargs or {}))


def test_blocks_whose_room_others_have_taken_go_on_waiting_and_are_back_when_it_is_there_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnimuse.worker.forwards.AGAIN", 4)
    whole, short, full = engine(), engine(), [True]

    def refuse(network: Network, given: tuple[Sequence[object], ...]) -> None:
        if full[0] and all(not part.is_meta for part in network.parameters()):
            raise torch.OutOfMemoryError(TORCH_SAYS)

    short.runner.pipeline.ctx.network("transformer").register_forward_pre_hook(refuse)
    before = weights(short)
    ask = replace(ASK, params=replace(ASK.params, num_inference_steps=3, width=64, height=64))
    said = ("memory ran out in a step of transformer, which was done with its blocks outside of the device",)
    expected = draw(whole, ask=ask)
    with Shared() as device:
        for told, device.room in ((said, 5), ((), 5), ((), 10**6)):
            found = draw(short, told, ask=ask)
            assert isinstance(expected, Tensor) and isinstance(found, Tensor)
            assert torch.equal(found, expected)
            full[0] = False
    assert short.runner.forwards.asides == {"transformer": 1}
    assert "blocks of transformer wait outside of the device until there is room: CUDA out of memory" in caplog.text
    assert all(torch.equal(each, before[name]) for name, each in weights(short).items())
    assert torch.equal(torch.as_tensor(draw(short, ask=ask)), expected)


def test_a_row_that_fits_in_no_way_is_refused_with_the_figures_and_the_weights_are_back() -> None:
    subject, full = engine(), [True]

    def refuse(network: Network, given: tuple[Sequence[object], ...]) -> None:
        if full[0]:
            raise torch.OutOfMemoryError(TORCH_SAYS)

    subject.runner.pipeline.ctx.network("transformer").register_forward_pre_hook(refuse)
    error = draw(subject)
    assert isinstance(error, MemoryShortageError)
    assert "transformer ran out of memory: CUDA out of memory. Tried to allocate 20.00 GiB" in str(error)
    full[0] = False
    found, expected = draw(subject), draw(engine())
    assert isinstance(found, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(found, expected)


def test_a_shortage_is_told_with_what_was_wanted_and_what_there_is() -> None:
    said = str(settle(torch.OutOfMemoryError(TORCH_SAYS), "decode"))
    assert said == (
        "decode ran out of memory: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of "
        "79.11 GiB of which 12.00 GiB is free"
    )
