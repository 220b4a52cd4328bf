"""Blocks that a network of the contract declares are run as those of our own networks are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omnimuse.cache.stepcache import StepCache
from omnimuse.compat.contract.blocks import Calls, ContractStack, stacked
from omnimuse.compat.contract.entries import Entry
from omnimuse.compat.contract.packed import pack
from omnimuse.compat.contract.passes import Passed, compile_blocks
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.vllm_omni.diffusion.cache.cachedit import CacheDiTAdapterConfig
from omnimuse.core.config import CacheConfig, CompileConfig, OffloadConfig, ParallelConfig, QuantConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.output import Done
from omnimuse.core.request import Ask
from omnimuse.layers.stack import Memory
from omnimuse.lora.linear import Rack
from omnimuse.parallel.mesh import Mesh
from omnimuse.quant.linear import quantized_layers
from omnimuse.worker.build import build as build_engine
from omnimuse.worker.explain import explain
from omnimuse.worker.find import find
from omnimuse.worker.pack import pack_checkpoint
from tests.checkpoints.packed import FILES
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.compat.checkpoints import renamed
from tests.compat.running import config, drawn, refusal, running

WISHES = next(each for each in FAMILIES if each.kind == "3").wishes[:2]
STEPPED = "DocumentedStepPipeline"
FOUR = {"num_inference_steps": 4}
ALWAYS = CacheConfig("dbcache", 1e9, first=1, last=0, warm_up=1)
"""Once it may, it skips every other step at least."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("blocks") / "tiny", kind="3")


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[Tensor]:
    with running(config(folder, STEPPED)) as engine:
        return [drawn(engine, [wish], **FOUR)[0] for wish in WISHES]


@pytest.mark.parametrize("arch", ["DocumentedPipeline", STEPPED])
def test_blocks_are_named_and_timed_for_who_asks_and_draw_the_same(
    folder: Path, plain: list[Tensor], arch: str
) -> None:
    params = replace(WISHES[0].params, output_type="pt", **FOUR)  # type: ignore[arg-type]
    with running(config(folder, arch)) as engine:
        engine.submit(engine.make_request(Ask(WISHES[0].asked, params, blocks=True)))
        [done] = [event for _ in range(99) if not engine.idle for event in engine.tick() if isinstance(event, Done)]
        count = len(engine.runner.pipeline.ctx.components["pipeline"].pipe.transformer.transformer_blocks)
    told = {name: runs for name, runs in done.result.blocks.items() if ".transformer_blocks." in name}
    assert [name.rpartition(".")[2] for name in told] == [str(number) for number in range(count)]
    [runs] = {len(each) for each in told.values()}
    assert runs in (4, 8), "a step, or each of its branches"
    assert all(second > 0 for each in told.values() for second in each)
    torch.testing.assert_close(done.result.tensors["image"][0], plain[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["DocumentedPipeline", STEPPED])
def test_blocks_that_come_one_at_a_time_draw_the_same(folder: Path, plain: list[Tensor], arch: str) -> None:
    chosen = config(folder, arch, offload=OffloadConfig("layers"))
    with running(chosen) as engine:
        found = drawn(engine, WISHES[:1], **FOUR)[0]
        blocks = engine.runner.pipeline.ctx.components["pipeline"].pipe.transformer.transformer_blocks
        assert {tensor.device.type for tensor in blocks.parameters()} == {"meta"}
    if arch == STEPPED:
        assert torch.equal(found, plain[0])
    else:
        torch.testing.assert_close(found, plain[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["DocumentedPipeline", STEPPED])
def test_parts_that_take_turns_are_there_one_at_a_time_and_draw_the_same(
    folder: Path, plain: list[Tensor], arch: str
) -> None:
    with running(config(folder, arch, offload=OffloadConfig("components"))) as engine:
        pipe = engine.runner.pipeline.ctx.components["pipeline"].pipe
        there: list[set[str]] = []
        for part in pipe.children():
            part.register_forward_hook(lambda *args: there.append(_inside(pipe)))
        assert _inside(pipe) == set()
        found = [drawn(engine, [wish], **FOUR)[0] for wish in WISHES]
        assert _inside(pipe) == {"vae"}
    assert {frozenset(each) for each in there} == {
        frozenset({name}) for name in ("text_encoder", "text_encoder_2", "transformer")
    }
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


def _inside(pipe: nn.Module) -> set[str]:
    """Which parts have their weights."""
    return {name for name, part in pipe.named_children() if any(not each.is_meta for each in part.parameters())}


def test_a_cache_that_never_skips_draws_the_same_alone_and_in_company(folder: Path, plain: list[Tensor]) -> None:
    with running(config(folder, STEPPED, cache=replace(ALWAYS, threshold=0.0))) as engine:
        for found in (drawn(engine, WISHES, **FOUR), [drawn(engine, [wish], **FOUR)[0] for wish in WISHES]):
            torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
        assert not engine.runner.forwards.retries


def test_a_cache_that_skips_draws_the_same_first_and_later_and_in_any_company(
    folder: Path, plain: list[Tensor]
) -> None:
    with running(config(folder, STEPPED, cache=ALWAYS)) as engine:
        assert "one step cache goes around the blocks" in refusal(engine, WISHES[0], cache="none")
        first, second, together = (drawn(engine, WISHES[:count], **FOUR) for count in (1, 1, 2))
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(together[0], first[0], atol=1e-5, rtol=0)
        assert (first[0] - plain[0]).abs().max() > 1e-4


@pytest.mark.parametrize("arch", ["DocumentedPipeline", STEPPED])
@pytest.mark.parametrize("kind", ["auto", "magcache"])
def test_a_cache_that_goes_by_what_is_measured_of_a_model_is_refused_with_those_that_are_there(
    folder: Path, arch: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"cache='{kind}' is not there for this model; use one of dbcache"):
        build_engine(config(folder, arch, cache=CacheConfig(kind)))


def test_what_cannot_be_given_is_refused_with_the_reason(folder: Path) -> None:
    refused = [
        (
            "DocumentedPipeline",
            {"cache": ALWAYS, "parallel": ParallelConfig(tensor=2)},
            "decide on every rank by itself",
        ),
        ("DocumentedPipeline", {"cache": replace(ALWAYS, order=1)}, "enable_taylorseer cannot be chosen"),
        ("DocumentedPipeline", {"cache": replace(ALWAYS, mask="fast")}, "cache mask=fast cannot be chosen"),
        (STEPPED, {"cache": ALWAYS, "parallel": ParallelConfig(ulysses=2)}, "by its own tokens"),
        (
            STEPPED,
            {"offload": OffloadConfig("components"), "parallel": ParallelConfig(ulysses=2, shard=2)},
            "there whole",
        ),
        ("DocumentedPipeline", {"parallel": ParallelConfig(pipe=2)}, "not ours to share"),
        ("DocumentedPipeline", {"compile": CompileConfig("blocks"), "parallel": ParallelConfig(tensor=2)}, "not been"),
    ]
    for arch, parts, why in refused:
        with pytest.raises(ConfigError, match=why):
            find(config(folder, arch, **parts))


def test_weights_in_fewer_bits_draw_what_the_weights_that_they_stand_for_draw(
    folder: Path, plain: list[Tensor]
) -> None:
    with running(config(folder, STEPPED, quantize=QuantConfig({"": "int8"}, skip=("*.ff.*",)))) as engine:
        [found] = drawn(engine, WISHES[:1], **FOUR)
        network = engine.runner.pipeline.ctx.components["pipeline"].pipe.transformer
        packed = {path: layer.scheme.unpack(layer.packed) for path, layer in quantized_layers(network).items()}
    assert len(packed) > 9
    assert not any(".ff." in path for path in packed)
    assert (found - plain[0]).abs().max() > 1e-4
    with running(config(folder, STEPPED)) as engine:
        pipe = engine.runner.pipeline.ctx.components["pipeline"].pipe
        for path, weights in packed.items():
            pipe.transformer.get_submodule(path.removesuffix(".packed")).weight.copy_(weights)
        torch.testing.assert_close(drawn(engine, WISHES[:1], **FOUR)[0], found, atol=1e-5, rtol=0)


CPU = torch.device("cpu")


class Twins(nn.Module):
    """Blocks of which two share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.blocks[2].weight = self.blocks[0].weight


def test_a_weight_that_layers_share_stays_one(folder: Path) -> None:
    network = Twins()
    pack({"transformer": network}, config(folder, STEPPED, quantize=QuantConfig({"": "int8"})), CPU)
    assert list(quantized_layers(network)) == ["blocks.1"]
    first, _, last = network.blocks
    assert first.weight is last.weight


@pytest.mark.parametrize(("native", "kind"), [(False, torch.float32), (True, torch.bfloat16)])
def test_packed_weights_are_multiplied_in_float32_where_bfloat16_has_no_units(
    native: bool, kind: torch.dtype, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnimuse.loader.to_pack.native_bfloat16", lambda device: (native, ""))
    network = Twins().to(torch.bfloat16)
    [told] = pack({"transformer": network}, config(folder, STEPPED, quantize=QuantConfig({"": "int8"})), CPU)
    [layer] = quantized_layers(network).values()
    assert layer.arithmetic == kind and told.reason.endswith(f"multiplied in {str(kind).removeprefix('torch.')}")
    assert layer(torch.ones(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    """The same, whose transformer's files are packed."""
    FILES["fp8 files"](renamed(folder, STEPPED), made := folder.with_name("packed"))
    return made


@pytest.mark.parametrize(
    ("trouble", "told", "why"),
    [
        (torch.OutOfMemoryError("the GPU is full"), torch.OutOfMemoryError, "the GPU is full"),
        (ValueError("odd"), ModelError, r"cannot be made \(odd\); the weights of transformer are packed: if a library"),
    ],
)
def test_a_pipeline_that_cannot_be_made_says_why_and_what_is_packed_but_where_memory_lacks(
    packed: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, told: type[Exception], why: str
) -> None:
    class Failing:
        def __init__(self, **given: object) -> None:
            raise trouble

    monkeypatch.setattr(Entry, "imported", lambda entry, name: Failing)
    with pytest.raises(told, match=why), running(config(packed, STEPPED)):
        pass


@pytest.mark.parametrize(("kind", "read"), [("SD3Transformer2DModel", False), ("AutoencoderKL", True)])
def test_packed_files_of_a_component_that_a_pipeline_does_not_read_are_no_matter(
    packed: Path, tmp_path: Path, kind: str, read: bool
) -> None:
    """Its own `weights_sources` read the transformer; what it has of another class a library may have read."""
    shutil.copytree(packed, folder := tmp_path / "more")
    shutil.copytree(folder / "transformer", folder / "spare")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "spare": ["diffusers", kind]}))
    refused = pytest.raises(ModelError, match="the weights of spare are packed") if read else nullcontext()
    with refused, running(config(folder, STEPPED)):
        pass


@pytest.mark.parametrize("arch", ["DocumentedPipeline", STEPPED])
def test_its_folder_is_not_packed_once_and_it_is_said_what_to_do(folder: Path, arch: str, tmp_path: Path) -> None:
    asked = config(folder, arch, quantize=QuantConfig({"": "int8"}))
    with pytest.raises(ConfigError, match=rf"{arch}.* packed at every start: leave .* start it with --quantize"):
        pack_checkpoint(asked, tmp_path / "small")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ["DocumentedPipeline", STEPPED])
def test_it_is_said_that_choices_for_its_networks_are_looked_at_when_they_are_made(folder: Path, arch: str) -> None:
    told = explain(config(folder, arch, quantize=QuantConfig({"nowhere": "int8"})))
    [later] = [choice for choice in told if (choice.topic, choice.name) == ("model", "networks")]
    assert "looked at then" in later.reason


def test_what_cannot_be_packed_is_refused_with_what_can(folder: Path) -> None:
    for chosen, why in (
        (QuantConfig({"": "int8"}, skip=("nowhere",)), "skip=nowhere fits no layer"),
        (QuantConfig({"": "int8"}, skip=("*",)), r"skip=\* leaves nothing of transformer to be quantized; leave out"),
        (
            QuantConfig({"text": "int8"}),
            "text=int8 cannot be: packed are linear layers in lists of blocks, which",
        ),
    ):
        with pytest.raises(ConfigError, match=why):
            build_engine(config(folder, "DocumentedPipeline", quantize=chosen))


def test_a_pipeline_without_blocks_is_refused_what_needs_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="says what its blocks are; give it _layerwise"):
        build_engine(config(build(tmp_path / "bare", kind="3"), "BarePipeline", offload=OffloadConfig("layers")))


class Doubler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, hidden: Tensor, text: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return text + 1, hidden + scale * self.layer(hidden)


class Looping(nn.Module):
    """A network whose loop may do something `between` its blocks."""

    _repeated_blocks = ["Doubler"]  # noqa: RUF012

    def __init__(self, between: Callable[[int, Tensor], Tensor] = lambda number, hidden: hidden) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Doubler(4) for _ in range(3))
        self.between = between

    def forward(self, hidden: Tensor, text: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            text, hidden = block(self.between(number, hidden), text=text, scale=0.5)
        return torch.cat([text, hidden], 1)


def cached(network: nn.Module) -> ContractStack:
    [stack] = stacked(network).values()
    stack.runner, stack.whole = StepCache(replace(ALWAYS, threshold=0.0)), True
    return stack


def called(network: nn.Module, memory: Memory | None = None) -> Tensor:
    x = torch.arange(24.0).reshape(1, 6, 4) / 24
    here = Surroundings(torch.device("cpu"), torch.float32, Mesh.single(), None)
    here.calls = None if memory is None else Calls(memory)
    with within(here), torch.no_grad():
        found: Tensor = network(x, x[:, :2])
    return found


def test_a_stack_runs_as_one_what_its_network_runs_block_by_block() -> None:
    network = Looping()
    expected = called(network)
    cached(network)
    memory = Memory(steps=2)
    assert torch.equal(called(network, memory), expected)
    assert torch.equal(called(network, memory), expected)
    assert len(memory.data) == 1
    memory.to(torch.device("cpu"))
    assert all(value is not None for value in memory.data.values())


def test_a_network_that_does_something_between_its_blocks_is_refused_a_cache() -> None:
    network = Looping(lambda number, hidden: hidden + 1 if number == 2 else hidden)
    cached(network)
    with pytest.raises(ModelError, match="before its block 2 it changes what the block before gave"):
        called(network)


def test_a_network_that_later_does_something_else_is_noticed() -> None:
    doing = [False]
    network = Looping(lambda number, hidden: hidden + 1 if number == 1 and doing[0] else hidden)
    cached(network)
    called(network)
    doing[0] = True
    with pytest.raises(ModelError, match="before its block 1 it changes hidden"):
        called(network)


def test_a_network_may_declare_its_blocks_to_a_cache() -> None:
    class Declaring(Looping):
        _repeated_blocks = []  # noqa: RUF012
        _cache_dit_adapter_config = CacheDiTAdapterConfig({"blocks": None})

    assert list(stacked(Declaring())) == ["blocks"]
    with pytest.raises(ModelError, match=r"cached_adapter_cls=.* is not taken"):
        CacheDiTAdapterConfig({}, cached_adapter_cls=object)


def test_every_block_is_compiled_and_computes_the_same() -> None:
    network, seen = Looping(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    expected = called(network)
    passed = Passed()
    compile_blocks(stacked(network), passed, Rack(), backend)
    torch.testing.assert_close(called(network), expected)
    assert seen
    assert [choice.topic for choice in passed.choices] == ["compile"]
