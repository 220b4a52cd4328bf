"""Facts about Qwen3-TTS, without torch. Source: the published config.json and code (`qwen_tts` 0.1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from omnimuse.components.entries import inside_model, own_transformer
from omnimuse.core.errors import ModelError
from omnimuse.core.params import DiffusionParams, SpeechParams
from omnimuse.core.spec import Component, Configs, Limits, SoundLimits, Spec, Variant
from omnimuse.core.speech import Speech
from omnimuse.models.qwen3_tts.marks import BASE, CUSTOM, DESIGN, marks_of

AUTO = "auto"
"""The language of the text, whatever it is."""
KIND = "qwen3_tts_tokenizer_12hz"
NO_SIDES = "a sound has no sides"


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: its voices and languages, and as much sound as its places are."""
    config = configs["model"]
    codec = configs["speech_tokenizer"]
    marks = marks_of(config)
    decoder = codec.get("decoder_config") or {}
    if (found := decoder.get("num_quantizers", 16)) != marks.num_code_groups:
        raise ModelError(
            f"the codec knows {found} codes of a frame, and the talker says {marks.num_code_groups}; "
            "use a complete checkpoint"
        )
    if (kind := config.get("tokenizer_type", KIND)) != KIND:
        raise ModelError(f"config.json: tokenizer_type={kind!r} is not supported; only {KIND!r} is")
    speech = _speech(config, tuple(marks.spoken.voices), tuple(marks.spoken.languages))
    rate = int(codec.get("output_sample_rate") or 24_000)
    return Limits(
        size_multiple=1,
        max_side=1,
        max_sequence_length=marks.max_position_embeddings,
        refuses={
            "num_inference_steps": "speech has as many steps as frames; max_tokens bounds them",
            "height": NO_SIDES,
            "width": NO_SIDES,
            "max_sequence_length": "the whole text is read; max_tokens bounds the frames of sound",
            "cache": "no frame of speech can be skipped",
        },
        sound=SoundLimits(rate, 1, 0.0, int(_clones(config)), speech),
    )


def _speech(config: Mapping[str, Any], voices: tuple[str, ...], languages: tuple[str, ...]) -> Speech:
    """What of its speech can be chosen, by the kind of checkpoint."""
    kind, size = config.get("tts_model_type"), config.get("tts_model_size")
    known = (AUTO, *(name for name in languages if "dialect" not in name))
    if kind not in (CUSTOM, DESIGN, BASE):
        raise ModelError(f"config.json: tts_model_type={kind!r} is not known; it is {CUSTOM}, {DESIGN} or {BASE}")
    if kind == DESIGN:
        return Speech((), known, "must")
    if kind == BASE:
        return Speech((), known, "this checkpoint speaks as the sound does; leave them out", clones=True)
    instructed: Literal["may"] | str = "may"
    if size == "0b6":
        instructed = "this checkpoint, of 0.6 billion parameters, was not taught to follow any; leave them out"
    return Speech(voices, known, instructed)


def _clones(config: Mapping[str, object]) -> bool:
    """Whether it speaks with the voice of a sound."""
    return config.get("tts_model_type") == BASE


ARCH = "Qwen3TTSForConditionalGeneration"
MODEL = own_transformer("qwen3_tts", "Talker", ARCH)
CODEC = Component(
    ("Qwen3TTSTokenizerV2Model",),
    network="omnimuse.components.speech_codec:SpeechCodec",
    rules="omnimuse.components.speech_codec:RULES",
    dtype="float32",
)

DEFAULTS = DiffusionParams(num_outputs_per_prompt=1, output_type="pil")
PUBLISHED = tuple(
    f"Qwen/Qwen3-TTS-12Hz-{kind}"
    for kind in ("1.7B-CustomVoice", "1.7B-VoiceDesign", "1.7B-Base", "0.6B-CustomVoice", "0.6B-Base")
)

SPEC = Spec(
    arch=ARCH,
    family="qwen3_tts",
    summary="Qwen3-TTS: speech from text, in a voice of the checkpoint's, of a sound, or one that words describe",
    tasks=("text-to-audio",),
    components={
        "model": MODEL,
        "predictor": inside_model(MODEL, "transformer:Predictor", "PREDICTOR"),
        "speaker_encoder": inside_model(MODEL, "omnimuse.components.speaker:SpeakerEncoder", "SPEAKER", _clones),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
        "speech_tokenizer": CODEC,
        "speech_encoder": replace(
            CODEC,
            network="omnimuse.components.speech_encoder:SpeechEncoder",
            rules="omnimuse.components.speech_encoder:RULES",
            optional=True,
            inside="speech_tokenizer",
            asks="model",
            where=_clones,
        ),
    },
    defaults=DEFAULTS,
    supported=frozenset(),
    limits=limits,
    extra=SpeechParams,
    variants=(Variant("Qwen3-TTS", PUBLISHED, DEFAULTS),),
)
