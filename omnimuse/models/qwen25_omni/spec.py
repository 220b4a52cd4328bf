"""Facts about Qwen2.5-Omni, without torch. Source: the published config.json (arXiv 2503.20215), and transformers."""

from __future__ import annotations

from omnimuse.components.entries import answering, inside_model, own_transformer
from omnimuse.core.params import DiffusionParams, WatchParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, calls
from omnimuse.core.speech import Speech
from omnimuse.loader.facts import part
from omnimuse.models.qwen3_text.spec import REFUSES
from omnimuse.models.qwen25_omni.facts import TEXT, THINKER, speaks

VOICES = "voices"


def limits(configs: Configs) -> Limits:
    """So many tokens are read and written in all; its voices lie beside the weights."""
    writer = part(part(configs["model"], THINKER), TEXT)
    voices = tuple(name.lower() for name in configs.get(VOICES, {}))
    speech = Speech(voices) if speaks(configs["model"]) and voices else None
    return answering(writer, speech, REFUSES, calls(configs))


ARCH = "Qwen2_5OmniForConditionalGeneration"
MODEL = own_transformer("qwen25_omni", "Thinker", ARCH, "Qwen2_5OmniModel")

SPEC = Spec(
    arch=ARCH,
    also=("Qwen2_5OmniModel",),
    family="qwen25_omni",
    summary="Qwen2.5-Omni: text and speech from a conversation with pictures, sounds and videos in it",
    tasks=("text-to-text", "image-to-text", "audio-to-text", "video-to-text"),
    components={
        "model": MODEL,
        "vision": inside_model(MODEL, "vision:Vision", "VISION"),
        "hearing": inside_model(MODEL, "hearing:Hearing", "HEARING"),
        "talker": inside_model(MODEL, "transformer:Talker", "TALKER", speaks),
        "flow": inside_model(MODEL, "flow:MelFlow", "FLOW", speaks, dtype="float32"),
        "vocoder": inside_model(MODEL, "vocoder:Vocoder", "VOCODER", speaks, dtype="float32"),
        VOICES: Component(("Voices",), optional=True, built=False),
        "processor": Component(("Qwen2_5OmniProcessor", "Processor"), optional=True, built=False),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
    },
    defaults=DiffusionParams(num_outputs_per_prompt=1, output_type="pil"),
    supported=frozenset(),
    limits=limits,
    extra=WatchParams,
)
