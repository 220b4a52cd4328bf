"""Chroma as a pipeline: the declaration, and the one function that is really its own.

Source: the reference pipelines of diffusers (ChromaPipeline, ChromaImg2ImgPipeline, ChromaInpaintPipeline).
"""

from __future__ import annotations

from typing import Any

from omnimuse.models.chroma.spec import SPEC
from omnimuse.models.chroma.transformer import ChromaTransformer
from omnimuse.pipeline.encode import DrawImageLatents, EncodeImage
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.prepared import prepared
from omnimuse.pipeline.text import EncodeText, Tokens, for_both_branches
from omnimuse.pipeline.two_streams import drawing


def tokens(tokenizer: Any, prompt: str, limit: int) -> Tokens:
    """The prompt and, if there is room, one pad, which the encoder does not see and the transformer does.

    The reference makes more pads and masks all but that one: nothing attends to them, and all stand in one place.
    """
    whole = tokenizer(prompt, return_tensors="pt", verbose=False).input_ids.shape[1]
    kept = min(whole + 1, limit)
    made = tokenizer(prompt, return_tensors="pt", padding="max_length", truncation=True, max_length=kept)
    return Tokens(made.input_ids, made.attention_mask, 0, kept, min(whole, limit), whole)


class Chroma(Pipeline):
    """Text, and perhaps a picture, to picture."""

    spec = SPEC
    stages = (
        *for_both_branches(EncodeText(tokens=tokens)),
        EncodeImage(),
        DrawImageLatents(),
        *drawing(prepared(ChromaTransformer), start="image_latents"),
    )


PIPELINE = Chroma
