"""What one request takes, as `omnimuse explain --measure` tells it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from itertools import accumulate

import pytest

from omnimuse import explain
from omnimuse.cli import main
from omnimuse.core.caches import cache_named
from omnimuse.core.config import Config, HostConfig, ModelConfig, OffloadConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.core.request import Ask
from omnimuse.engine import measure as measuring
from omnimuse.engine.local import finished, start
from omnimuse.engine.measure import FORETOLD, MADE, measure
from omnimuse.observe.profile import allocated, recorded_events
from omnimuse.pipeline.decode import DecodeImage
from tests.skipping import remembering

MODEL = "omnimuse/shapes"
PLACE = Config(ModelConfig(MODEL, dtype="float32", device="cpu"), host=HostConfig(room=2**30))


@pytest.fixture(autouse=True)
def small_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried is small, so that little may be asked for."""
    monkeypatch.setattr("omnimuse.engine.extents.SIDES", (128, 256))


@pytest.mark.parametrize(("wanted", "how"), [("320x256", FORETOLD), ("96x96", MADE)])
def test_it_is_what_torch_allocates_for_a_request_of_that_size(
    wanted: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "told_bytes", str)
    size, *stages, most = measure(PLACE, wanted)
    assert (size.value, most.reason) == (wanted, f"beside the weights that stay, of which there are {2**30}")
    assert {stage.name for stage in stages} >= {"diffuse", "vae.decode"}
    assert {stage.reason for stage in stages} == {how}
    width, height = map(int, wanted.split("x"))
    with contextlib.closing(start(PLACE)) as engine:
        params = DiffusionParams(width=width, height=height, num_inference_steps=1)
        finished(engine, engine.make_request(Ask("a warm-up", params)))
        events = recorded_events(lambda: finished(engine, engine.make_request(Ask("a warm-up", params))))
    took = max(accumulate(size for _, size in allocated(events)))
    assert int(most.value) == max(int(stage.value) for stage in stages) == pytest.approx(took, rel=0.03)


@pytest.mark.costly
@pytest.mark.parametrize("mask", ["fast", "110101"])
@pytest.mark.parametrize("order", [0, 3])
@pytest.mark.parametrize(("wanted", "how"), [("320x256", FORETOLD), ("96x96", MADE)])
def test_what_the_step_cache_of_the_engine_remembers_is_in_it(
    wanted: str, how: str, order: int, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "told_bytes", str)
    choice = f"dbcache,order={order},last=0,threshold=9"
    cached = replace(PLACE, cache=cache_named(f"{choice},mask={mask}"))
    found = [{row.name: row for row in measure(place, wanted)}["diffuse"] for place in (PLACE, cached)]
    assert [row.reason for row in found] == [how, how]
    with contextlib.closing(start(PLACE)) as engine:
        width, height = map(int, wanted.split("x"))
        params = DiffusionParams(width=width, height=height, num_inference_steps=8, output_type="latent", cache=choice)
        request, held = engine.make_request(Ask("a warm-up", params)), [0]
        engine.submit(request)
        while not engine.idle:
            engine.tick()
            held.append(remembering(engine))
    assert int(found[1].value) - int(found[0].value) > 0.95 * max(held) > 0


@pytest.mark.parametrize("wanted", ["320x256", "64x64"])
def test_where_weights_take_turns_there_is_as_much_as_where_none_had_come_in(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "told_bytes", str)
    waiting = replace(PLACE, offload=OffloadConfig("components"))
    _, *stages, most = measure(waiting, wanted)
    with contextlib.closing(start(waiting)) as engine:
        coming = engine.space.coming
    assert coming and most.reason.endswith(f"of which there are {2**30 + coming}")
    assert int(most.value) == max(int(stage.value) for stage in stages)


def test_what_cannot_be_made_raises_why_and_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ModelError("it decodes nothing")

    monkeypatch.setattr(DecodeImage, "decode", broken)
    for wanted in ("64x64", "320x256"):
        with pytest.raises(ModelError, match="it decodes nothing"):
            measure(PLACE, wanted)


def test_what_cannot_be_told_just_now_is_no_fault_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("omnimuse.observe.profile.TemporaryDirectory", full)
    most = measure(PLACE, "320x256")[-1]
    assert (most.value, most.reason) == ("unknown", "it cannot be told just now, for what the log says")
    monkeypatch.setattr(measuring, "tells", lambda device: None)
    assert measure(PLACE, "96x96")[-1].reason == "nobody tells what this device has for tensors"


def test_the_command_line_and_python_tell_it_beside_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = explain(MODEL, config=PLACE)
    found = explain(MODEL, config=PLACE, measure="small")
    assert found[: len(chosen)] == chosen and {each.topic for each in found[len(chosen) :]} == {"request"}
    assert main(["explain", MODEL, "--dtype", "float32", "--device", "cpu", "--measure", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["topic"] == "request"]
    assert rows[0]["value"] == "128x128" and rows[-1]["name"] == "at most"


def test_what_cannot_be_measured_is_refused() -> None:
    for wanted, words in (("none", "measures nothing; use small"), ("big", "--measure big is not understood")):
        with pytest.raises(ConfigError, match=words):
            measure(PLACE, wanted)
    pools = DeployConfig((PoolConfig("one", ("*",)),))
    for spread in (
        Config(PLACE.model, parallel=ParallelConfig(tensor=2)),
        Config(PLACE.model, deploy=pools),
    ):
        with pytest.raises(ConfigError, match="leave the ranks and pools out"):
            measure(spread, "small")
