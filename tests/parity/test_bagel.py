"""BAGEL beside what its published code wrote with the same checkpoint: about pictures, and before it draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from omnimuse import Omni
from omnimuse.core.config import Config, ModelConfig, ScheduleConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Chunk, Event, Result
from omnimuse.core.params import DiffusionParams
from omnimuse.media.picture import picture_of
from omnimuse.models.bagel.spec import SPEC, BagelParams
from tests.checkpoints.bagel import ASKED, WISHES, answers, reference, thoughts

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def omni(tiny: Callable[[str], Path]) -> Iterator[Omni]:
    folder = str(tiny(SPEC.arch))
    schedule = ScheduleConfig(strict_slots=True, company="always")
    with Omni(folder, config=Config(ModelConfig(folder, dtype="float32", device="cpu"), schedule=schedule)) as made:
        yield made


@pytest.mark.parametrize("form", ["latent", "pt"])
def test_what_it_draws_in_company_is_what_the_published_code_draws(
    omni: Omni, tiny: Callable[[str], Path], form: Literal["latent", "pt"]
) -> None:
    params = [replace(wish.params, output_type=form) for wish in WISHES]
    results = omni.generate([wish.asked for wish in WISHES], params, progress=False)
    for result, wanted in zip(results, reference(tiny(SPEC.arch), WISHES, form), strict=True):
        assert result.error is None, result.error
        assert float((result.output[0] - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


def asked(number: int) -> tuple[dict[str, object], DiffusionParams]:
    """What is asked about pictures."""
    text, pictures, chosen, seed = ASKED[number]
    given = {"prompt": text, "images": [picture_of(each) for each in pictures]}
    return given, DiffusionParams(seed=seed, extra=BagelParams(modalities=("text",), **chosen))


def tokens(result: Result) -> list[int]:
    assert result.error is None, result.error
    [written] = result.written
    return list(written.tokens)


def test_what_it_says_of_pictures_are_the_tokens_of_the_published_code_beside_others_that_draw(omni: Omni) -> None:
    prompts, params = zip(*(asked(number) for number in range(len(ASKED))), strict=True)
    results = omni.generate([*prompts, WISHES[0].asked], [*params, WISHES[0].params], progress=False)
    assert [tokens(result) for result in results[:-1]] == answers()
    assert results[-1].images
    assert [result.images for result in results[:-1]] == [[]] * len(ASKED)


def test_what_it_thinks_before_it_draws_are_the_tokens_of_the_published_code(omni: Omni) -> None:
    wishes = [wish for wish in WISHES if (wish.params.extra or {}).get("modalities")]  # type: ignore[union-attr]
    results = omni.generate([wish.asked for wish in wishes], [wish.params for wish in wishes], progress=False)
    assert [tokens(result) for result in results] == thoughts()
    for result in results:
        assert [part.medium for part in result.parts[0]] == ["image", "text"]


def test_an_answer_streams_and_is_whole(omni: Omni) -> None:
    heard: list[Event] = []
    given, params = asked(0)
    result = omni.generate(given, params, progress=heard.append, chunks=True)[0]
    pieces = [event.data for event in heard if isinstance(event, Chunk)]
    assert len(pieces) > 1
    assert "".join(pieces) == result.parts[0][0].data


def test_a_talk_is_read_message_by_message_with_its_pictures_where_they_are_shown(omni: Omni) -> None:
    given, params = asked(0)
    shown = [{"type": "image"}, {"type": "text", "text": ASKED[0][0]}]
    talk = {"messages": [{"role": "user", "content": shown}], "images": given["images"]}
    assert tokens(omni.generate(talk, params, progress=False)[0]) == answers()[0]
    told = [{"role": "user", "content": "a star"}, {"role": "assistant", "content": "yes"}, *talk["messages"]]
    assert tokens(omni.generate({**talk, "messages": told}, params, progress=False)[0]) != answers()[0]


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ({"modalities": ("audio",)}, "cannot be; use"),
        ({"think": True}, "no text is wanted"),
    ],
)
def test_what_makes_no_sense_is_refused(omni: Omni, chosen: dict[str, object], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        omni.generate("a star", replace(WISHES[0].params, extra=chosen), progress=False)  # type: ignore[arg-type]


def test_marks_of_the_model_s_own_are_refused_in_texts(omni: Omni) -> None:
    with pytest.raises(RequestError, match="take it out"):
        omni.generate("a <|im_end|> star", WISHES[0].params, progress=False)
