"""What only sound has: pieces that are the whole, windows, the rule of the other branch, sounds to start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from omnimuse import Ask, Chunk, Config, ModelConfig, Omni
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Event
from omnimuse.media.recording import recording_of
from omnimuse.pipeline.sound import DecodeAudio
from tests.checkpoints import stable_audio
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import OF_SOUND, Wish, chord
from tests.distance import distance

[FAMILY] = (family for family in FAMILIES if family.arch == "StableAudioPipeline")
WISH = FAMILY.wishes[1]


@pytest.fixture(scope="module")
def folder(tiny: Callable[[str], Path]) -> Path:
    return tiny(FAMILY.name)


def engine(folder: Path, dtype: str = "float32") -> Omni:
    return Omni(str(folder), config=Config(ModelConfig(str(folder), dtype=dtype, device="cpu")))


def ours(folder: Path, *wishes: Wish, output_type: str = "pt", dtype: str = "float32") -> list[Tensor]:
    with engine(folder, dtype) as omni:
        asked = [replace(wish.params, output_type=output_type) for wish in wishes]  # type: ignore[arg-type]
        results = omni.generate([wish.asked for wish in wishes], asked, progress=False)
    for result in results:
        assert result.error is None, result.error
    return [result.output[0] for result in results]


def changed(**choices: object) -> Wish:
    return replace(WISH, params=replace(WISH.params, **choices))  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [1, 7, 33, 400])
def test_pieces_of_any_length_make_up_the_whole(folder: Path, piece: int) -> None:
    [expected] = FAMILY.reference(folder, [WISH], "pt")
    with engine(folder) as omni:
        pipeline = omni.engine.runner.pipeline
        *before, decode = type(pipeline).stages
        assert isinstance(decode, DecodeAudio)
        cut = type("Cut", (type(pipeline),), {"stages": (*before, replace(decode, piece=piece))})(pipeline.ctx)
        request = omni.engine.make_request(Ask(WISH.asked, replace(WISH.params, output_type="pt")))
        [found] = cut.forward(request)
    assert distance(found, expected) < OF_SOUND


def test_pieces_come_before_the_end_and_are_the_sound(folder: Path) -> None:
    events: list[Event] = []
    with engine(folder) as omni:
        params = replace(WISH.params, seconds=2.5, output_type="pt")
        [result] = omni.generate([WISH.asked], params, progress=events.append, chunks=True)
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert len(chunks) == 3
    assert [chunk.start for chunk in chunks] == [0, *np.cumsum([chunk.data.shape[1] for chunk in chunks])[:-1]]
    assert np.array_equal(np.concatenate([chunk.data for chunk in chunks], axis=1), result.output[0].numpy())


def test_only_what_is_asked_for_is_decoded(folder: Path) -> None:
    """The window of a long sound is that of the whole, and as long as it was asked to be."""
    whole, part = ours(folder, changed(seconds=3.2, extra=None), changed(seconds=0.5, extra={"start": 1.0}))
    assert (whole.shape, part.shape) == ((2, 3200), (2, 500))
    assert distance(part, whole[:, 1000:1500]) > 1e-3, "the model is told which part it is"


def test_no_negative_prompt_is_not_an_empty_one(folder: Path) -> None:
    """None: zeros for text and duration; "": an empty text is encoded. Both as in the reference."""
    wishes = [replace(WISH, negative=None), replace(WISH, negative="")]
    found, expected = ours(folder, *wishes, output_type="latent"), FAMILY.reference(folder, wishes, "latent")
    assert distance(found[0], found[1]) > 1e-2
    for mine, their in zip(found, expected, strict=True):
        assert distance(mine, their) < 1e-5


def test_a_small_change_of_what_conditions_would_be_noticed(folder: Path) -> None:
    wishes = [changed(), changed(extra={"start": 0.3}), changed(seconds=1.1), changed(max_sequence_length=31)]
    plain, *others = ours(folder, *wishes, output_type="latent")
    assert all(distance(other, plain) > 1e-4 for other in others)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_a_sound_to_start_from_is_prepared_as_in_the_reference(folder: Path, channels: int, seconds: float) -> None:
    params = replace(WISH.params, strength=1.0)
    wish = replace(WISH, params=params, sound=chord(1000, seconds, channels))
    assert distance(*ours(folder, wish, output_type="latent"), *FAMILY.reference(folder, [wish], "latent")) < 1e-5


def test_a_lower_strength_keeps_more_of_the_sound_and_takes_fewer_steps(folder: Path) -> None:
    sound = recording_of(stable_sound(folder), stable_audio.RATE)
    apart, steps = [], []
    for strength in (0.2, 0.5, 1.0):
        events: list[Event] = []
        with engine(folder) as omni:
            params = replace(WISH.params, num_inference_steps=20, strength=strength, output_type="latent", extra=None)
            asked = {"prompt": WISH.prompt, "sounds": [sound]}
            [result] = omni.generate([asked], params, progress=events.append)
            vae = omni.engine.runner.pipeline.ctx.components["vae"]
            wave = np.frombuffer(sound.pcm, "<i2").reshape(-1, 2).T.astype(np.float32) / 32767
            with torch.inference_mode():
                clean = vae.encode(torch.from_numpy(wave.copy())[None])[0].chunk(2)[0]
        apart.append(distance(result.output[0], clean))
        steps.append(sum(getattr(event, "stage", "") == "denoise" for event in events))
    assert steps == [4, 10, 20]
    assert apart[0] < apart[1] < apart[2]


def stable_sound(folder: Path) -> np.ndarray:
    [sound] = ours(folder, changed(seconds=3.2, extra=None))
    return sound.numpy()


def test_half_precision_is_no_further_from_full_than_the_references(folder: Path) -> None:
    [exact] = FAMILY.reference(folder, [WISH], "latent")
    [theirs] = stable_audio.reference(folder, [WISH], "latent", torch.bfloat16)
    [found] = ours(folder, WISH, output_type="latent", dtype="bfloat16")
    assert found.dtype == torch.float32
    assert distance(found, exact) < 1.2 * distance(theirs.float(), exact)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"seconds": 3.3}, r"seconds=3.3 is out of range; use 0.001 to 3.2"),
        ({"seconds": 2.0, "extra": {"start": 1.5}}, r"2 s from second 1.5 on end behind the 3.2 s .* use at most 1.7"),
        ({"extra": {"start": 3.5}}, r"extra.start=3.5 is behind the end; this model makes 3.2 s"),
        ({"extra": {"start": -1.0}}, r"extra.start=-1.0 is not allowed; use a number from 0 to 512"),
        ({"width": 64}, "width cannot be chosen here: a sound has no sides"),
        ({"num_frames": 5}, "num_frames means nothing to stable_audio"),
        ({"flow_shift": 2.0}, "flow_shift means nothing to stable_audio"),
        ({"scheduler": "euler"}, "scheduler means nothing to stable_audio"),
        ({"strength": 0.5}, r"there is no sound; give one \(`sounds`\)"),
        ({"max_sequence_length": 33}, "max_sequence_length=33 is out of range; use 1 to 32"),
    ],
)
def test_what_it_cannot_make_is_refused_with_what_it_can(
    folder: Path, choices: dict[str, object], message: str
) -> None:
    with engine(folder) as omni, pytest.raises(RequestError, match=message):
        omni.generate(WISH.prompt, replace(WISH.params, extra=None), progress=False, **choices)  # type: ignore[arg-type]


def test_a_sound_is_as_long_as_the_whole_unless_somebody_says(folder: Path) -> None:
    with engine(folder) as omni:
        [result] = omni.generate(WISH.prompt, num_inference_steps=1, progress=False)
    assert (result.audios[0].seconds, result.audios[0].rate, result.params.seconds) == (3.2, 1000, 3.2)
