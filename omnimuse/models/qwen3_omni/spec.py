"""Facts about Qwen3-Omni, without torch. Source: the published config.json (arXiv 2509.17765), and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omnimuse.components.answering_facts import TALKER, speaks, text_of
from omnimuse.components.entries import ONE, REFUSES, answering, conversing, inside_model, own_transformer
from omnimuse.core.params import WatchParams
from omnimuse.core.spec import Configs, Limits, Spec, Variant, calls
from omnimuse.core.speech import Speech
from omnimuse.loader.facts import part


def limits(configs: Configs) -> Limits:
    """So many tokens are read and written in all."""
    return answering(text_of(configs["model"]), _speech(configs["model"]), REFUSES, calls(configs))


def _speech(config: Mapping[str, Any]) -> Speech | None:
    """The voices of a checkpoint that speaks."""
    if not speaks(config):
        return None
    return Speech(tuple(name.lower() for name in part(config, TALKER).get("speaker_id") or ()))


ARCH = "Qwen3OmniMoeForConditionalGeneration"
PUBLISHED = [f"Qwen/Qwen3-Omni-30B-A3B-{kind}" for kind in ("Instruct", "Thinking", "Captioner")]  # the first speaks
MODEL = own_transformer("qwen3_omni", "Thinker", ARCH, alias=True)
SPEAKING = {
    "talker": inside_model(MODEL, "talker:OmniTalker", "TALKER", speaks),
    "predictor": inside_model(MODEL, "talker:OmniPredictor", "PREDICTOR", speaks),
    "code2wav": inside_model(MODEL, "omnimuse.components.summed_codec:SummedCodec", "WAVES", speaks, dtype="float32"),
}

SPEC = Spec(
    arch=ARCH,
    family="qwen3_omni",
    summary="Qwen3-Omni: text and speech from a conversation with pictures, sounds and videos in it",
    tasks=("text-to-text", "image-to-text", "audio-to-text", "video-to-text"),
    components=conversing(MODEL, ("Qwen3OmniMoeProcessor",), SPEAKING),
    defaults=ONE,
    supported=frozenset(),
    limits=limits,
    extra=WatchParams,
    variants=(Variant("Qwen3-Omni", tuple(PUBLISHED), ONE),),
)
