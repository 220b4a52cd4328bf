"""Six pipelines written the documented way: whole and in steps, alone and in company, on one rank and on two.

Every cell is a test: against diffusers with the same weights, noise and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor

from omnimuse import ParallelConfig
from tests.checkpoints import flux, stable_audio, stable_diffusion_3, wan
from tests.checkpoints.wishes import Family, Reference, Wish, of_picture, photo, reference_of
from tests.compat.checkpoints import customised
from tests.compat.running import config, drawn, on_two_ranks, running

pytestmark = pytest.mark.filterwarnings("ignore:Should have .*t[01]:UserWarning")
MODES = ("whole", "steps")


@dataclass(frozen=True)
class Case:
    """A pipeline by its names in both modes, a checkpoint, wishes and who knows what they come to; `two` is how two
    ranks share it. Of its `own` kind is a checkpoint with other names at its root.
    """

    whole: str
    steps: str
    build: Callable[[Path], Path]
    wishes: tuple[Wish, ...]
    reference: Reference
    two: ParallelConfig
    own: bool = False
    bound: float = 1e-5


def of(family: Family, name: str, two: ParallelConfig, own: bool = False) -> Case:
    """A case with all wishes of a family."""
    steps = name.replace("Pipeline", "StepPipeline")
    return Case(name, steps, family.build, family.wishes, family.reference, two, own, family.tolerance)


[MEDIUM] = (each for each in stable_diffusion_3.FAMILIES if each.kind == "3")
[DEV] = (each for each in flux.FAMILIES if each.kind == "dev")
[EXPERTS] = (each for each in wan.FAMILIES if each.kind == "A14B")
DRAWN = tuple(wish for wish in DEV.wishes if wish.image is None)
[SOUND] = stable_audio.FAMILIES
HEARD = tuple(
    replace(wish, params=replace(wish.params, extra=None, max_sequence_length=None))
    for wish in SOUND.wishes
    if wish.sound is None
)
CHANGED = (
    Wish("a star", "grey", replace(of_picture(5, 3.0, 32, 48, 3), strength=0.6, max_sequence_length=16), photo(50, 70)),
    Wish(
        "a heart", "grey", replace(of_picture(5, 3.0, 32, 48, 4), strength=0.9, max_sequence_length=16), photo(64, 40)
    ),
)
CHANGING = reference_of(
    StableDiffusion3Pipeline, StableDiffusion3Img2ImgPipeline, absent=("text_encoder_3", "tokenizer_3")
)

CASES = {
    "guidance": of(MEDIUM, "DocumentedPipeline", ParallelConfig(tensor=2)),
    "two-lists": of(replace(DEV, wishes=DRAWN), "TwoListsPipeline", ParallelConfig(ulysses=2)),
    "experts": of(EXPERTS, "ExpertsVideoPipeline", ParallelConfig(ulysses=2)),
    "edit": of(replace(MEDIUM, wishes=CHANGED, reference=CHANGING), "DocumentedEditPipeline", ParallelConfig(cfg=2)),
    "own-names": of(MEDIUM, "DocumentedCustomPipeline", ParallelConfig(tensor=2), own=True),
    "sound": of(replace(SOUND, wishes=HEARD), "SoundAudioPipeline", ParallelConfig(cfg=2)),
}


@dataclass(frozen=True)
class Drawn:
    """A case, its checkpoint, and what its wishes come to."""

    case: Case
    folder: Path
    expected: list[Tensor]


@pytest.fixture(scope="module", params=CASES)
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    case = CASES[request.param]
    folder = case.build(tmp_path_factory.mktemp("documented") / "tiny")
    expected = case.reference(folder, case.wishes, "pt")
    return Drawn(case, customised(folder, folder.with_name("own"), case.whole) if case.own else folder, expected)


@pytest.mark.crossed
@pytest.mark.parametrize("mode", MODES)
def test_alone_and_in_company_it_draws_what_diffusers_draws(known: Drawn, mode: str) -> None:
    wishes = known.case.wishes
    with running(config(known.folder, getattr(known.case, mode))) as engine:
        alone, company = [drawn(engine, [wish])[0] for wish in wishes], drawn(engine, wishes)
        assert not engine.runner.forwards.retries
    torch.testing.assert_close(alone, known.expected, atol=known.case.bound, rtol=0)
    torch.testing.assert_close(company, known.expected, atol=known.case.bound, rtol=0)


@pytest.mark.dist
@pytest.mark.crossed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_draw_the_same_alone_and_in_company(known: Drawn, mode: str, tmp_path: Path) -> None:
    chosen = config(known.folder, getattr(known.case, mode), parallel=known.case.two)
    alone, company = on_two_ranks(chosen, known.case.wishes, tmp_path / "meeting")
    torch.testing.assert_close(alone, known.expected, atol=known.case.bound, rtol=0)
    torch.testing.assert_close(company, known.expected, atol=known.case.bound, rtol=0)
