"""What a pipeline's declaration must satisfy, and what slots allow."""

from __future__ import annotations

import pytest
import torch

from omnimuse.core.request import Door
from omnimuse.pipeline.pipeline import Pipeline, PipelineError
from omnimuse.pipeline.stage import Stage
from omnimuse.pipeline.state import Parked, SlotError, State, park, wake
from tests.fakes import SPEC, Add, Decode, Encode, FakePipeline, ask, context


def declare(*stages: Stage) -> None:
    type("Declared", (Pipeline,), {"spec": SPEC, "stages": stages})


def test_a_read_needs_an_earlier_writer() -> None:
    with pytest.raises(PipelineError, match="reads 'embeds', which no earlier stage writes"):
        declare(Add(), Encode(), Decode())


def test_a_slot_has_one_writer() -> None:
    with pytest.raises(PipelineError, match=r"writes 'embeds', which encode prompt has"):
        declare(Encode(), Encode(), Add(), Decode())


def test_a_used_component_must_exist() -> None:
    class Lost(Encode):
        uses = ("nowhere",)

    with pytest.raises(PipelineError, match="uses 'nowhere'; the spec has"):
        declare(Lost(), Add(), Decode())


@pytest.mark.parametrize("name", ["queue", "encode", "encode_prompt"])
def test_every_stage_has_a_name_of_its_own(name: str) -> None:
    class Called(Add):
        pass

    Called.name = name
    with pytest.raises(PipelineError, match=f"a stage is called '{name}'"):
        declare(Encode(), Called(), Decode())


def test_somebody_writes_the_result() -> None:
    with pytest.raises(PipelineError, match="no stage writes the result slot 'image'"):
        declare(Encode(), Add())


def state(strict: bool = True) -> State:
    return State(Door.of(SPEC, {}, "fake").make_request(ask(), 0.0, 1), 0, strict=strict)


def test_a_strict_state_refuses_undeclared_slots() -> None:
    subject = state()
    with subject.opened_for(Encode()):
        assert subject["prompt"] == "a circle"
        subject["embeds"] = 1
        with pytest.raises(SlotError, match="cannot write slot 'latents'"):
            subject["latents"] = 2
    with subject.opened_for(Decode()), pytest.raises(SlotError, match="cannot read slot 'embeds'"):
        subject["embeds"]


def test_an_empty_slot_says_so() -> None:
    with pytest.raises(SlotError, match="slot 'image' is empty"):
        state()["image"]


def test_a_slot_is_freed_after_its_last_reader() -> None:
    pipeline = FakePipeline(context())
    [subject] = pipeline.states(state().request)
    pipeline.prepare_encode([subject])
    assert "embeds" in subject
    for _ in range(3):
        pipeline.step_scheduler([subject], pipeline.denoise_step([subject]))
    assert "embeds" not in subject
    pipeline.post_decode([subject])
    assert "latents" not in subject
    assert "image" in subject


def test_the_verbs_and_forward_are_one_code_path() -> None:
    request = state().request
    pipeline = FakePipeline(context())
    states = pipeline.states(request)
    pipeline.prepare_encode(states)
    for _ in range(3):
        pipeline.step_scheduler(states, pipeline.denoise_step(states))
    assert torch.equal(pipeline.post_decode(states)[0], FakePipeline(context()).forward(request)[0])


def test_waking_brings_back_tensors_in_containers_that_were_elsewhere_and_leaves_the_others() -> None:
    here, there = torch.ones(1), Parked(torch.ones(2), torch.device("meta"))  # as `park` leaves one of an accelerator
    value = {"a": [here], "b": (there, "text")}
    assert park({"a": [here]})["a"][0] is here
    woken = wake(value)
    assert woken["a"][0] is here
    assert woken["b"][0].device.type == "meta"
    assert woken["b"][1] == "text"
