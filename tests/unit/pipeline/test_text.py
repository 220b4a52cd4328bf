"""Prompts become features alike with either tokenizer and either encoder, and it is told how much of one was read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import omnimuse
from omnimuse import DiffusionParams, Omni
from omnimuse.components.qwen3 import RULES, Qwen3Encoder
from omnimuse.core.guidance import BOTH, Guidance
from omnimuse.core.output import Result, TextRead
from omnimuse.core.request import Door
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.tokenizer import LibraryTokenizer, PlainTokenizer
from omnimuse.loader.weights import load_weights
from omnimuse.offload.residency import Residency
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenState, for_both_branches
from tests.checkpoints import flux
from tests.checkpoints.loading import library_component
from tests.fakes import SPEC, ask, context

BUNDLED = Path(omnimuse.__file__).parent / "bundled/shapes"


def chat(tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def ours() -> dict[str, Any]:
    encoder = construct(partial(Qwen3Encoder.from_config, Checkpoint(BUNDLED).config("text_encoder")))
    load_weights(encoder, BUNDLED / "text_encoder", RULES, DtypePolicy(torch.float32), "cpu")
    return {"tokenizer": library_component(Checkpoint(BUNDLED), "tokenizer")} | {"text_encoder": encoder}


def theirs() -> dict[str, Any]:
    from transformers import PreTrainedTokenizerFast, Qwen3Model

    return {
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(BUNDLED / "tokenizer"),
        "text_encoder": Qwen3Model.from_pretrained(BUNDLED / "text_encoder", dtype=torch.float32),
    }


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def encoded(components: dict[str, Any], prompt: str, limit: int, pad: bool, masked: bool) -> tuple[Tensor, TextRead]:
    stage = EncodeText(take=HiddenState(-2), template=chat, length=limit, pad=pad, masked=masked)
    return run(stage, components, prompt)


def run(stage: EncodeText, components: dict[str, Any], prompt: str = "a red circle") -> tuple[Tensor, TextRead]:
    state = State(Door.of(SPEC, {}, "fake").make_request(ask(prompt), 0.0, 1), 0)
    stage.run(replace(context(), components=Residency(components)), [state])
    return state["positive_embeds"], state.notes[stage.name]


def test_the_bundled_model_has_our_tokenizer_and_other_classes_have_transformers_own(z_image_folder: Path) -> None:
    assert type(ours()["tokenizer"]) is PlainTokenizer
    other = library_component(Checkpoint(z_image_folder), "tokenizer")
    assert type(other) is LibraryTokenizer and type(other.inner).__name__ == "Qwen2Tokenizer"


@pytest.mark.parametrize("prompt", ["", "a red circle", "a long story about a square " * 20])
@pytest.mark.parametrize(("pad", "masked"), [(False, True), (True, True), (True, False)])
def test_features_and_counts_are_those_of_transformers(prompt: str, pad: bool, masked: bool) -> None:
    mine, read = encoded(ours(), prompt, 40, pad, masked)
    reference, theirs_read = encoded(theirs(), prompt, 40, pad, masked)
    assert mine.shape == reference.shape
    assert len(mine) == 40 or not pad
    assert float((mine - reference).norm() / reference.norm()) < 1e-5
    assert read == theirs_read
    assert bool(read.left_out) == bool(read.warning) == (len(prompt) > 100)


def test_a_cut_prompt_is_told_with_both_lengths_and_one_that_just_fits_is_not() -> None:
    components = ours()
    whole = components["tokenizer"](chat(components["tokenizer"], "a red circle")).input_ids.shape[1]
    _, fits = encoded(components, "a red circle", whole, pad=False, masked=True)
    assert fits == TextRead("prompt", "text_encoder", whole)
    assert fits.warning == ""
    _, cut = encoded(components, "a red circle", whole - 2, pad=False, masked=True)
    assert cut.warning == (
        f"the prompt has {whole} tokens and text_encoder reads {whole - 2} of them (all that it takes), not the last "
        "2; say what matters first, or less"
    )


def test_dropped_tokens_of_a_template_are_neither_features_nor_counted_by_the_limit() -> None:
    components = ours()
    whole = EncodeText(take=HiddenState(-2), template=chat)
    for limit in (3, 100):
        expected, counted = run(replace(whole, length=limit + 3), components)
        found, read = run(replace(whole, length=limit, drop=3), components)
        assert torch.equal(found, expected[3:])
        assert (read.tokens, read.left_out) == (counted.tokens - 3, counted.left_out)
        assert read.tokens == len(found) <= limit
        assert bool(read.left_out) == (limit == 3)


def test_pads_can_become_zeros_and_nothing_else_does() -> None:
    components = ours()
    plain = EncodeText(take=HiddenState(-2), length=40, pad=True)
    expected, read = run(plain, components)
    found, _ = run(replace(plain, zeroed=True), components)
    assert torch.equal(found[: read.tokens], expected[: read.tokens])
    assert read.tokens < 40
    assert expected[read.tokens :].any(dim=1).all()
    assert not found[read.tokens :].any()


def test_every_choice_tells_runs_of_an_encoder_apart() -> None:
    stage = EncodeText()
    made = Door.of(SPEC, {}, "fake").make_request(ask("a star"), 0.0, 1)
    state = State(replace(made, branches=BOTH), 0)
    others: dict[str, Any] = {
        "branch": "negative",
        "text": "pooled",
        "take": HiddenState(-2),
        "encoder": "text_encoder_2",
        "tokenizer": "tokenizer_2",
        "template": chat,
        "length": 7,
        "pad": True,
        "masked": False,
        "zeroed": True,
        "drop": 1,
        "marked": True,
        "tokens": lambda tokenizer, text, limit: None,
        "of": str.strip,
        "optional": True,
    }
    assert {field.name for field in fields(stage)} == set(others)
    for name, value in others.items():
        assert replace(stage, **{name: value}).key(context(), state) != stage.key(context(), state), name
    assert replace(stage).key(context(), state) == stage.key(context(), state)


def test_a_negative_prompt_that_nobody_gave_is_the_one_of_the_family_and_one_that_no_step_needs_is_not_encoded() -> (
    None
):
    components, [_, stage] = ours(), for_both_branches(EncodeText(take=HiddenState(-2), template=chat))
    ctx = replace(context(), components=Residency(components), spec=replace(SPEC, guidance=Guidance(negative="a star")))
    made = Door.of(ctx.spec, {}, "fake").make_request(ask("a ring", guidance_scale=4.0), 0.0, 1)
    assert made.branches == BOTH
    texts = {}
    for given in (None, "a star", ""):
        state = State(replace(made, negative_prompt=given), 0)
        stage.run(ctx, [state])
        texts[given] = state["negative_embeds"]
    assert torch.equal(texts[None], texts["a star"])
    assert texts[""].shape != texts["a star"].shape
    state = State(Door.of(ctx.spec, {}, "fake").make_request(ask("a ring", guidance_scale=1.0), 0.0, 1), 0)
    assert stage.key(ctx, state) == "not needed"
    stage.run(ctx, [state])
    assert state["negative_embeds"] is None
    assert not state.notes


def drawn(folder: Path, prompts: list[dict[str, str]], params: DiffusionParams) -> list[Result]:
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        return omni.generate(prompts, params, progress=False)


def test_a_result_tells_how_much_of_each_text_every_encoder_read(tmp_path: Path) -> None:
    params = DiffusionParams(
        num_inference_steps=1, height=32, width=32, seed=1, true_cfg_scale=2.0, max_sequence_length=32
    )
    long = "two squares and a long story about them " * 20
    asked = [{"prompt": "a star", "negative_prompt": long}, {"prompt": long, "negative_prompt": ""}]
    short, cut = drawn(flux.build(tmp_path / "tiny"), asked, params)
    assert [(text.source, text.encoder, text.left_out > 0) for text in short.texts] == [
        ("prompt", "text_encoder", False),
        ("prompt", "text_encoder_2", False),
        ("negative_prompt", "text_encoder", True),
        ("negative_prompt", "text_encoder_2", True),
    ]
    assert [(text.tokens, text.left_out > 0) for text in cut.texts[:2]] == [(77, True), (32, True)]
    assert "max_sequence_length=32" in cut.warnings[1]
    assert cut.prompt_tokens == 77 + max(text.tokens for text in cut.texts[2:])


def test_a_prompt_that_was_encoded_before_is_told_as_cut_again(z_image_folder: Path) -> None:
    params = DiffusionParams(num_inference_steps=1, height=32, width=32, guidance_scale=0.0, max_sequence_length=24)
    ends = ["a red circle " * 20 + end for end in ("", "", "on green")]
    first, again, other = drawn(z_image_folder, [{"prompt": end} for end in ends], params)
    assert first.texts == again.texts
    assert first.warnings
    assert other.texts[0].left_out > first.texts[0].left_out
    assert [text.source for text in first.texts] == ["prompt"]
