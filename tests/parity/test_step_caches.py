"""Step caches against those of diffusers and cache-dit: the same steps are skipped, and what comes out is the same.

A tiny network with random weights takes the same steps in both, FLUX.1 against diffusers and Qwen-Image, whose blocks
are one list, against cache-dit; the thresholds leave some steps out and not others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig
from torch import Tensor

from omnimuse.cache.stepcache import StepCache
from omnimuse.compat.diffusers.stepcache import settings
from omnimuse.components.two_streams import TwoStreamInputs
from omnimuse.core.caches import PRESETS, Fits, cache_named, completed
from omnimuse.layers.network import Network
from omnimuse.layers.stack import Memory
from omnimuse.loader.tensors import DtypePolicy
from omnimuse.loader.weights import randomise
from omnimuse.models.flux.spec import FITS
from omnimuse.models.flux.transformer import FluxInputs, FluxTransformer
from omnimuse.models.flux.weights import RULES
from omnimuse.models.qwen_image.transformer import QwenTransformer
from omnimuse.models.qwen_image.weights import RULES as QWEN_RULES
from tests.checkpoints import parts, qwen_image
from tests.distance import distance
from tests.parity import test_qwen_image_network as qwen
from tests.parity.test_flux_network import GUIDANCE, draw, make_reference, theirs

STEPS, MASK = 14, "11110010010101"
"""Four steps come before the first that is skipped: of two, our series tells a third, and cache-dit repeats one."""
TEXT, POOLED = 3 * draw(50, 9, 20), draw(90, 12)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def reference() -> Iterator[FluxTransformer2DModel]:
    with torch.inference_mode():
        yield make_reference(True)


def steps(channels: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Latents on a way that is slow in the middle, and times, of which random weights make much, that hardly change."""
    start, end = draw(1, channels, 8, 12), draw(2, channels, 8, 12)
    places = [0.5 + 4 * (step / STEPS - 0.5) ** 3 for step in range(STEPS)]
    return [(torch.lerp(start, end, place), torch.tensor(0.5 - 0.004 * place)) for place in places]


def with_theirs(reference: FluxTransformer2DModel, config: object) -> list[Tensor]:
    reference.enable_cache(config)
    try:
        with reference.cache_context("cond"):
            return [theirs(reference, latents, TEXT, POOLED, t) for latents, t in steps()]
    finally:
        reference.disable_cache()


def with_ours(reference: FluxTransformer2DModel, choice: str) -> tuple[list[Tensor], list[int]]:
    """Predictions, and which steps were skipped."""
    network = FluxTransformer.from_config(reference.config).eval().requires_grad_(False)
    network.load_state_dict(parts.translated(reference.state_dict(), RULES))
    network.stack.runner = StepCache(cache_named(choice), FITS)
    prepared = network.prepare((TEXT, POOLED), GUIDANCE, (8, 12))
    return walked(network, [FluxInputs(latents, t, prepared) for latents, t in steps()])


def walked(network: Network[Any], inputs: Sequence[object]) -> tuple[list[Tensor], list[int]]:
    """Predictions of one row at every step, and which steps were skipped."""
    memory, found, counts = Memory(steps=STEPS, of=STEPS), list[Tensor](), [0]
    for step, row in enumerate(inputs):
        memory.step = memory.at = step
        found += network([row], [memory])
        counts.append(memory.data["stepcache"].skipped)
    return found, [step for step, (before, after) in enumerate(pairwise(counts)) if after > before]


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2, 0.4])
def test_a_first_block_cache_skips_the_steps_that_diffusers_skips(
    reference: FluxTransformer2DModel, threshold: float
) -> None:
    expected = with_theirs(reference, FirstBlockCacheConfig(threshold))
    found, skipped = with_ours(reference, f"dbcache,first=1,warm_up=0,in_a_row=999,threshold={threshold}")
    assert 0 < len(skipped) < STEPS - 1
    assert max(map(distance, found, expected)) < 1e-5


@pytest.mark.parametrize(("threshold", "most"), [(0.06, 3), (0.15, 2), (0.4, 5)])
def test_a_magcache_with_published_ratios_skips_the_steps_that_diffusers_skips(
    reference: FluxTransformer2DModel, threshold: float, most: int
) -> None:
    config = MagCacheConfig(threshold, most, num_inference_steps=STEPS, mag_ratios=list(FITS.ratios))
    expected = with_theirs(reference, config)
    found, skipped = with_ours(reference, f"magcache,threshold={threshold},in_a_row={most}")
    assert 0 < len(skipped) < STEPS - 1
    assert max(map(distance, found, expected)) < 1e-5


@pytest.mark.costly(turns=3)
@pytest.mark.parametrize(
    ("choice", "least"),
    [
        ("dbcache,threshold=0.1", 1),
        ("dbcache,threshold=0.24", 1),
        ("taylorseer,threshold=0.24", 1),
        ("taylorseer,threshold=0.24,in_a_row=2", 1),
        ("dbcache,threshold=0.05,order=2", 1),
        ("dbcache,threshold=0.15,first=2", 1),
        ("taylorseer,threshold=0.15,first=2,last=1", 1),
        ("dbcache,threshold=9,last=1,most=2", 2),
        (f"dbcache,threshold=0.15,first=2,mask={MASK}", 1),
        (f"taylorseer,first=2,last=1,forced=true,mask={MASK}", MASK.count("0")),
    ],
)
def test_a_dual_block_cache_and_a_series_give_what_cache_dit_gives(choice: str, least: int) -> None:
    cache_dit = pytest.importorskip("cache_dit", reason="cache-dit is not installed: pip install 'omnimuse[cache-dit]'")
    model = qwen_image.transformer(layers=5).eval().requires_grad_(False)
    randomise(model, 0, "transformer", DtypePolicy(torch.float32), "cpu")
    text = 3 * draw(50, 9, qwen_image.TEXT_WIDTH)
    network = QwenTransformer.from_config(model.config).eval().requires_grad_(False)
    network.load_state_dict(parts.translated(model.state_dict(), QWEN_RULES))
    network.stack.runner = StepCache(made := completed(cache_named(choice), Fits(), STEPS), Fits())
    prepared = network.prepare(text, 8, 12)
    found, skipped = walked(network, [TwoStreamInputs(latents, t, prepared) for latents, t in steps(16)])
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=model, blocks=model.transformer_blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_1
        ),
        cache_config=cache_dit.DBCacheConfig(**settings(made), enable_separate_cfg=False, num_inference_steps=STEPS),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=made.order) if made.order else None,
    )
    expected = [qwen.theirs(model, latents, text, t) for latents, t in steps(16)]
    assert least <= len(skipped) < STEPS - 4
    assert max(map(distance, found, expected)) < 1e-5


def by_the_authors_rule(reference: FluxTransformer2DModel, threshold: float, in_a_row: int) -> list[int]:
    """The steps that TeaCache4FLUX skips: it compares what the first block's norm makes of the picture's tokens. That
    no more are skipped `in_a_row` is ours.
    """
    seen: list[Tensor] = []
    norm = reference.transformer_blocks[0].norm1
    hook = norm.register_forward_hook(lambda module, given, made: seen.append(made[0]))
    for latents, t in steps():
        theirs(reference, latents, TEXT, POOLED, t)
    hook.remove()
    skipped, total = [], 0.0
    for step in range(1, STEPS - 1):
        change = float((seen[step] - seen[step - 1]).abs().mean() / seen[step - 1].abs().mean())
        total += float(np.polyval(FITS.tea.coefficients, change))
        if total < threshold and skipped[-in_a_row:] != list(range(step - in_a_row, step)):
            skipped.append(step)
        else:
            total = 0.0
    return skipped


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_of_teacache_skips_the_steps_of_flux_that_its_authors_rule_skips(
    reference: FluxTransformer2DModel, preset: str
) -> None:
    times, in_a_row = PRESETS[preset]
    expected = by_the_authors_rule(reference, times * FITS.tea.threshold, in_a_row)
    _, skipped = with_ours(reference, preset)
    assert skipped == expected
    assert 0 < len(skipped) < STEPS - 1
