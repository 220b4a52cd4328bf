"""What the config.json of a Qwen3-TTS checkpoint says of its two networks.

The published files carry every setting that transformers has, so keys that nobody here knows are passed over; those
that would change the arithmetic are known, and refused at another value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.components.qwen3_facts import PredictorFacts, Qwen3Config
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import part, read_facts
from omnimuse.models.qwen3_tts.marks import PREDICTOR, TALKER

FIXED: Mapping[str, Sequence[Any]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
}
LAYERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta"),
)


@dataclass(frozen=True)
class TalkerFacts:
    """The talker's layers, and the texts that it reads."""

    layers: Qwen3Config
    text_vocab_size: int
    text_hidden_size: int


def talker_of(config: Mapping[str, Any]) -> TalkerFacts:
    """The talker's facts; ModelError for a variant that is not computed here."""
    given = part(config, TALKER)
    rope = dict(given.get("rope_scaling") or {})
    kinds = {rope.pop(key, None) for key in ("rope_type", "type")} - {None, "default"}
    if kinds or rope.keys() - {"mrope_section", "interleaved"}:
        raise ModelError(f"config.json: rope_scaling={given['rope_scaling']!r} is not supported; only 'default' is")
    texts = {name: given.get(name, usual) for name, usual in (("text_vocab_size", 151936), ("text_hidden_size", 2048))}
    return TalkerFacts(_layers(given, TALKER), **texts)


def predictor_of(config: Mapping[str, Any]) -> PredictorFacts:
    """The predictor's facts; ModelError for a variant that is not computed here."""
    talker = part(config, TALKER)
    given = part(talker, PREDICTOR)
    if given.get("rope_scaling") is not None:
        raise ModelError(f"config.json: rope_scaling={given['rope_scaling']!r} of {PREDICTOR} is not supported")
    groups = given.get("num_code_groups", talker.get("num_code_groups"))
    if not isinstance(groups, int) or groups < 2 or groups != talker.get("num_code_groups", groups):
        raise ModelError(f"config.json: num_code_groups={groups!r} of {PREDICTOR} is not that of {TALKER}, or below 2")
    return PredictorFacts(_layers(given, PREDICTOR), int(talker["hidden_size"]), groups)


def _layers(given: Mapping[str, Any], where: str) -> Qwen3Config:
    known = {name: given[name] for name in (*LAYERS, *FIXED) if name in given}
    if "head_dim" not in known and {"hidden_size", "num_attention_heads"} <= known.keys():
        known["head_dim"] = known["hidden_size"] // known["num_attention_heads"]
    return read_facts(Qwen3Config, known, f"config.json, {where}", FIXED)
