"""The same seed is the same picture, whatever the company: the tier "invariant", for every registered pipeline.

Everything here is compared to the bit, while forwards are shared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import (
    AttentionConfig,
    CacheConfig,
    CompileConfig,
    Config,
    HostConfig,
    ModelConfig,
    OffloadConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.invariants.conftest import Subject, drain, outputs, run, submit
from tests.skipping import ENOUGH, counting

pytestmark = pytest.mark.crossed

Make = Callable[..., Engine]
shows = partial(pytest.mark.shows, "invariant", "company", wishes=True)
INVARIANT = ScheduleConfig(tier="invariant", strict_slots=True, company="always")


def strangers(engine: Engine, asks: list[Ask]) -> dict[str, list[Tensor]]:
    """What each ask gives alone, and what is not the same to the bit in company: empty is good news.

    Companies: all at once, each beside its like (equal rows are packed in another way), all with two that join late.
    """
    before = engine.runner.forwards.count
    alone = [run(engine, ask)[0] for ask in asks]
    each = engine.runner.forwards.count - before
    found: dict[str, list[Tensor]] = {"all": run(engine, *asks)}
    assert engine.runner.forwards.count - before < 2 * each, "nothing was shared"
    found["twins"] = [run(engine, ask, ask)[1] for ask in asks]
    early = submit(engine, *asks)
    events = [event for _ in range(2) for event in engine.tick()]
    late = submit(engine, *asks[:2])
    events += drain(engine)
    found["early"] = [outputs(events, id_) for id_ in early]
    found["late"] = [outputs(events, id_) for id_ in late]
    differ = {
        name: [tensor for tensor, expected in zip(tensors, alone, strict=False) if not torch.equal(tensor, expected)]
        for name, tensors in found.items()
    }
    return {name: tensors for name, tensors in differ.items() if tensors}


@pytest.mark.shows("invariant", "company", wishes=True)
@pytest.mark.parametrize(
    ("dtype", "threads"),
    [
        ("float32", 2),
        *(pytest.param(*machine, marks=pytest.mark.slow) for machine in (("float32", 1), ("float32", 4))),
        pytest.param("bfloat16", 2, marks=(shows("bfloat16"), pytest.mark.slow)),
    ],
)
def test_in_company_is_alone_bit_for_bit_while_forwards_are_shared(subject: Subject, dtype: str, threads: int) -> None:
    config = subject.config(schedule=INVARIANT, host=HostConfig(threads=threads))
    engine = start(replace(config, model=replace(config.model, dtype=dtype)))
    found = strangers(engine, subject.asks())
    engine.close()
    assert not found


def test_a_thread_that_is_spared_half_way_changes_no_bit(
    subject: Subject, engine_with: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    engine = engine_with(schedule=INVARIANT, host=HostConfig(threads=2))
    assert engine.governor is not None
    crew, engine.governor = engine.governor.crew, None
    if crew is None:
        pytest.skip("no thread is spared where a model writes one token at a time; `explain` says so")
    crew.spare()
    if not crew.spared:
        pytest.skip("products depend on the number of threads on this machine")
    crew.recall()
    [expected] = run(engine, subject.ask(0))
    [id_], events = submit(engine, subject.ask(0)), []
    for turn in itertools.count():
        if engine.idle:
            break
        (crew.recall if turn % 3 == 2 else crew.spare)()
        events += engine.tick()
    assert torch.equal(outputs(events, id_), expected)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"offload": OffloadConfig("layers")}, id="offload", marks=(shows("layers"), pytest.mark.slow)),
        pytest.param({"cache": CacheConfig("teacache", 1e6)}, id="teacache", marks=shows("TeaCache")),
        *(
            pytest.param({"attention": AttentionConfig(name)}, id=name, marks=pytest.mark.slow)
            for name in ("reference", "flex", "sdpa_flash", "sdpa_math")
        ),
    ],
)
def test_it_holds_beside_other_features(subject: Subject, engine_with: Make, parts: dict[str, object]) -> None:
    engine = engine_with(schedule=INVARIANT, host=HostConfig(threads=2), **parts)
    with counting(engine) as skipped:
        found = strangers(engine, subject.asks(**ENOUGH))
    assert not found
    assert {count > 0 for count in skipped.values()} == {"cache" in parts}


def test_compiled_blocks_cannot_be_invariant_and_say_so(subject: Subject, engine_with: Make) -> None:
    with pytest.raises(ConfigError, match="compiled blocks are other code"):
        engine_with(schedule=INVARIANT, compile=CompileConfig("blocks"))


@pytest.mark.parametrize(("dtype", "threads"), [(d, t) for d in ("float32", "bfloat16") for t in (1, 2, 3, 4)])
def test_the_demo_model_with_its_own_weights_draws_the_same_in_any_company(dtype: str, threads: int) -> None:
    def ask(seed: int, **choices: object) -> Ask:
        chosen = {"num_inference_steps": 3, "guidance_scale": 2.0, **choices}
        return Ask("a red circle", DiffusionParams(seed=seed, output_type="latent", **chosen))  # type: ignore[arg-type]

    asks = [ask(1), ask(2, height=96), ask(3, guidance_scale=0.0), ask(4, num_inference_steps=4)]
    model = ModelConfig("omnimuse/shapes", dtype=dtype, device="cpu")
    engine = start(Config(model, schedule=INVARIANT, host=HostConfig(threads=threads)))
    found = strangers(engine, asks)
    engine.close()
    assert not found
