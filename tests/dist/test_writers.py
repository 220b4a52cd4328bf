"""Text that another engine writes: a stand-in for vLLM, which follows a rule, and vLLM where it is installed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from omnimuse import Config, ModelConfig, Omni, WriterConfig
from omnimuse.core.config import (
    AttentionConfig,
    CompileConfig,
    KernelConfig,
    OffloadConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.errors import ConfigError, EngineDeadError, RequestError
from omnimuse.core.output import Chunk, Event, Result
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.engine.local import start
from omnimuse.quant.linear import QuantizedLinear
from tests.checkpoints import qwen3, qwen3_omni, talk_and_draw
from tests.processes import alive, children, kill, wait_gone
from tests.standin_vllm.rule import next_of
from tests.waiting import wait_until

PROMPTS = ("a red circle", "two blue squares", "a star")
HERE = Path(__file__).parents[1] / "standin_vllm"
REAL = os.environ.get("OMNIMUSE_VLLM_PYTHON", "")


def real(test: Callable[..., None]) -> Callable[..., None]:
    """A test that needs vLLM, which takes half a minute to start."""
    why = "OMNIMUSE_VLLM_PYTHON names no Python that has vLLM"
    for mark in (pytest.mark.costly("vllm"), pytest.mark.timeout(600), pytest.mark.skipif(not REAL, reason=why)):
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen3.build(tmp_path_factory.mktemp("written") / "tiny", head=32)


@pytest.fixture
def python(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Python in whose environment the stand-in is vLLM."""
    file = tmp_path / "python"
    file.write_text(f'#!/bin/sh\nPYTHONPATH={HERE} exec {sys.executable} "$@"\n')
    file.chmod(0o755)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("CURSED", str(ids(folder, "very")[0]))
    monkeypatch.setenv("DEADLY", str(ids(folder, "green")[0]))
    return str(file)


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


@pytest.fixture
def omni(folder: Path, python: str) -> Iterator[Omni]:
    with Omni(str(folder), device="cpu", dtype="float32", writer=WriterConfig("vllm", python)) as made:
        yield made


def ids(folder: Path, prompt: str) -> list[int]:
    return qwen3.prompt_ids(folder, prompt)


def by_rule(folder: Path, prompt: str, count: int) -> list[int]:
    """What the stand-in writes, up to `count` tokens."""
    read = ids(folder, prompt)
    words = qwen3.Qwen3Config.from_pretrained(folder).vocab_size
    found = list[int]()
    while len(found) < count:
        found.append(next_of([*read, *found], words))
    return found


def tokens(result: Result) -> list[int]:
    return list(result.written[0].tokens)


def test_several_are_written_together_and_each_is_what_it_is_alone(omni: Omni, folder: Path, told: Path) -> None:
    [alone] = omni.generate(PROMPTS[0], max_tokens=9, progress=False)
    found = omni.generate(list(PROMPTS), max_tokens=9, progress=False)
    assert [tokens(result) for result in found] == [by_rule(folder, prompt, 9) for prompt in PROMPTS]
    assert tokens(alone) == tokens(found[0]) and alone.text == found[0].text
    assert all(result.written[0].reason == "length" for result in found)
    assert "together 3" in told.read_text()
    first, second = by_rule(folder, PROMPTS[0], 1)[0], by_rule(folder, PROMPTS[0], 1)[0] + 1
    [other] = omni.generate(PROMPTS[0], max_tokens=1, suppressed=(first, second), progress=False)
    assert tokens(other) == [second + 1]


def test_it_is_heard_while_it_is_written_and_a_stop_text_ends_it_there(omni: Omni, told: Path) -> None:
    pieces = list[tuple[float, str]]()

    def listen(event: Event) -> None:
        if isinstance(event, Chunk):
            pieces.append((time.monotonic(), str(event.data)))

    [whole] = omni.generate(PROMPTS[0], max_tokens=40, chunks=True, progress=listen)
    assert "".join(text for _, text in pieces) == whole.text
    assert len(pieces) > 10 and pieces[-1][0] - pieces[0][0] > 0.1
    stop = pieces[12][1]
    [short] = omni.generate(PROMPTS[0], max_tokens=2000, stop=(stop,), progress=False)
    assert short.text == whole.text[: whole.text.index(stop)] and short.written[0].reason == "stop"
    wait_until(lambda: "stopped" in told.read_text())


def test_where_it_ends_early_the_text_ends(folder: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOST", "5")
    with Omni(str(folder), device="cpu", dtype="float32", writer=WriterConfig("vllm", python)) as omni:
        [result] = omni.generate(PROMPTS[0], max_tokens=9, progress=False)
    assert tokens(result) == by_rule(folder, PROMPTS[0], 5) and result.written[0].reason == "length"


def test_who_is_cancelled_is_not_written_for_any_longer(omni: Omni, told: Path) -> None:
    stream = omni.stream([PROMPTS[0], PROMPTS[1]], [{"max_tokens": 5}, {"max_tokens": 1900}])
    place, _ = next(stream)
    assert place == 0
    stream.close()
    wait_until(lambda: "stopped" in told.read_text())
    assert int(told.read_text().split("stopped ")[1].split()[0]) < 1000
    assert len(omni.generate(PROMPTS[2], max_tokens=3, progress=False)[0].written[0].tokens) == 3


def test_that_blocks_are_computed_elsewhere_is_said_where_they_are_asked_for(
    omni: Omni, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [plain] = omni.generate(PROMPTS[0], max_tokens=2, progress=False)
    omni.times_blocks = True
    with omni.recording(tmp_path / "trace.json.gz"):
        [told] = omni.generate(PROMPTS[0], max_tokens=2, progress=False)
    assert not told.blocks and plain.warnings == []
    assert [said for said in told.warnings if "of the blocks of model are told: vLLM" in said], told.warnings
    assert "of which a recording has nothing" in caplog.text


def test_what_is_refused_there_fails_alone(omni: Omni) -> None:
    refused, other = omni.generate(["very", PROMPTS[2]], max_tokens=3, progress=False)
    assert isinstance(refused.error, RequestError) and "does not like it" in str(refused.error)
    assert len(tokens(other)) == 3


def test_where_it_ends_the_engine_ends_and_says_so(folder: Path, python: str) -> None:
    with Omni(str(folder), device="cpu", dtype="float32", writer=WriterConfig("vllm", python)) as omni:
        with pytest.raises(EngineDeadError, match="vLLM has ended"):
            omni.generate("green", max_tokens=9, progress=False)
    assert not children(os.getpid(), "vllm_child")


def test_nothing_is_left_of_it_when_the_engine_is_closed(folder: Path, python: str) -> None:
    with Omni(str(folder), device="cpu", dtype="float32", writer=WriterConfig("vllm", python)) as omni:
        [child] = children(os.getpid(), "vllm_child")
        stream = omni.stream([PROMPTS[0]], {"max_tokens": 1900})
        threading.Timer(0.2, omni.close).start()
        assert next(stream)[1].error is not None
    assert wait_gone([child])


@pytest.mark.costly
@pytest.mark.timeout(240)
def test_a_pool_whose_writer_is_killed_is_started_again_and_the_text_goes_on(folder: Path, python: str) -> None:
    placed = (
        PoolConfig("read", stages=("read",), connector="local"),
        PoolConfig("write", stages=("generate",), writer="vllm", python=python),
    )
    config = Config(ModelConfig(str(folder), "float32", "cpu"), deploy=DeployConfig(placed))
    pieces = list[str]()
    with Omni(str(folder), config=config) as omni:
        [pool] = children(os.getpid(), "deploy.station")
        [child] = children(pool, "vllm_child")

        def listen(event: Event) -> None:
            if isinstance(event, Chunk):
                pieces.append(str(event.data))
                if len(pieces) == 10:
                    kill(child)

        [result] = omni.generate(PROMPTS[0], max_tokens=100, chunks=True, progress=listen)
        assert tokens(result) == by_rule(folder, PROMPTS[0], 100)
        assert "".join(pieces) == result.text and not alive(child)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (WriterConfig("vllm", "/nowhere/python"), "cannot be started with /nowhere/python"),
        (WriterConfig("vllm"), "No module named 'vllm'.*--writer-python"),
    ],
)
def test_without_vllm_it_is_said_what_to_install_and_where(folder: Path, config: WriterConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Omni(str(folder), device="cpu", writer=config)


def test_what_cannot_be_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    speaks = qwen3_omni.build(tmp_path / "speaks")
    with pytest.raises(ConfigError, match="wants nothing but tokens"):
        Omni(str(speaks), device="cpu", writer=WriterConfig("vllm"))
    with pytest.raises(ConfigError, match="runs nothing while this engine writes"):
        WriterConfig(python="python")
    deploy = DeployConfig((PoolConfig("all", stages=("*",)),))
    with pytest.raises(ConfigError, match="which pool would write so"):
        Config(ModelConfig(str(folder)), writer=WriterConfig("vllm"), deploy=deploy)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"quantize": QuantConfig({"": "int8"})}, "quantize int8"),
        ({"quantize": QuantConfig({"model": "int8"})}, "quantize model"),
        ({"compile": CompileConfig("blocks")}, "compile=blocks"),
        ({"offload": OffloadConfig("components")}, "offload=components"),
        ({"schedule": ScheduleConfig(tier="exact")}, "tier=exact"),
        ({"schedule": ScheduleConfig(tier="invariant")}, "tier=invariant"),
        ({"attention": AttentionConfig("sdpa")}, "attention=sdpa"),
        ({"attention": AttentionConfig(per_role={"self": "sdpa"})}, r"attention by role \(self\)"),
        ({"kernels": KernelConfig("plain")}, "kernels=plain"),
    ],
)
def test_how_our_networks_run_is_refused_where_none_does(
    folder: Path, python: str, choice: dict[str, Any], says: str
) -> None:
    pool = PoolConfig("all", ("*",), connector="local", writer="vllm", python=python)
    for where in ({"writer": WriterConfig("vllm", python)}, {"deploy": DeployConfig((pool,))}):
        config = Config(ModelConfig(str(folder), "float32", "cpu"), **choice, **where)
        with pytest.raises(ConfigError, match=f"vllm and {says} do not go together"):
            Omni(str(folder), config=config).close()


def test_it_is_taken_for_what_runs_beside_the_writer(tmp_path: Path, python: str) -> None:
    model = ModelConfig(str(talk_and_draw.build(tmp_path / "talks")), "float32", "cpu")
    config = Config(model, quantize=QuantConfig({"": "int8"}), writer=WriterConfig("vllm", python))
    with closing(start(config)) as engine:
        packed = {name for name, part in engine.runner.pipeline.ctx.components.items() if holds_packed(part)}
    assert packed == {"transformer"}


def holds_packed(part: object) -> bool:
    return isinstance(part, nn.Module) and any(isinstance(each, QuantizedLinear) for each in part.modules())


# -- with vLLM itself --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Iterator[Omni]:
    with Omni(str(folder), device="cpu", dtype="float32", writer=WriterConfig("vllm", REAL)) as made:
        yield made


@real
def test_the_likeliest_tokens_are_those_that_this_engine_writes(theirs: Omni, folder: Path) -> None:
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    with closing(Omni(str(folder), device="cpu", dtype="float32")) as ours:
        for more in ({}, {"repetition_penalty": 1.3}, {"suppressed": (5, 6)}):
            expected = ours.generate(list(PROMPTS), {**how, **more}, progress=False)
            found = theirs.generate(list(PROMPTS), {**how, **more}, progress=False)
            assert [tokens(result) for result in found] == [tokens(result) for result in expected]
            assert [result.text for result in found] == [result.text for result in expected]


@real
def test_a_seed_gives_the_same_text_again_and_another_one_another(theirs: Omni) -> None:
    how: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "max_tokens": 24, "progress": False}
    first, second, other = (theirs.generate(PROMPTS[0], seed=seed, **how)[0] for seed in (3, 3, 4))
    assert tokens(first) == tokens(second) != tokens(other)


@real
def test_a_text_ends_where_the_checkpoint_says_that_texts_end(theirs: Omni, folder: Path) -> None:
    [end] = qwen3.GenerationConfig.from_pretrained(folder).eos_token_id
    how: dict[str, Any] = {"temperature": 2, "top_k": 0, "top_p": 1, "max_tokens": 1500}
    found = theirs.generate(list(PROMPTS), [{**how, "seed": seed} for seed in range(3)], progress=False)
    assert {result.written[0].reason for result in found} == {"stop"}
    assert all(tokens(result)[-1] == end and end not in tokens(result)[:-1] for result in found)


@real
def test_it_is_told_while_it_is_written_and_stops_when_it_is_cancelled(theirs: Omni) -> None:
    count = list[str]()

    def listen(event: Event) -> None:
        if isinstance(event, Chunk):
            count.append(str(event.data))

    stream = theirs.stream(
        [PROMPTS[0]], {"temperature": 0, "min_tokens": 1500, "max_tokens": 1500}, listen=listen, chunks=True
    )
    threading.Thread(target=lambda: next(stream, None), daemon=True).start()
    wait_until(lambda: len(count) > 5, 60)
    assert len(theirs.generate(PROMPTS[1], max_tokens=4, temperature=0, progress=False)[0].written[0].tokens) == 4
