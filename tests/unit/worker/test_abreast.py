"""Packed weights that are read once for the tokens of what writes: in which layers, by whose word, and what stays the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnimuse.components.experts import Experts
from omnimuse.core.config import Config, ModelConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.params import DiffusionParams, make_params
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import finished, start
from omnimuse.layers.steady import trial
from omnimuse.quant.abreast import Abreast, outputs_together
from omnimuse.quant.linear import QuantizedLinear, quantized_layers
from omnimuse.quant.schemes import Parts
from omnimuse.worker.explain import explain
from tests.checkpoints import qwen3, qwen3_omni

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


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize(
    ("dtype", "told"),
    [("bfloat16", "read once"), ("auto", "read once"), ("float32", "floats"), ("float16", "floats")],
)
@pytest.mark.usefixtures("_no_units")
def test_explain_tells_of_how_many_layers_packed_weights_are_read_once_or_would_be(
    folder: Path, dtype: str, told: str, scheme: str
) -> None:
    [found] = [choice for choice in explain(chosen(folder, dtype, scheme)) if choice.name == "model tokens"]
    assert found.topic == "quantize"
    assert found.value == (told if told == "floats" else f"{BITS[scheme]} bits read once")
    with started(chosen(folder, scheme=scheme)) as engine:
        assert found.reason.startswith(f"{len(is_laid(engine))} layers: ")
    assert ("dtype=auto" in found.reason) == (told == "floats")
    assert ("is rounded to bfloat16" in found.reason) == (dtype == "auto")
    others = explain(chosen(folder, dtype, scheme, offload=OffloadConfig("components")))
    assert ("model tokens" in {choice.name for choice in others}) == (scheme == "int8"), "what moves is not laid"


BITS = {"int4": "four", "int8": "eight"}


@pytest.fixture
def _no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """This processor computes bfloat16 slowly."""
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    monkeypatch.delenv("OMNIMUSE_DTYPE", raising=False)


def rounding(engine: Engine) -> list[bool]:
    """Of every packed layer, whether it rounds the tokens that are written."""
    network = engine.runner.pipeline.ctx.network("model")
    return [layer.rounds for layer in quantized_layers(network).values()]


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.usefixtures("_no_units")
def test_where_nobody_asked_for_a_format_and_bfloat16_is_slow_written_tokens_alone_are_rounded_to_it(
    folder: Path, scheme: str
) -> None:
    """In any company they are the same, and after sleep; what a prompt is made of is not rounded."""
    prompts, network = ("a circle", "a red circle on a blue square", "some small red square", "on"), "model"
    with started(chosen(folder, "auto", scheme)) as engine, started(chosen(folder, "float32", scheme)) as other:
        assert engine.runner.pipeline.ctx.dtype == torch.float32
        assert set(rounding(engine)) == {True} and set(rounding(other)) == {False}
        assert set(is_laid(engine)) == {scheme == "int4"} and not any(is_laid(other))
        alone = [written(engine, prompt)[0] for prompt in prompts]
        assert written(engine, *prompts) == alone and len(set(alone)) == len(prompts)
        engine.sleep()
        engine.wake_up()
        assert set(rounding(engine)) == {True} and written(engine, *prompts) == alone
        layers = (quantized_layers(each.runner.pipeline.ctx.network(network)) for each in (engine, other))
        for ours, theirs in zip(*(found.values() for found in layers), strict=True):
            x = trial(4, ours.inputs)
            exact = x @ ours.scheme.unpack(ours.packed).t()
            assert far(ours(x[:, None])[:, 0], exact) > 1e-4 > far(ours(x[None])[0], exact), "a prompt of four tokens"
            assert far(ours(x[:, None])[:, 0], exact) < 0.006
            assert far(theirs(x[:, None])[:, 0], x @ theirs.scheme.unpack(theirs.packed).t()) < 1e-5


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("told", "environment", "dtype", "rounds", "laid"),
    [
        pytest.param({"avx512_bf16": True}, "", torch.bfloat16, False, True, id="units"),
        pytest.param({}, "float32", torch.float32, False, False, id="environment says float32"),
        pytest.param({}, "bfloat16", torch.bfloat16, False, True, id="environment says bfloat16"),
        pytest.param({}, "", torch.float32, True, True, id="neither"),
    ],
)
def test_what_the_processor_has_and_the_environment_says_decides_what_is_rounded(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, bool],
    environment: str,
    dtype: torch.dtype,
    rounds: bool,
    laid: bool,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: told)
    monkeypatch.setenv("OMNIMUSE_DTYPE", environment)
    with started(chosen(folder, "auto")) as engine:
        assert engine.runner.pipeline.ctx.dtype == dtype
        assert (set(rounding(engine)), set(is_laid(engine))) == ({rounds}, {laid})


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.usefixtures("_no_units")
def test_where_torch_has_no_fast_kernel_nothing_is_rounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    with started(chosen(folder, "auto", scheme)) as engine:
        assert not any(rounding(engine)) and not any(is_laid(engine))
    told = {choice.name: choice for choice in explain(chosen(folder, "auto", scheme))}
    assert "read once" not in "".join(map(str, [told.get("model tokens")]))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.usefixtures("_no_units")
def test_experts_that_written_tokens_ask_read_their_four_bits_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """And make floats of them for prompts alone. In company they say what they say alone."""
    wide = {"hidden_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": LAYERS}
    folder = qwen3_omni.build(tmp_path / "model", speaks=False, thinker=wide)
    forward, unpack = Experts.forward, Abreast.unpack
    asking, seen, made = list[int](), set[int](), set[int]()

    def watched(self: Experts, x: Tensor) -> Tensor:
        asking.append(x.shape[1])
        seen.add(x.shape[1])
        found = forward(self, x)
        asking.pop()
        return found

    def counted(self: Abreast, parts: Parts) -> Tensor:
        made.update(asking)
        return unpack(self, parts)

    monkeypatch.setattr(Experts, "forward", watched)
    monkeypatch.setattr(Abreast, "unpack", counted)
    prompts = ("a circle", "a red circle on a blue square", "some small red square")
    with started(chosen(folder, dtype)) as engine:
        assert {name for name, layer in experts(engine).items() if not isinstance(layer.scheme, Abreast)} == set()
        alone = [written(engine, prompt)[0] for prompt in prompts]
        assert written(engine, *prompts) == alone and len(set(alone)) == len(prompts)
    assert 1 in seen and made == seen - {1} and made


def experts(engine: Engine) -> dict[str, QuantizedLinear]:
    """Their layers, by name."""
    network = engine.runner.pipeline.ctx.network("model")
    found = {name: layer for name, layer in quantized_layers(network).items() if ".experts." in name}
    assert len(found) == 2 * 4 * LAYERS
    return found
