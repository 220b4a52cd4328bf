"""Every family's noise levels against those that its reference pipeline hands to its scheduler, bit for bit.

Levels that are spaced in float32 or in float64 differ in the last bit only, which no picture would show.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import pytest

from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.request import Ask
from omnimuse.pipeline.denoise import Denoise
from omnimuse.worker.find import find, pipeline_for
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family, Wish


class Enough(Exception):
    """The reference is about to take its first step."""


def theirs(family: Family, folder: Path, wish: Wish, kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[float, ...]:
    """The levels that the reference's scheduler, of class `kind`, has when it begins to draw that wish."""
    scheduler, seen = getattr(diffusers, kind), []
    own = scheduler.set_timesteps

    @wraps(own)
    def noting(self: Any, *arguments: Any, **named: Any) -> None:
        own(self, *arguments, **named)
        seen.append(tuple(self.sigmas.tolist()))

    def step(self: Any, *arguments: Any, **named: Any) -> None:
        raise Enough

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference's own
        patch.setattr(scheduler, "set_timesteps", noting)
        patch.setattr(scheduler, "step", step)
        with pytest.raises(Enough):
            family.reference(folder, [wish], "latent")
    return seen[-1]


@pytest.mark.crossed(turns=3)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_levels_are_the_references_bit_for_bit(
    family: Family, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = next((wish for wish in family.wishes if not wish.images), None)
    if wish is None:
        pytest.skip("its levels are those of the architecture without a picture")
    found = find(Config(ModelConfig(str(tiny(family.name)), dtype="float32", device="cpu")))
    configs = found.checkpoint.configs
    [loop] = [stage for stage in pipeline_for(found.spec).stages if isinstance(stage, Denoise)]
    solver, _ = loop.solver(configs)
    request = found.door.make_request(Ask(wish.asked, wish.params), 0.0, 1)
    tokens = loop.token_count(configs, request)
    steps = 11
    asked = replace(wish, params=replace(wish.params, num_inference_steps=steps))
    levels = theirs(family, tiny(family.name), asked, configs["scheduler"]["_class_name"], monkeypatch)
    assert solver.plan(steps, tokens).sigmas == levels
