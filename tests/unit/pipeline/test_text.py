"""Prompts become features alike with either tokenizer and either encoder, and people hear when a prompt is cut."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import omnimuse
from omnimuse.components.qwen3 import RULES, Qwen3Encoder
from omnimuse.core.request import Door
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import load_library_component
from omnimuse.loader.tensors import DtypePolicy, construct
from omnimuse.loader.tokenizer import LibraryTokenizer, PlainTokenizer
from omnimuse.loader.weights import load_weights
from omnimuse.offload.residency import Residency
from omnimuse.pipeline.state import State
from omnimuse.pipeline.text import EncodeText, HiddenState
from tests.fakes import SPEC, ask, context

BUNDLED = Path(omnimuse.__file__).parent / "bundled/shapes"


def chat(tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def ours() -> dict[str, Any]:
    encoder = construct(partial(Qwen3Encoder.from_config, Checkpoint(BUNDLED).config("text_encoder")))
    load_weights(encoder, BUNDLED / "text_encoder", RULES, DtypePolicy(torch.float32), "cpu")
    return {"tokenizer": load_library_component(Checkpoint(BUNDLED), "tokenizer", torch.float32, "cpu")} | {
        "text_encoder": encoder
    }


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


def encoded(components: dict[str, Any], prompt: str, limit: int, pad: bool, masked: bool) -> Tensor:
    stage = EncodeText("prompt", "embeds", take=HiddenState(-2), template=chat, length=limit, pad=pad, masked=masked)
    state = State(Door.of(SPEC, {}, "fake").make_request(ask(prompt), 0.0, 1), 0)
    stage.run(replace(context(), components=Residency(components)), [state])
    return state["embeds"]


def test_the_bundled_model_has_our_tokenizer_and_other_classes_have_transformers_own(z_image_folder: Path) -> None:
    assert type(ours()["tokenizer"]) is PlainTokenizer
    other = load_library_component(Checkpoint(z_image_folder), "tokenizer", torch.float32, "cpu")
    assert type(other) is LibraryTokenizer and type(other.inner).__name__ == "Qwen2Tokenizer"


@pytest.mark.parametrize("prompt", ["", "a red circle", "a long story about a square " * 20])
@pytest.mark.parametrize(("pad", "masked"), [(False, True), (True, True), (True, False)])
def test_features_and_warnings_are_those_of_transformers(
    caplog: pytest.LogCaptureFixture, prompt: str, pad: bool, masked: bool
) -> None:
    caplog.set_level(logging.WARNING)
    mine, said = encoded(ours(), prompt, 40, pad, masked), caplog.messages[:]
    caplog.clear()
    reference = encoded(theirs(), prompt, 40, pad, masked)
    assert mine.shape == reference.shape
    assert len(mine) == 40 or not pad
    assert float((mine - reference).norm() / reference.norm()) < 1e-5
    assert said == [message for message in caplog.messages if "prompt" in message]
    assert bool(said) == (len(prompt) > 100)


def test_a_cut_prompt_is_reported_with_both_lengths_and_one_that_just_fits_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    components = ours()
    whole = components["tokenizer"](chat(components["tokenizer"], "a red circle")).input_ids.shape[1]
    encoded(components, "a red circle", whole, pad=False, masked=True)
    assert not caplog.messages
    encoded(components, "a red circle", whole - 1, pad=False, masked=True)
    assert caplog.messages == [
        f"prompt has {whole} tokens; only the first {whole - 1} are used (all that the text_encoder takes)"
    ]
