"""Step caches against those of diffusers: the same steps are skipped, and what comes out instead is the same.

One tiny FLUX.1 with random weights takes the same steps in both; the thresholds leave some steps out and not others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig
from torch import Tensor

from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import PRESETS, cache_named
from omnimuse.layers.stack import Memory
from omnimuse.models.flux.spec import FITS
from omnimuse.models.flux.transformer import FluxInputs, FluxTransformer
from omnimuse.models.flux.weights import RULES
from tests.checkpoints import parts
from tests.parity.test_flux_network import GUIDANCE, distance, draw, make_reference, theirs

STEPS = 14
TEXT, POOLED = 3 * draw(50, 9, 20), draw(90, 12)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def reference() -> Iterator[FluxTransformer2DModel]:
    with torch.inference_mode():
        yield make_reference(True)


def steps() -> list[tuple[Tensor, Tensor]]:
    """Latents on a way that is slow in the middle, and times, of which random weights make much, that hardly change."""
    start, end = draw(1, 4, 8, 12), draw(2, 4, 8, 12)
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
    memory, found, counts = Memory(steps=STEPS, of=STEPS), list[Tensor](), [0]
    for memory.step, (latents, t) in enumerate(steps()):
        row = FluxInputs(latents, t, network.prepare((TEXT, POOLED), GUIDANCE, latents.shape[1:]))
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
