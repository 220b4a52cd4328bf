"""Compiled blocks write, speak and answer what others do, and are compiled a few times: every family."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnimuse.ar.kv import Decoder
from omnimuse.core.config import CompileConfig, Config, HostConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.worker.build import build
from tests.checkpoints import qwen25_omni
from tests.checkpoints.adapters import telling
from tests.compiling import Counter, compile_each
from tests.dist.test_formats import EVERY
from tests.dist.test_telling_together import Teller, check, likeliest, spread
from tests.invariants.conftest import config, drain, results, submit, tick, with_params
from tests.invariants.test_writing import briefly
from tests.once import Once

PIECES, FORMS = 2, 4
"""Of a block, and of a piece: for one token, of one row or of several, and for more, of rows that are equal or not."""
COMPILED = CompileConfig("blocks")
PAUSED = 4
"""Ticks after which one waits while the others go on."""


def asked(folder: Path) -> Config:
    """An engine in which forwards are shared, whether blocks are compiled or not."""
    return replace(config(folder), host=HostConfig(threads=1), schedule=ScheduleConfig(tier="fast", company="always"))


def wanted(teller: Teller, folder: Path) -> list[Ask]:
    """What a teller is asked for, the first once more with an adapter, where names of its files fit one."""
    asks, adapter = teller.asks(folder), telling(folder)
    if adapter is None or any(ask.params.loras for ask in asks):
        return asks
    return [*asks, with_params(asks[0], loras=[f"{adapter}:0.8"])]


def told(engine: Engine, asks: list[Ask]) -> list[dict[str, torch.Tensor]]:
    """What is told in company, of which the last waits for a while, and then by no chance, many tokens in a tick."""
    ids = submit(engine, *asks)
    events = [event for _ in range(PAUSED) for event in tick(engine)]
    engine.pause(ids[-1])
    events += [event for _ in range(PAUSED) for event in engine.tick()]
    engine.resume(ids[-1])
    assert ids[-1] in engine.scheduler.entries
    events += drain(engine, 3000)
    found = [spread(results(engine, events, ids))]
    if sure := likeliest(asks):
        before, ids = engine.runner.forwards.count, submit(engine, *sure)
        events, _ = briefly(engine)
        made = results(engine, events, ids)
        found.append(spread(made))
        written = [note for result in made for note in result.written if result.steps.get("generate")]
        spoken = any(name.endswith((".audio", ".sound")) for name in found[-1])
        assert (
            spoken or not written or engine.runner.forwards.count - before < max(len(note.tokens) for note in written)
        )
    assert not engine.runner.forwards.retries
    return found


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.shows("compile", "company")
@pytest.mark.parametrize(
    "besides",
    [{}, {"quantize": QuantConfig({"": "int8"})}, {"offload": OffloadConfig("layers")}],
    ids=["floats", "packed", "waiting"],
)
@pytest.mark.parametrize("teller", EVERY, ids=lambda teller: teller.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_compiled_blocks_tell_what_others_do_and_are_compiled_a_few_times(
    teller: Teller, besides: dict[str, Any], once: Once
) -> None:
    torch._dynamo.reset()
    folder = once.folder(f"shared {teller.name}", teller.build)
    asks, chosen = wanted(teller, folder), replace(asked(folder), **besides)
    plain = start(chosen)
    expected = told(plain, asks)
    plain.close()
    engine = start(replace(chosen, compile=COMPILED))
    counters = defaultdict[str, Counter](Counter)
    compile_each(engine, counters.__getitem__)
    components = engine.runner.pipeline.ctx.components
    writes = [name for name in components if isinstance(components.wherever(name), Decoder)]
    for found, one in zip(told(engine, asks), expected, strict=True):
        check(found, one)
    engine.close()
    graphs = {name: each.graphs for name, each in counters.items() if name in writes}
    worn = any(ask.params.loras for ask in asks)  # joined or none: other code
    assert any(graphs.values()), "nobody is asked to speak where a text alone is wanted"
    assert max(graphs.values()) <= PIECES * FORMS * (1 + worn), graphs


def test_what_is_compiled_and_what_runs_as_it_is_is_explained(once: Once) -> None:
    folder = once.folder("Qwen2_5OmniForConditionalGeneration", qwen25_omni.build)
    found = {
        choice.name: choice.value
        for choice in build(replace(asked(folder), compile=COMPILED)).choices
        if choice.topic == "compile"
    }
    assert found.pop("flow") == "as it is"
    assert found.keys() == {"model.layers", "talker.layers"} and len(set(found.values())) == 1
