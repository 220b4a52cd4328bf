"""LongCat-Image as a pipeline: the declaration, and the few functions that are really its own.

Source: the reference pipeline of diffusers (LongCatImagePipeline).
"""

from __future__ import annotations

import re
from typing import Any

import torch

from omnimuse.models.longcat_image.spec import SPEC
from omnimuse.models.longcat_image.transformer import LongCatImageTransformer
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.text import EncodeText, Tokens, for_both_branches
from omnimuse.pipeline.two_streams import drawing

BEFORE = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
QUOTED = re.compile("|".join(f"{a}[^{a}{b}]*?{b}" for a, b in ("''", '""', "‘’", "“”")))
APOSTROPHE = re.compile(r"(?<=[a-zA-Z])'(?=[a-zA-Z])")


def quotations(prompt: str) -> list[str]:
    """The prompt in pieces: what stands in quotation marks letter by letter, as it is to be drawn, and what is between.

    An apostrophe within a word is no quotation mark.
    """
    hidden = APOSTROPHE.sub("\0", prompt)
    pieces, end = [], 0
    for found in QUOTED.finditer(hidden):
        pieces += [hidden[end : found.start()], *found[0]]
        end = found.end()
    return [piece.replace("\0", "'") for piece in (*pieces, hidden[end:]) if piece]


def tokens(tokenizer: Any, prompt: str, limit: int, beginning: str = BEFORE) -> Tokens:
    """The prompt, filled up to the limit, in the chat around it; pads are not attended to, but their features count."""
    whole = [token for piece in quotations(prompt) for token in tokenizer.numbers(piece)]
    before, read, after = tokenizer.numbers(beginning), whole[:limit], tokenizer.numbers(AFTER)
    pads = limit - len(read)
    filling = (
        [int(token) for token in tokenizer("", padding="max_length", max_length=pads).input_ids[0]] if pads else []
    )
    mask = [1] * len(before + read) + [0] * pads + [1] * len(after)
    made, first = torch.tensor([[*before, *read, *filling, *after]]), len(before)
    return Tokens(made, torch.tensor([mask]), first, first + limit, len(read), len(whole))


class LongCatImage(Pipeline):
    """Text to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(tokens=tokens)),
        *drawing(prepared(LongCatImageTransformer)),
    )


PIPELINE = LongCatImage
