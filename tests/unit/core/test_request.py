"""What the door lets in, what it refuses, and in which words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnimuse.core.config import ScheduleConfig
from omnimuse.core.deadlines import classes
from omnimuse.core.errors import ConfigError, RequestError
from omnimuse.core.params import DiffusionParams, FamilyParams, family_params
from omnimuse.core.request import Ask, Clip, Door, Picture, Recording, Region
from omnimuse.deploy.wire import pack, unpack
from omnimuse.engine.scheduler import Scheduler
from omnimuse.worker.plan import TickPlan, decode, encode
from tests.fakes import SPEC, FakePipeline, ask, context

DOOR = Door.of(SPEC, {}, "fake")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"height": 20}, ["height=20", "multiple of 8", "16 or 24"]),
        ({"height": 72}, ["height=72", "8 to 64", "64"]),
        ({"width": 0}, ["width=0", "nearest is 8"]),
        ({"num_inference_steps": 0}, ["num_inference_steps=0", "1 to"]),
        ({"num_inference_steps": 2.5}, ["whole number"]),
        ({"guidance_scale": math.nan}, ["guidance_scale=nan", "not a number"]),
        ({"guidance_scale": -1.0}, ["guidance_scale=-1.0", "nearest is 0"]),
        ({"seed": -1}, ["seed=-1", "nearest is 0"]),
        ({"seed": 2**64}, ["seed=", "out of range"]),
        ({"num_outputs_per_prompt": 0}, ["num_outputs_per_prompt=0"]),
        ({"output_type": "gif"}, ["'pil', 'pt' or 'latent'"]),
        ({"num_frames": 5}, ["num_frames means nothing to fake", "guidance_scale"]),
        ({"strength": 0.5}, ["strength means nothing"]),
        ({"timeout": -2.0}, ["timeout=-2.0", "above 0, at most 1e+09"]),
        ({"timeout": 0}, ["timeout=0", "above 0"]),
        ({"deadline": -1}, ["deadline=-1", "above 0"]),
        ({"timeout": math.inf}, ["timeout=inf", "out of range"]),
        ({"timeout": 10**350}, ["timeout=1000", "out of range"]),
        ({"timeout": "9"}, ["timeout='9'", "not a number"]),
        ({"deadline": "soon"}, ["deadline='soon'", "one of batch, interactive"]),
        ({"deadline": 0.0}, ["deadline=0.0", "above 0"]),
        ({"deadline": 3.0, "timeout": 3.0}, ["leave one of them out"]),
        ({"priority": "1"}, ["priority='1'", "whole number", "-100 to 100"]),
        ({"priority": 10**9}, ["priority=", "nearest is 100"]),
        ({"previews": -1}, ["previews=-1", "nearest is 0"]),
        ({"tenant": ["a"]}, ["tenant=['a']", "256 characters"]),
        ({"guidance_scale": math.inf}, ["guidance_scale=inf", "out of range"]),
    ],
)
def test_wrong_choices_are_refused_with_what_is_allowed(wrong: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        DOOR.make_request(ask(**wrong), 0.0, 1)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.param == next(iter(wrong))


def test_what_a_checkpoint_takes_at_one_value_only_is_its_default_and_no_other_is_let_in() -> None:
    fixed = replace(DOOR.limits, fixed=DiffusionParams(guidance_scale=0.5))
    door = Door.of(replace(SPEC, limits=lambda configs: fixed), {}, "fake")
    assert door.defaults.guidance_scale == 0.5
    assert door.make_request(ask(guidance_scale=0.5), 0.0, 1).params.guidance_scale == 0.5
    with pytest.raises(RequestError, match=r"guidance_scale=2.0 does not fit this checkpoint; use 0.5 or leave it out"):
        door.make_request(ask(guidance_scale=2.0), 0.0, 1)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (7, "string or a dict"),
        ({"prompt": 7}, "must be a string"),
        ({"promt": "x"}, "did you mean 'prompt'"),
        ({"prompt": "x", "negative_prompt": 3}, "negative_prompt must be a string"),
        ({"prompt": "x", "images": ["a"]}, "from text only"),
        ("x" * 40_000, "at most 32000"),
    ],
)
def test_wrong_prompts_are_refused(prompt: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        DOOR.make_request(Ask(prompt), 0.0, 1)  # type: ignore[arg-type]


def test_what_is_left_open_takes_the_models_defaults_and_a_fresh_seed() -> None:
    request = DOOR.make_request(ask(height=24), 0.0, 77)
    assert (request.params.height, request.params.width) == (24, 16)
    assert request.params.num_inference_steps == 3
    assert request.seed(0) == 77


def test_a_timeout_becomes_a_deadline_on_the_engines_clock() -> None:
    assert DOOR.make_request(ask(timeout=5.0), 100.0, 1).deadline == 105.0


@pytest.mark.parametrize(
    ("wanted", "deadline", "times"),
    [(5.0, 105.0, None), ("quick", 102.0, None), ("interactive", None, 3.0), ("batch", None, None)],
)
def test_a_deadline_is_a_number_or_a_class_that_the_operator_named(
    wanted: float | str, deadline: float | None, times: float | None
) -> None:
    door = replace(DOOR, deadlines=classes(ScheduleConfig(deadlines={"quick": "2", "interactive": "3x"}).deadlines))
    made = door.make_request(ask(deadline=wanted), 100.0, 1)
    assert (made.deadline, made.times) == (deadline, times)
    assert made.promised(None, 200.0) is made
    assert made.promised(4.0, 200.0).deadline == (212.0 if times else deadline)


@pytest.mark.parametrize("words", [{"quick": "soon"}, {"quick": "-1"}, {"quick": "0x"}, {"a b": "3"}])
def test_classes_of_deadlines_that_mean_nothing_are_refused(words: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="deadlines"):
        ScheduleConfig(deadlines=words)


def test_defaults_are_lowered_to_what_a_checkpoint_can_do() -> None:
    large = replace(SPEC, defaults=DiffusionParams(height=1024, width=8, max_sequence_length=512).over(SPEC.defaults))
    door = Door.of(large, {}, "fake")
    assert (door.defaults.height, door.defaults.width, door.defaults.max_sequence_length) == (64, 8, 32)


@dataclass(frozen=True)
class Own(FamilyParams):
    sharpness: float = 1.0


def test_a_familys_own_parameters_come_as_a_dataclass_or_a_dict() -> None:
    assert family_params(Own, None) == Own()
    assert family_params(Own, {"sharpness": 2.0}) == Own(2.0)
    assert family_params(Own, Own(3.0)) == Own(3.0)
    with pytest.raises(RequestError, match="did you mean 'sharpness'"):
        family_params(Own, {"sharpnes": 2.0})
    with pytest.raises(RequestError, match="does not fit"):
        family_params(Own, 5)  # type: ignore[arg-type]


PICTURE = Picture(200, 100, b"png")
SEES = replace(
    SPEC,
    supported=SPEC.supported | {"strength"},
    defaults=replace(SPEC.defaults, strength=0.6),
    limits=lambda configs: replace(DOOR.limits, max_images=1),
)
SEEING = Door.of(SEES, {}, "fake")


def with_picture(*pictures: object, **choices: object) -> Ask:
    return Ask({"prompt": "x", "images": list(pictures) or [PICTURE]}, DiffusionParams(**choices))  # type: ignore[arg-type]


def test_a_picture_brings_its_proportions_at_the_area_of_the_default() -> None:
    params = SEEING.make_request(with_picture(), 0.0, 1).params
    assert (params.width, params.height) == (24, 8)  # 16 x 16 by default, sides are multiples of 8
    assert params.strength == 0.6


@pytest.mark.parametrize(
    ("chosen", "size"), [({"width": 48}, (48, 24)), ({"height": 16}, (32, 16)), ({"width": 8, "height": 64}, (8, 64))]
)
def test_a_side_that_was_chosen_decides_the_other(chosen: dict[str, int], size: tuple[int, int]) -> None:
    params = SEEING.make_request(with_picture(**chosen), 0.0, 1).params
    assert (params.width, params.height) == size


def test_what_tells_pictures_and_sounds_apart_is_computed_once_however_many_outputs_ask() -> None:
    for source in (PICTURE, Clip(2, 2, (b"one", b"two"), 8.0), Recording(8000, 1, b"1234")):
        assert source.digest is source.digest


def test_a_very_long_picture_still_fits_the_model() -> None:
    params = SEEING.make_request(with_picture(Picture(10_000, 10, b"png")), 0.0, 1).params
    assert (params.width, params.height) == (64, 8)


@pytest.mark.parametrize(("strength", "skipped"), [(1.0, 0), (0.7, 3), (0.05, 9), (0.01, 9)])
def test_strength_says_how_many_steps_are_left_out_and_never_all(strength: float, skipped: int) -> None:
    request = SEEING.make_request(with_picture(strength=strength, num_inference_steps=10), 0.0, 1)
    assert (request.skipped_steps, request.steps) == (skipped, 10 - skipped)


def test_without_a_picture_nothing_is_left_out_and_strength_is_refused() -> None:
    request = SEEING.make_request(ask(), 0.0, 1)
    assert (request.params.strength, request.skipped_steps) == (None, 0)
    with pytest.raises(RequestError, match="there is no picture"):
        SEEING.make_request(ask(strength=0.5), 0.0, 1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (with_picture(PICTURE, PICTURE), "2 pictures were given; fake takes at most 1"),
        (with_picture("a.png"), "must hold pictures, got str"),
        (Ask({"prompt": "x", "images": PICTURE}), "a list of pictures, got Picture"),
        (with_picture(strength=0.0), "strength=0.0 is out of range"),
        (with_picture(strength=1.5), "nearest is 1"),
    ],
)
def test_wrong_pictures_are_refused(asked: Ask, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        SEEING.make_request(asked, 0.0, 1)


@dataclass(frozen=True)
class OddParams(FamilyParams):
    strength: float = field(default=0.5, metadata={"low": 0.0, "high": 1.0})
    rounds: int = 1
    mode: Literal["soft", "hard"] = "soft"
    words: tuple[str, ...] = ()
    note: str | None = None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strength": "0.5"}, "extra.strength='0.5' is not of type float"),
        ({"strength": True}, "extra.strength=True is not of type float"),
        ({"strength": math.nan}, "use a number from 0 to 1"),
        ({"strength": -0.1}, "use a number from 0 to 1"),
        ({"rounds": 1.5}, "not of type int"),
        ({"rounds": math.inf}, "not of type int"),
        ({"mode": "odd"}, "extra.mode='odd'"),
        ({"words": ("a", 1)}, "extra.words"),
        ({"note": 7}, "extra.note=7"),
    ],
)
def test_a_familys_own_parameters_are_checked_like_all_others(wrong: dict[str, object], words: str) -> None:
    door = Door.of(replace(SPEC, extra=OddParams), {}, "fake")
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        door.make_request(ask(extra=wrong), 0.0, 1)
    assert caught.value.param == f"extra.{next(iter(wrong))}"
    right = OddParams(strength=1, rounds=2, mode="hard", words=("a",), note="b")
    assert door.make_request(ask(extra=right), 0.0, 1).extra == right


def test_what_cannot_even_be_handed_over_is_refused_with_what_fits() -> None:
    wide = replace(DOOR.limits, max_side=16384, max_frames=4093)
    spec = replace(SPEC, limits=lambda configs: wide, supported=frozenset({"num_frames"}))
    door = replace(Door.of(spec, {}, "fake"), memory=2 * 2**30)
    with pytest.raises(RequestError, match=r"16384x16384, 4093 frames, 64 outputs need at least .* at most 16x16"):
        door.make_request(ask(height=16384, width=16384, num_frames=4093, num_outputs_per_prompt=64), 0.0, 1)
    assert door.make_request(ask(height=8192, width=8192), 0.0, 1)
    assert Door.of(SPEC, {}, "fake").memory > 2**28


def test_a_schedule_that_cannot_do_one_step_is_never_asked_to() -> None:
    door = Door.of(SPEC, {"scheduler": {"shift_terminal": 0.02}}, "fake")
    with pytest.raises(RequestError, match="num_inference_steps=1 is out of range; use 2 to"):
        door.make_request(ask(num_inference_steps=1), 0.0, 1)


@pytest.mark.parametrize("prompt", ["a \ud83d cat", {"prompt": "x", "negative_prompt": "\udc00"}])
def test_half_a_surrogate_pair_is_refused(prompt: object) -> None:
    with pytest.raises(RequestError, match="half a surrogate pair"):
        DOOR.make_request(Ask(prompt), 0.0, 1)  # type: ignore[arg-type]


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from([8, 16, 24, 1, 2, 0.5, "pil", "latent", 2**63, -1, math.nan]),
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(
    prompt=st.one_of(
        ANYTHING, st.dictionaries(st.sampled_from(["prompt", "negative_prompt", "images", "promt"]), ANYTHING)
    ),
    params=st.dictionaries(st.sampled_from([each.name for each in fields(DiffusionParams)]), ANYTHING, max_size=4),
    own=st.dictionaries(st.sampled_from(["priority", "timeout", "tenant", "previews"]), ANYTHING, max_size=2),
)
def test_whatever_is_thrown_at_the_door_is_let_in_whole_or_refused(
    prompt: object, params: dict[str, object], own: dict[str, object]
) -> None:
    door = Door.of(replace(SPEC, extra=OddParams), {}, "fake")
    asked = Ask(prompt, DiffusionParams(**params), **own)  # type: ignore[arg-type]
    try:
        request = door.make_request(asked, 0.0, 1)
    except RequestError:
        return
    assert decode(encode(TickPlan(admit=(request,))), door.spec).admit == (request,)
    queue = Scheduler(ScheduleConfig())
    queue.add(request, 1, 0.0)
    assert queue.pick(0.0, lambda state_id: None).admit == (request,)
    plain = replace(request, params=replace(request.params, loras=None))  # who has adapters looks for them
    assert FakePipeline(context()).states(plain)


def test_a_whole_character_beyond_the_first_plane_is_text() -> None:
    assert DOOR.make_request(Ask("a \U0001f534"), 0.0, 1).prompt == "a \U0001f534"


def test_a_parameter_by_another_program_s_name_is_refused_with_ours() -> None:
    with pytest.raises(RequestError, match=r"extra has no field 'steps'.*did you mean 'num_inference_steps'"):
        DOOR.make_request(Ask("a", DiffusionParams(extra={"steps": 3})), 0.0, 1)
    with pytest.raises(RequestError, match=r"a prompt has no field 'negative'.*did you mean 'negative_prompt'"):
        DOOR.make_request(Ask({"prompt": "a", "negative": "b"}), 0.0, 1)


# -- the schedule of one request -----------------------------------------------------------------------------------

FLOW = Door.of(SPEC, {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "fake")


def test_a_model_of_flow_matching_lets_its_schedule_be_chosen_and_others_say_that_it_means_nothing() -> None:
    made = FLOW.make_request(ask(flow_shift=3.0, scheduler="UniPCMultistepScheduler"), 0.0, 1)
    assert (made.params.flow_shift, made.params.scheduler) == (3.0, "unipc")
    assert {"flow_shift", "scheduler"} <= FLOW.honoured and not {"flow_shift", "scheduler"} & DOOR.honoured
    for wrong in ({"flow_shift": 3.0}, {"scheduler": "euler"}, {"boundary_ratio": 0.5}):
        with pytest.raises(RequestError, match="means nothing to fake"):
            DOOR.make_request(ask(**wrong), 0.0, 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"flow_shift": 0.0}, ["flow_shift=0.0", "0.01 to 100"]),
        ({"flow_shift": math.nan}, ["not a number"]),
        ({"scheduler": "ddim"}, ["scheduler='ddim'", "euler, heun, unipc, dpm++"]),
        ({"scheduler": 3}, ["scheduler=3"]),
    ],
)
def test_a_schedule_that_does_not_exist_is_refused(wrong: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        FLOW.make_request(ask(**wrong), 0.0, 1)
    assert all(word in str(caught.value) for word in words) and caught.value.param == next(iter(wrong))


def test_seeds_have_64_bits_and_the_last_output_s_must_fit_too() -> None:
    assert DOOR.make_request(ask(seed=2**64 - 1), 0.0, 1).seed(0) == 2**64 - 1
    assert DOOR.make_request(ask(seed=2**64 - 3, num_outputs_per_prompt=3), 0.0, 1).seed(2) == 2**64 - 1
    with pytest.raises(RequestError, match="nearest is 18446744073709551613"):
        DOOR.make_request(ask(seed=2**64 - 1, num_outputs_per_prompt=3), 0.0, 1)


# -- a part of a picture -------------------------------------------------------------------------------------------

PARTS = Door.of(SEES, {"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "fake")
MASK = Picture(200, 100, b"mask")


def in_part(**fields: object) -> Ask:
    return Ask({"prompt": "x", "images": [PICTURE], **fields})


def test_a_part_of_a_picture_is_told_by_a_mask_by_margins_or_by_both() -> None:
    assert PARTS.make_request(in_part(), 0.0, 1).region is None
    assert PARTS.make_request(in_part(mask=MASK), 0.0, 1).region == Region(MASK)
    padded = PARTS.make_request(in_part(mask=MASK, pad=[0, 50, 200, 0]), 0.0, 1).region
    assert padded == Region(MASK, (0, 50, 200, 0))
    assert padded is not None
    assert padded.size_around(PICTURE) == (400, 150)


def test_a_picture_with_margins_has_other_proportions_and_they_are_drawn_from_nothing() -> None:
    plain, square = (PARTS.make_request(in_part(**pad), 0.0, 1).params for pad in ({}, {"pad": (0, 50, 0, 50)}))
    assert (plain.width, plain.height, plain.strength) == (24, 8, 0.6)
    assert (square.width, square.height, square.strength) == (16, 16, 1.0)
    ask = replace(in_part(pad=(0, 50, 0, 50)), params=DiffusionParams(strength=0.5))
    assert PARTS.make_request(ask, 0.0, 1).params.strength == 0.5


@pytest.mark.parametrize(
    ("door", "asked", "param", "words"),
    [
        (SEEING, in_part(mask=MASK), "mask", "mask means nothing to fake, which cannot draw a part of a picture anew"),
        (SEEING, in_part(pad=(1, 1, 1, 1)), "pad", "pad means nothing to fake"),
        (
            PARTS,
            Ask({"prompt": "x", "mask": MASK}),
            "mask",
            "mask says what to draw anew of a picture, and there is none",
        ),
        (PARTS, Ask({"prompt": "x", "pad": [8, 0, 0, 0]}), "pad", "pad says what to draw anew of a picture"),
        (PARTS, in_part(mask="white"), "mask", "mask must be a picture, got str"),
        (PARTS, in_part(mask=Picture(100, 200, b"")), "mask", "the mask has 100x200 pixels and the picture 200x100"),
        (PARTS, in_part(pad=(0, 0, 0, 0)), "pad", "adds nothing to the picture"),
        (PARTS, in_part(pad=(1, 2, 3)), "pad", "four whole numbers: left, above, right, below"),
        (PARTS, in_part(pad="1,2,3,4"), "pad", "four whole numbers"),
        (PARTS, in_part(pad=(True, 0, 0, 0)), "pad", "four whole numbers"),
        (PARTS, in_part(pad=(0, 101, 0, 0)), "pad", "margin 101; use 0 to 200 on the left and on the right, 0 to 100"),
        (PARTS, in_part(pad=(-1, 0, 0, 0)), "pad", "margin -1; use 0 to 200"),
        (replace(PARTS, spec=replace(SEES, fills=True)), in_part(), "mask", "nothing says which; give a mask or a pad"),
    ],
)
def test_a_part_that_cannot_be_followed_is_refused(door: Door, asked: Ask, param: str, words: str) -> None:
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        door.make_request(asked, 0.0, 1)
    assert caught.value.param == param


def test_a_request_for_a_part_comes_back_as_it_was_sent_also_through_json() -> None:
    request = PARTS.make_request(in_part(mask=MASK, pad=[0, 50, 200, 0]), 0.0, 1)
    assert decode(encode(TickPlan(admit=(request,))), SEES).admit == (request,)
    plain = PARTS.make_request(in_part(pad=[0, 50, 200, 0]), 0.0, 1)
    stored = msgspec.json.decode(msgspec.json.encode(pack(request)))
    assert [unpack(fields, SEES) for fields in (stored, pack(plain))] == [request, plain]
