"""What Qwen-Image checkpoints let people ask for, and what their prompts become."""

from __future__ import annotations

from typing import Any

import pytest

from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Door
from omnimuse.models.qwen_image.pipeline import BEFORE, DROPPED, described
from omnimuse.models.qwen_image.spec import SPEC
from tests.checkpoints import qwen_image

CONFIGS: dict[str, dict[str, Any]] = {
    "vae": {"temperal_downsample": [False, True, True]},
    "scheduler": {"shift_terminal": 0.02},
}
PUBLISHED = Door.of(SPEC, CONFIGS, "Qwen/Qwen-Image")


def test_defaults_are_those_of_the_published_checkpoint() -> None:
    chosen = PUBLISHED.defaults
    assert (chosen.num_inference_steps, chosen.true_cfg_scale, chosen.max_sequence_length) == (50, 4.0, 512)
    assert (chosen.width, chosen.height) == (1328, 1328)
    assert Door.of(SPEC, CONFIGS, "somebody/else").defaults.width == 1024


def test_a_plain_prompt_is_guided_against_a_blank_one() -> None:
    plain = PUBLISHED.make_request(Ask("a star"), 0.0, 1)
    assert plain.branches == ("positive", "negative")
    assert SPEC.guidance is not None
    assert SPEC.guidance.text(plain.negative_prompt) == " "
    alone = PUBLISHED.make_request(Ask("a star", DiffusionParams(true_cfg_scale=1.0)), 0.0, 1)
    assert alone.branches == ("positive",)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"guidance_scale": 4.0}, "guidance_scale means nothing to qwen_image"),
        ({"num_inference_steps": 1}, "num_inference_steps=1 is out of range; use 2"),
        ({"width": 1000}, "width=1000 is not a multiple of 16; use 992 or 1008"),
        ({"max_sequence_length": 1025}, "max_sequence_length=1025 is out of range"),
    ],
)
def test_what_the_checkpoint_cannot_do_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        PUBLISHED.make_request(Ask("a star", DiffusionParams(**params)), 0.0, 1)


def test_the_tokens_before_the_prompt_are_as_many_as_are_dropped_and_braces_are_only_text() -> None:
    tokenizer = qwen_image.tokenizer()
    assert len(tokenizer(BEFORE).input_ids) == DROPPED
    assert described(tokenizer, "{} {0} {x}") == f"{BEFORE}{{}} {{0}} {{x}}<|im_end|>\n<|im_start|>assistant\n"
