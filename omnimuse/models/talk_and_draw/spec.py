"""Facts about models that talk and draw, without torch.

No checkpoint of somebody else's is of this kind: it puts a language model of the Qwen3 kind beside the components of
Z-Image. What the language model writes between the two tokens `draw_token_ids` of model_index.json is the prompt of a
picture.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.components import entries
from omnimuse.core.errors import ModelError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, GenerationParams
from omnimuse.core.spec import OPTIONS, Configs, Limits, Spec, calls
from omnimuse.models.qwen3_text import spec as qwen3
from omnimuse.models.z_image import spec as z_image

WRITER, WORDS = "model", "words"
"""The language model, and its tokenizer; the other components are those that draw."""
MARKS = "draw_token_ids"
REFUSES = {"max_sequence_length": entries.REFUSES["max_sequence_length"]}


def marks(configs: Configs) -> tuple[int, int]:
    """The tokens between which the prompt of a picture stands; ModelError where the checkpoint does not say."""
    match configs[OPTIONS].get(MARKS):
        case [int(opens), int(closes)] if opens != closes:
            return opens, closes
    raise ModelError(
        f"model_index.json: {MARKS}={configs[OPTIONS].get(MARKS)!r} are not two tokens between which the prompt of a "
        "picture stands; use another checkpoint"
    )


def limits(configs: Configs) -> Limits:
    """Sizes as the network that draws has them, lengths as the language model reads and writes; nothing is shown."""
    marks(configs)
    drawn, written = z_image.limits(configs), qwen3.limits(configs)
    longest = written.max_sequence_length
    able = calls(configs, WORDS)
    return replace(drawn, max_images=0, max_sequence_length=longest, refuses=REFUSES, draws=True, calls=able)


def read_at_most(configs: Configs) -> DiffusionParams:
    """Of the prompt of a picture so many tokens are read."""
    return DiffusionParams(max_sequence_length=z_image.limits(configs).max_sequence_length)


_DRAWING = z_image.SPEC.components

SPEC = Spec(
    arch="TalkAndDrawPipeline",
    family="talk_and_draw",
    summary="Qwen3 beside Z-Image: text from a prompt or a conversation, and a picture where the text asks for one",
    tasks=("text-to-text",),
    components={
        WRITER: qwen3.SPEC.components["model"],
        WORDS: qwen3.SPEC.components["tokenizer"],
        **_DRAWING,
        "transformer": replace(_DRAWING["transformer"], tells=read_at_most),
    },
    defaults=replace(z_image.DEFAULTS, strength=None),
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(neutral=0),
    extra=GenerationParams,
)
