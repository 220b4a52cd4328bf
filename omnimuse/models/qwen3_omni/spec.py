"""Facts about Qwen3-Omni, without torch. Source: the published config.json (arXiv 2509.17765), and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.components.entries import answering, inside_model, own_transformer
from omnimuse.core.params import AnswerParams, DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, calls
from omnimuse.core.speech import Speech
from omnimuse.loader.facts import part
from omnimuse.models.qwen3_omni.facts import TALKER, TEXT, THINKER, speaks
from omnimuse.models.qwen3_text.spec import REFUSES

PROCESSOR = "processor"


def limits(configs: Configs) -> Limits:
    """So many tokens are read and written in all."""
    writer = part(part(configs["model"], THINKER), TEXT)
    return answering(writer, _speech(configs["model"]), REFUSES, calls(configs))


def _speech(config: Mapping[str, Any]) -> Speech | None:
    """The voices of a checkpoint that speaks."""
    if not speaks(config):
        return None
    return Speech(tuple(name.lower() for name in part(config, TALKER).get("speaker_id") or ()))


ARCH = "Qwen3OmniMoeForConditionalGeneration"
MODEL = own_transformer("qwen3_omni", "Thinker", ARCH)

SPEC = Spec(
    arch=ARCH,
    family="qwen3_omni",
    summary="Qwen3-Omni: text and speech from a conversation with pictures, sounds and videos in it",
    tasks=("text-to-text", "image-to-text", "audio-to-text", "video-to-text"),
    components={
        "model": MODEL,
        "vision": inside_model(MODEL, "vision:Vision", "VISION"),
        "hearing": inside_model(MODEL, "hearing:Hearing", "HEARING"),
        "talker": inside_model(MODEL, "talker:OmniTalker", "TALKER", speaks),
        "predictor": inside_model(MODEL, "talker:OmniPredictor", "PREDICTOR", speaks),
        "code2wav": inside_model(MODEL, "talker:Code2Wav", "WAVES", speaks, dtype="float32"),
        PROCESSOR: Component(("Qwen3OmniMoeProcessor",), optional=True, built=False),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
    },
    defaults=DiffusionParams(num_outputs_per_prompt=1, output_type="pil"),
    supported=frozenset(),
    limits=limits,
    extra=AnswerParams,
)
