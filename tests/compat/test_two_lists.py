"""A pipeline with two lists of blocks, written as the guide has it: both are cached, and come one block at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from omnimuse.compat.vllm_omni.diffusion.cache.cache_dit_backend import CacheDiTBackend
from omnimuse.core.config import CacheConfig, OffloadConfig
from omnimuse.core.errors import ConfigError
from tests.checkpoints.flux import FAMILIES, build
from tests.compat.checkpoints import renamed
from tests.compat.running import config, drawn, running

FAMILY = next(each for each in FAMILIES if each.kind == "dev")
WISHES = [wish for wish in FAMILY.wishes if wish.image is None]
NEVER = CacheConfig("dbcache", 0.0, first=1, last=0, warm_up=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("two-lists") / "tiny")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Tensor]:
    return FAMILY.reference(renamed(folder, "FluxPipeline"), WISHES, "pt")


@pytest.mark.parametrize("parts", [{"cache": NEVER}, {"offload": OffloadConfig("layers")}], ids=["cache", "offload"])
def test_both_lists_are_cached_and_come_one_block_at_a_time(
    folder: Path, expected: list[Tensor], parts: dict[str, object]
) -> None:
    with running(config(folder, "TwoListsStepPipeline", **parts)) as engine:
        torch.testing.assert_close(drawn(engine, WISHES), expected, atol=1e-5, rtol=0)
        assert not engine.runner.forwards.retries


def test_an_enabler_of_its_own_caches_a_pipeline_that_has_the_loop(folder: Path, expected: list[Tensor]) -> None:
    with running(config(folder, "TwoListsPipeline", cache=NEVER)) as engine:
        torch.testing.assert_close(drawn(engine, WISHES), expected, atol=1e-5, rtol=0)
    always = replace(NEVER, threshold=1e9)
    with running(config(folder, "TwoListsPipeline", cache=always)) as engine:
        first, _, again = drawn(engine, [WISHES[0], WISHES[0], WISHES[0]])
        assert engine.runner.pipeline.ctx.components["pipeline"].cached.is_enabled()
    assert torch.equal(first, again)
    assert (first - expected[0]).abs().max() > 1e-4
    with pytest.raises(ConfigError, match=r"(?s)cache-dit cannot cache SimpleNamespace: .*CUSTOM_DIT_ENABLERS"):
        CacheDiTBackend({}).enable(SimpleNamespace(transformer=nn.Linear(2, 2)))
