"""Facts about Qwen2.5-Omni, without torch. Source: the published config.json (arXiv 2503.20215), and transformers."""

from __future__ import annotations

from omnimuse.components.answering_facts import speaks, text_of
from omnimuse.components.entries import ONE, REFUSES, answering, conversing, inside_model, own_transformer
from omnimuse.core.params import WatchParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant, calls
from omnimuse.core.speech import Speech

VOICES = "voices"


def limits(configs: Configs) -> Limits:
    """So many tokens are read and written in all; its voices lie beside the weights."""
    voices = tuple(name.lower() for name in configs.get(VOICES, {}))
    speech = Speech(voices) if speaks(configs["model"]) and voices else None
    return answering(text_of(configs["model"]), speech, REFUSES, calls(configs))


ARCH = "Qwen2_5OmniForConditionalGeneration"
MODEL = own_transformer("qwen25_omni", "Thinker", ARCH, "Qwen2_5OmniModel", alias=True)
SPEAKING = {
    "talker": inside_model(MODEL, "transformer:Talker", "TALKER", speaks),
    "flow": inside_model(MODEL, "omnimuse.components.mel_flow:MelFlow", "FLOW", speaks, dtype="float32"),
    "vocoder": inside_model(MODEL, "omnimuse.components.bigvgan:BigVgan", "VOCODER", speaks, dtype="float32"),
    VOICES: Component(("Voices",), optional=True, built=False),
}

PUBLISHED = ("Qwen/Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-3B")

SPEC = Spec(
    arch=ARCH,
    also=("Qwen2_5OmniModel",),
    family="qwen25_omni",
    summary="Qwen2.5-Omni: text and speech from a conversation with pictures, sounds and videos in it",
    tasks=("text-to-text", "image-to-text", "audio-to-text", "video-to-text"),
    components=conversing(MODEL, ("Qwen2_5OmniProcessor", "Processor"), SPEAKING),
    defaults=ONE,
    supported=frozenset(),
    limits=limits,
    extra=WatchParams,
    variants=(Variant("Qwen2.5-Omni", PUBLISHED, ONE),),
)
