"""Weights of four bits that are laid for the tokens of what writes: where that is done, and what stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from omnimuse.core.config import Config, ModelConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import finished, start
from omnimuse.quant.abreast import Abreast, outputs_together
from omnimuse.quant.linear import quantized_layers
from omnimuse.worker.explain import explain
from tests.checkpoints import qwen3

pytestmark = pytest.mark.skipif(not outputs_together(), reason="torch has no fast kernel for four bits here")
LAYERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3.build(tmp_path_factory.mktemp("model"), width=128, layers=LAYERS, head=32)


def chosen(folder: Path, dtype: str = "bfloat16", scheme: str = "int4", **parts: Any) -> Config:
    schedule = ScheduleConfig(tier="invariant", strict_slots=True, company="always")
    model = ModelConfig(str(folder), dtype=dtype, device="cpu")
    return Config(model, schedule=schedule, quantize=QuantConfig({"": scheme}), **parts)


@contextmanager
def started(config: Config) -> Iterator[Engine]:
    engine = start(config)
    yield engine
    engine.close()


def is_laid(engine: Engine) -> list[bool]:
    """Of every packed layer."""
    network = engine.runner.pipeline.ctx.network("model")
    return [isinstance(layer.scheme, Abreast) for layer in quantized_layers(network).values()]


def written(engine: Engine, *prompts: str) -> list[tuple[int, ...]]:
    """What is written after all of them together."""
    params = make_params(DiffusionParams(seed=3), {"temperature": 0.8, "min_tokens": 9, "max_tokens": 9})
    results = finished(engine, *(engine.make_request(Ask(prompt, params)) for prompt in prompts))
    return [tuple(each.written[0].tokens) for each in results]


def test_what_writes_in_bfloat16_has_four_bits_laid_and_writes_the_same_in_company_and_after_sleep(
    folder: Path,
) -> None:
    prompts = ("a circle", "a red circle on a blue square", "some small red square", "on")
    with started(chosen(folder)) as engine:
        assert is_laid(engine) and all(is_laid(engine))
        alone = [written(engine, prompt)[0] for prompt in prompts]
        assert len(set(alone)) == len(prompts)
        assert written(engine, *prompts) == alone
        engine.sleep()
        engine.wake_up()
        assert all(is_laid(engine)) and written(engine, *prompts) == alone


@pytest.mark.parametrize(
    "parts",
    [{"dtype": "float32"}, {"scheme": "int8"}, {"offload": OffloadConfig("components")}],
    ids=["float32", "int8", "offloaded"],
)
def test_four_bits_stay_as_they_are_read_elsewhere(folder: Path, parts: dict[str, Any]) -> None:
    with started(chosen(folder, **parts)) as engine:
        assert not any(is_laid(engine))


def test_laid_weights_stand_for_what_those_of_float32_do(folder: Path) -> None:
    """Layer by layer, as near as bfloat16 is."""
    with started(chosen(folder)) as engine, started(chosen(folder, dtype="float32")) as other:
        ours, theirs = (quantized_layers(each.runner.pipeline.ctx.network("model")) for each in (engine, other))
        for laid, packed in zip(ours.values(), theirs.values(), strict=True):
            floats = packed.scheme.unpack(packed.packed)
            assert (laid.scheme.unpack(laid.packed) - floats).norm() < 2**-8 * floats.norm()


@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", "four bits read once"), ("float32", "floats")])
def test_explain_tells_of_how_many_layers_four_bits_are_read_once_or_would_be(
    folder: Path, dtype: str, told: str
) -> None:
    [found] = [choice for choice in explain(chosen(folder, dtype=dtype)) if choice.name == "model tokens"]
    assert (found.topic, found.value) == ("quantize", told)
    with started(chosen(folder)) as engine:
        assert found.reason.startswith(f"{len(is_laid(engine))} layers: ")
    assert ("dtype=bfloat16" in found.reason) == (dtype == "float32")
    others = explain(chosen(folder, dtype=dtype, offload=OffloadConfig("components")))
    assert "model tokens" not in {choice.name for choice in others}
