"""What the config.json of a Qwen3-TTS checkpoint says for its stages: what stands for what. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import part

TALKER, PREDICTOR = "talker_config", "code_predictor_config"
CUSTOM, DESIGN, BASE = "custom_voice", "voice_design", "base"
"""The kinds of checkpoints: with voices of its own, with one that words describe, with that of a sound."""


@dataclass(frozen=True)
class Spoken:
    """Voices and languages, by what stands for them, and which voice speaks which dialect, if any."""

    voices: Mapping[str, int] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    dialects: Mapping[str, str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Marks:
    """The codes and tokens that stand for no sound and no word, and what can be `spoken`."""

    num_code_groups: int
    vocab_size: int
    codec_eos_token_id: int
    codec_think_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    codec_pad_id: int
    codec_bos_id: int
    max_position_embeddings: int = 32768
    tts_pad_token_id: int = 151671
    tts_bos_token_id: int = 151672
    tts_eos_token_id: int = 151673
    spoken: Spoken = Spoken()


def marks_of(config: Mapping[str, Any]) -> Marks:
    """What the stages need to know."""
    talker = part(config, TALKER)
    named = {"voices": "spk_id", "languages": "codec_language_id", "dialects": "spk_is_dialect"}
    tables = {ours: talker.get(theirs) or {} for ours, theirs in named.items()}
    if config.get("tts_model_type") != CUSTOM:
        tables["voices"] = {}
    known = [name for name in Marks.__dataclass_fields__ if name != "spoken"]
    found: dict[str, Any] = {name: value for name in known if (value := config.get(name, talker.get(name))) is not None}
    if absent := sorted({name for name in known if name.startswith(("codec", "vocab", "num"))} - found.keys()):
        raise ModelError(f"config.json, {TALKER} has no {', '.join(absent)}; use a complete checkpoint")
    return Marks(**found, spoken=Spoken(**tables))
