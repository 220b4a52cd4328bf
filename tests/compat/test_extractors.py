"""TeaCache of pipelines of the contract, by the extractors that their files register."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omnimuse.compat.contract.extracted import extract
from omnimuse.compat.contract.surroundings import within
from omnimuse.compat.vllm_omni.diffusion.cache.teacache import CacheContext, TeaCacheConfig, register_extractor
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.extractors import EXTRACTOR_REGISTRY, get_extractor
from omnimuse.compat.vllm_omni.entrypoints.options import config_of
from omnimuse.core.config import CacheConfig, Config, ContractConfig, ModelConfig, OffloadConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.engine.engine import Engine
from omnimuse.engine.measure import measure
from omnimuse.worker.build import build as build_engine
from omnimuse.worker.find import find
from tests.checkpoints import flux
from tests.checkpoints.stable_diffusion_3 import FAMILIES, build
from tests.checkpoints.wishes import Wish
from tests.compat.pipelines.medium import MediumTransformer2DModel
from tests.compat.running import config, drawn, on_two_ranks, refusal, running

WISHES = [
    replace(wish, params=replace(wish.params, height=64)) for wish in next(f for f in FAMILIES if f.kind == "3").wishes
][:2]
SIX = {"num_inference_steps": 6}
TEA = CacheConfig("teacache", 0.7)
MODES = ("DocumentedPipeline", "DocumentedStepPipeline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("extractors") / "tiny", kind="3")


def live(engine: Engine) -> Any:
    return engine.runner.pipeline.ctx.components["pipeline"]


@contextmanager
def counted(block: nn.Module) -> Iterator[list[int]]:
    """One number for every call of it."""
    calls: list[int] = []
    hook = block.register_forward_hook(lambda *args: calls.append(1))
    yield calls
    hook.remove()


@torch.no_grad()
def by_hand(pipe: Any, wish: Wish, threshold: float) -> tuple[Tensor, int]:
    """The pipeline's loop written out, with TeaCache in it, for one wish; and how often its blocks ran."""
    network, params = pipe.transformer, wish.params
    latents = pipe.prepare_latents(params.height, params.width, 1, torch.Generator().manual_seed(params.seed))
    texts = [pipe.encode_prompt([text or ""], params.max_sequence_length) for text in (wish.prompt, wish.negative)]
    pipe.scheduler.set_timesteps(6)
    before: list[Any] = [None, None]
    added: list[Any] = [None, None]
    drift, ran = [0.0, 0.0], 0
    for step, t in enumerate(pipe.scheduler.timesteps):
        made = []
        for branch, (embeds, pooled) in enumerate(texts):
            hidden, text = network.pos_embed(latents), network.context_embedder(embeds)
            temb = network.time_text_embed(t.expand(1), pooled)
            watched = network.transformer_blocks[0].norm1(hidden, emb=temb)[0]
            if step > 0:
                change = float((watched - before[branch]).abs().mean() / before[branch].abs().mean())
                drift[branch] += 2 * change**2 + change
            if 0 < step < 5 and drift[branch] < threshold:
                last = hidden + added[branch]
            else:
                last, ran = hidden, ran + 1
                for block in network.transformer_blocks:
                    text, last = block(last, text, temb)
                added[branch], drift[branch] = last - hidden, 0.0
            before[branch] = watched
            height, width = (side // network.patch_size for side in latents.shape[-2:])
            made.append(network.unpatched(last, temb, height, width))
        positive, negative = made
        guided = negative + params.guidance_scale * (positive - negative)
        latents = pipe.scheduler.step(guided, t, latents, return_dict=False)[0]
    return (pipe.decode(latents)[0] / 2 + 0.5).clamp(0, 1), ran


@pytest.mark.parametrize("arch", MODES)
def test_teacache_skips_by_an_extractor_what_a_loop_written_by_hand_skips(folder: Path, arch: str) -> None:
    with running(config(folder, arch, cache=replace(TEA, threshold=0.0))) as engine:
        [never] = drawn(engine, WISHES[:1], **SIX)
        del live(engine).pipe.transformer.forward  # its class has its own, which nothing takes apart
        [plain] = drawn(engine, WISHES[:1], **SIX)
        assert torch.equal(never, plain)
    with running(config(folder, arch, cache=TEA)) as engine:
        pipe = live(engine).pipe
        with within(live(engine).surroundings):
            hands = [by_hand(pipe, wish, 0.7) for wish in WISHES]
        with counted(pipe.transformer.transformer_blocks[0]) as calls:
            alone = [drawn(engine, [wish], **SIX)[0] for wish in WISHES]
            once = len(calls)
            company = drawn(engine, WISHES, **SIX)
        assert not engine.runner.forwards.retries
    assert once == sum(ran for _, ran in hands) < 2 * 12
    assert len(calls) == 2 * once
    for found in (alone, company):
        torch.testing.assert_close(found, [picture for picture, _ in hands], atol=1e-5, rtol=0)
    assert (alone[0] - plain).abs().max() > 1e-4


@pytest.mark.parametrize("arch", MODES)
def test_a_word_for_masks_is_drawn_for_the_steps_of_each_request_and_a_single_step_is_taken(
    folder: Path, arch: str
) -> None:
    with running(config(folder, arch, cache=replace(TEA, mask="fast", forced=True))) as engine:
        for steps, computed in ((1, 1), (4, 3), (6, 4)):
            with counted(live(engine).pipe.transformer.transformer_blocks[0]) as calls:
                drawn(engine, WISHES[:1], num_inference_steps=steps)
            assert len(calls) == 2 * computed
        assert "drawn for 4 steps at least" in refusal(engine, WISHES[0], num_inference_steps=3)


@pytest.mark.parametrize("arch", MODES)
@pytest.mark.parametrize("mask", ["fast", "110101"])
def test_what_a_request_takes_is_measured_though_a_mask_is_for_more_steps(folder: Path, arch: str, mask: str) -> None:
    found = measure(config(folder, arch, cache=replace(TEA, mask=mask)), "64x64")
    assert found[0].value == "64x64" and found[-1].value != "unknown"


def test_coefficients_are_the_networks_own_or_chosen() -> None:
    given = {"rel_l1_thresh": 0.3, "coefficients": [0, 0.5]}
    chosen = config_of("m", {"cache_backend": "tea_cache", "cache_config": given})
    assert (chosen.cache, chosen.contract.coefficients) == (CacheConfig("teacache", 0.3), (0.0, 0.5))
    with pytest.raises(ConfigError, match="coefficients='x' is not a list of numbers"):
        config_of("m", {"cache_backend": "tea_cache", "cache_config": {"coefficients": "x"}})
    with pytest.raises(ConfigError, match=r"coefficients cannot be: .* `omnimuse calibrate MODEL` fits them"):
        find(Config(ModelConfig("omnimuse/shapes"), cache=chosen.cache, contract=chosen.contract))
    assert TeaCacheConfig(transformer_type=MediumTransformer2DModel.__name__).fits.tea.coefficients == (2.0, 1.0, 0.0)
    with pytest.raises(ConfigError, match="no coefficients for Unheard; add them to _MODEL_COEFFICIENTS"):
        TeaCacheConfig(transformer_type="Unheard")


def test_with_other_coefficients_other_steps_are_skipped(folder: Path) -> None:
    parts = {"cache": TEA, "contract": ContractConfig(coefficients=(0.0,))}
    with running(config(folder, MODES[0], **parts)) as engine:
        with counted(live(engine).pipe.transformer.transformer_blocks[0]) as calls:
            drawn(engine, WISHES[:1], **SIX)
        assert live(engine).pipe.od_config.cache_backend == "tea_cache"
    assert len(calls) == 2 * 2  # the first step and the last one


def test_a_network_without_an_extractor_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no extractor for BareTransformer \(known: .*Medium.*register_extractor"):
        build_engine(config(folder, "BarePipeline", cache=TEA))


@pytest.mark.parametrize("arch", MODES)
@pytest.mark.parametrize("offload", ["layers", "components"])
def test_beside_offload_it_skips_the_same(folder: Path, arch: str, offload: Any) -> None:
    with running(config(folder, arch, cache=TEA)) as engine:
        expected = drawn(engine, WISHES[:1], **SIX)
    with running(config(folder, arch, cache=TEA, offload=OffloadConfig(offload))) as engine:
        found = drawn(engine, WISHES[:1], **SIX)
        assert {each.is_meta for each in live(engine).pipe.transformer.transformer_blocks.parameters()} == {True}
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.costly(turns=3)
@pytest.mark.dist
@pytest.mark.timeout(240)
@pytest.mark.parametrize("axis", ["tensor", "cfg", "ulysses"])
def test_ranks_that_share_the_work_skip_the_same(tmp_path: Path, axis: str) -> None:
    if axis == "ulysses":
        place, arch = flux.build(tmp_path / "tiny"), "TwoListsPipeline"
        wish = next(each for each in flux.FAMILIES[0].wishes if each.params.true_cfg_scale == 3.0)
    else:
        place, arch, wish = build(tmp_path / "tiny", kind="3"), MODES[0], WISHES[0]
    wish = replace(wish, params=replace(wish.params, **SIX))
    with running(config(place, arch)) as engine:
        [plain] = drawn(engine, [wish])
    with running(config(place, arch, cache=TEA)) as engine:
        expected = drawn(engine, [wish])
    parallel = ParallelConfig(**{axis: 2})
    found, _ = on_two_ranks(config(place, arch, cache=TEA, parallel=parallel), [wish], tmp_path / "meeting")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found[0] - plain).abs().max() > 1e-4


class Timeless(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = Timeless()


def test_an_extractor_that_cannot_serve_is_refused_with_the_reason() -> None:
    chosen = Config(ModelConfig("m"), cache=TEA, contract=ContractConfig(coefficients=(1.0, 0.0)))
    x = torch.ones(1, 2, 3)
    register_extractor("Timeless", lambda network, hidden: hidden)
    try:
        assert get_extractor("Timeless")(None, x) is x
        pipe = Around()
        with pytest.raises(ConfigError, match="cannot tell the steps of Timeless apart"):
            extract(pipe, chosen, own_loop=True)
        assert [choice.name for choice in extract(pipe, chosen, own_loop=False)] == ["transformer"]
        with pytest.raises(ModelError, match="extractor for Timeless gave a Tensor; give a CacheContext"):
            pipe.transformer(x)
    finally:
        del EXTRACTOR_REGISTRY["Timeless"]
    whole = CacheContext(x, x, None, x, lambda: (x + 1,), lambda hidden: hidden)
    whole.validate()
    with pytest.raises(TypeError, match="modulated_input is a NoneType; give a tensor"):
        replace(whole, modulated_input=None).validate()  # type: ignore[arg-type]
