"""Noise: repeatable, equal to diffusers' draws, independent of dtype and company."""

from __future__ import annotations

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from omnimuse.diffusion.noise import draw, generator

SHAPE = (1, 4, 6, 10)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**64 - 1])
def test_a_seed_draws_what_diffusers_draws(seed: int) -> None:
    theirs = randn_tensor(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    assert torch.equal(draw(SHAPE, generator(seed)), theirs)


def test_n_outputs_draw_what_a_list_of_generators_draws() -> None:
    theirs = randn_tensor((3, 4, 6, 10), generator=[torch.Generator().manual_seed(7 + i) for i in range(3)])
    ours = [draw(SHAPE, generator(7, i)) for i in range(3)]
    assert torch.equal(torch.cat(ours), theirs)


def test_half_precision_noise_is_the_float32_noise_rounded() -> None:
    assert torch.equal(draw(SHAPE, generator(5), torch.bfloat16), draw(SHAPE, generator(5)).bfloat16())


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw(SHAPE, generator(5))
    assert torch.equal(torch.random.get_rng_state(), before)
