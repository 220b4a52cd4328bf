"""Adapters, for every registered pipeline: in one tick each request wears its own, and off is as if never loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from omnimuse.core.config import CompileConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.worker.compiler import compiled
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.families import BLOCKS, NETWORKS
from tests.compiling import Counter, compile_with
from tests.invariants.conftest import Subject, drain, of, outputs, run, submit, tick, with_params

pytestmark = pytest.mark.crossed

Make = Callable[..., Engine]


@pytest.fixture(scope="session")
def adapters(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters for all linear layers of the network that draws."""
    home, layers = tmp_path_factory.mktemp("adapters"), layers_of(subject.folder)
    one = write(home / "one.safetensors", layers, seed=1)
    return one, write(home / "two.safetensors", layers, seed=2, rank=2)


def all_kinds(subject: Subject, adapters: tuple[Path, Path]) -> list[Ask]:
    """Asks with none, one, another, both, and one at scale 0."""
    one, two = map(str, adapters)
    plain = subject.ask(0)
    worn = ([f"{one}:0.8"], [two], [one, f"{two}:-0.5"], [f"{one}:0"])
    return [plain, *(with_params(plain, loras=loras) for loras in worn)]


@pytest.mark.shows("LoRA", "company")
def test_requests_with_different_adapters_in_one_tick_are_each_alone_bit_for_bit(
    subject: Subject, engine_with: Make, adapters: tuple[Path, Path]
) -> None:
    tier = "exact" if subject.family.sounds else "auto"
    engine = engine_with(schedule=ScheduleConfig(tier=tier, strict_slots=True, company="always"))
    asks = all_kinds(subject, adapters)
    alone = [run(engine, ask)[0] for ask in asks]
    for expected, found in zip(alone, run(engine, *asks), strict=True):
        assert torch.equal(found, expected)
    plain, one, two, both, off = alone
    assert torch.equal(off, plain)
    for a, b in ((plain, one), (plain, two), (one, two), (one, both), (two, both)):
        assert float((a - b).norm() / a.norm()) > 1e-3


@pytest.mark.shows("LoRA", "int8")
def test_adapters_are_worn_over_packed_weights(
    subject: Subject, shared: Engine, engine_with: Make, adapters: tuple[Path, Path]
) -> None:
    plain, one, *_ = all_kinds(subject, adapters)
    engine = engine_with(quantize=QuantConfig({"": "int8"}))
    bare, worn = run(engine, plain, one)
    [expected] = run(shared, one)
    apart = float((worn - expected).norm() / expected.norm())
    assert apart < 0.1
    assert apart < float((worn - bare).norm() / bare.norm()), "it must look like the adapter, not like none"


def test_after_adapters_were_worn_a_request_without_is_as_if_there_had_been_none(
    subject: Subject, engine_with: Make, adapters: tuple[Path, Path]
) -> None:
    engine = engine_with()
    plain, *worn = all_kinds(subject, adapters)
    components = engine.runner.pipeline.ctx.components
    networks = [part for name in components if isinstance(part := components.wherever(name), nn.Module)]
    [before] = run(engine, plain)
    weights = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in networks]
    run(engine, *worn)
    [after] = run(engine, plain)
    assert torch.equal(after, before)
    for part, kept in zip(networks, weights, strict=True):
        stored = part.state_dict().values()
        assert all(torch.equal(*pair) for pair in zip(stored, kept.values(), strict=True))


def test_an_adapter_whose_file_goes_is_worn_to_the_end_by_who_wears_it_and_by_nobody_else(
    subject: Subject, shared: Engine, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    stays, goes = adapters[0], Path(shutil.copy(adapters[0], tmp_path / "goes.safetensors"))
    plain = subject.ask(0)
    bare, expected = run(shared, plain, with_params(plain, loras=[str(stays)]))
    [worn] = submit(shared, with_params(plain, loras=[str(goes)]))
    events = tick(shared)
    goes.unlink()
    [late] = submit(shared, with_params(plain, loras=[str(goes)]))
    events += drain(shared)
    found = outputs(events, worn)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((found - bare).norm() / bare.norm()) > 1e-3
    with pytest.raises(RequestError, match="is no file or folder on this machine"):
        outputs(events, late)


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=pytest.mark.shows("LoRA", m)) for m in ("components", "layers")]
)
def test_adapters_are_worn_by_weights_that_wait_elsewhere(
    subject: Subject, shared: Engine, engine_with: Make, adapters: tuple[Path, Path], tmp_path: Path, mode: str
) -> None:
    engine = engine_with(offload=OffloadConfig(mode, tmp_path))  # type: ignore[arg-type]
    plain, one, *_ = all_kinds(subject, adapters)
    for expected, found in zip(run(shared, plain, one), run(engine, plain, one), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.shows("LoRA", "compile", "company")
@of(BLOCKS)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_compiled_blocks_wear_adapters_and_nothing_is_compiled_once_more_for_another_set_of_them(
    subject: Subject, shared: Engine, engine_with: Make, adapters: tuple[Path, Path]
) -> None:
    torch._dynamo.reset()
    counter = Counter()
    engine = engine_with(compile=CompileConfig("blocks"), schedule=ScheduleConfig(company="always"))
    compile_with(engine, counter)
    plain, one, two, both, _ = all_kinds(subject, adapters)
    run(engine, plain)
    bare = counter.graphs
    run(engine, one)
    graphs = counter.graphs
    assert 0 < bare < graphs, "with something on, it is another code"
    asks = (plain, one, two, both)
    for found, expected in zip(run(engine, *asks), run(shared, *asks), strict=True):
        # By the size of the whole: latents of sounds begin at 500, where float32 rounds to 3e-5.
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    run(engine, plain)
    assert counter.graphs == graphs


@of(NETWORKS)
@pytest.mark.costly
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
def test_code_that_the_compiler_made_wears_adapters_as_blocks_do_that_are_not_compiled(
    subject: Subject, shared: Engine, engine_with: Make, adapters: tuple[Path, Path]
) -> None:
    torch._dynamo.reset()
    engine = engine_with(compile=CompileConfig("blocks"))
    plain, _, _, both, _ = all_kinds(subject, adapters)  # each set is code of its own, which takes half a minute
    before = compiled()
    [bare], [found], [expected] = run(shared, plain), run(engine, both), run(shared, both)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert float((found - bare).norm() / bare.norm()) > 1e-3
    assert sum(vars(compiled()).values()) > sum(vars(before).values()), "what is worn is in the code"


def test_an_adapter_of_another_model_is_refused_with_the_names_that_were_expected(
    subject: Subject, shared: Engine, tmp_path: Path
) -> None:
    strange = write(tmp_path / "strange.safetensors", {"down_blocks.0.attentions.0.proj_in": (8, 8)})
    [request] = submit(shared, with_params(subject.ask(0), loras=[str(strange)]))
    [event] = [event for event in shared.tick() if event.request_id == request]
    with pytest.raises(RequestError, match=r"none of its 1 layers is in it.*such as .*trained for this model"):
        outputs([event], request)
