"""Pipelines of two experts, and of sound, written as the guide has it: whole and in steps, alone and in company."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoints import stable_audio, wan
from tests.checkpoints.wishes import Family, Wish
from tests.compat.checkpoints import renamed
from tests.compat.running import config, drawn, running

EXPERTS = next(each for each in wan.FAMILIES if each.kind == "A14B")
[SOUND] = stable_audio.FAMILIES
HEARD = [
    replace(wish, params=replace(wish.params, extra=None, max_sequence_length=None))
    for wish in SOUND.wishes
    if wish.sound is None
]


def checked(folder: Path, family: Family, wishes: Sequence[Wish], archs: Sequence[str]) -> None:
    """Each of `archs` draws of the checkpoint what the reference draws, alone and in company."""
    family.build(folder)
    expected = family.reference(folder, wishes, "pt")
    for arch in archs:
        with running(config(folder, arch)) as engine:
            for found in ([drawn(engine, [wish])[0] for wish in wishes], drawn(engine, wishes)):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=arch)
            assert not engine.runner.forwards.retries
    renamed(folder, family.arch)


def test_two_experts_draw_what_diffusers_draw(tmp_path: Path) -> None:
    checked(tmp_path / "tiny", EXPERTS, EXPERTS.wishes, ["ExpertsVideoPipeline", "ExpertsVideoStepPipeline"])


@pytest.mark.filterwarnings("ignore:Should have .*t[01]:UserWarning")
def test_a_sound_is_what_diffusers_make(tmp_path: Path) -> None:
    checked(tmp_path / "tiny", SOUND, HEARD, ["SoundAudioPipeline", "SoundAudioStepPipeline"])


@pytest.mark.costly
@pytest.mark.dist
@pytest.mark.timeout(300)
def test_two_experts_share_tokens_among_ranks(tmp_path: Path) -> None:
    from omnimuse import Omni, ParallelConfig

    folder, wish = EXPERTS.build(tmp_path / "tiny"), EXPERTS.wishes[0]
    [expected] = EXPERTS.reference(folder, [wish], "pt")
    chosen = replace(config(folder, "ExpertsVideoStepPipeline"), parallel=ParallelConfig(ulysses=2))
    with Omni(str(folder), config=chosen) as omni:
        [found] = omni.generate([wish.asked], wish.params, output_type="pt", progress=False)
    assert found.error is None
    made: Tensor = found.tensors["video"][0]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
