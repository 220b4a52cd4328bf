"""What the config.json of a Qwen3-Omni checkpoint says of its networks. No torch.

The published files carry every setting that transformers has, so keys that nobody here knows are passed over; those
that would change the arithmetic are known, and refused at another value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnimuse.components.answering_facts import TALKER, TEXT, THINKER, speaks, text_of
from omnimuse.components.experts_facts import ExpertsFacts, experts_of
from omnimuse.components.qwen3_facts import PredictorFacts, Qwen3Config, layers_of, predictor_of, rotation
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import part

PREDICTOR = "code_predictor_config"
FIXED: Mapping[str, Sequence[Any]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "decoder_sparse_step": (1,),
    "sliding_window": (None,),
}


@dataclass(frozen=True)
class DecoderFacts:
    """A decoder's layers and their experts; how many pairs of a head turn by time, by height and by width."""

    layers: Qwen3Config
    experts: ExpertsFacts
    sections: tuple[int, ...]


@dataclass(frozen=True)
class TalkerFacts:
    """The talker's layers, how wide what is asked beside the experts is, and what it hears of the thinker, and makes of
    that: widths.
    """

    decoder: DecoderFacts
    shared: int
    heard: int
    between: int


def thinker_of(config: Mapping[str, Any]) -> DecoderFacts:
    """The thinker's facts; ModelError for a variant that is not computed here."""
    return _decoder(text_of(config), f"{THINKER}, {TEXT}")


def accepted(config: Mapping[str, Any]) -> int:
    """Behind so many layers of the thinker the talker hears of what is shown; 0: there is no talker."""
    if not speaks(config):
        return 0
    layers, found = thinker_of(config).layers.num_hidden_layers, part(config, TALKER).get("accept_hidden_layer", 18)
    if not 0 < found < layers:
        raise ModelError(f"config.json, {TALKER}: accept_hidden_layer={found!r} is none between {layers} layers")
    return int(found)


def talker_of(config: Mapping[str, Any]) -> TalkerFacts:
    """The talker's facts; ModelError for a variant that is not computed here."""
    talker = part(config, TALKER)
    given, where = {"norm_topk_prob": False, **part(talker, TEXT)}, f"{TALKER}, {TEXT}"
    needed = ("shared_expert_intermediate_size", "intermediate_size")
    if absent := [name for name in needed if name not in given]:
        raise ModelError(f"config.json, {where} has no {absent[0]}; use a complete checkpoint")
    shared, between = (given[name] for name in needed)
    return TalkerFacts(_decoder(given, where), shared, talker.get("thinker_hidden_size", 2048), between)


def predictor_facts(config: Mapping[str, Any]) -> PredictorFacts:
    """The predictor's facts; ModelError for a variant that is not computed here."""
    talker = part(config, TALKER)
    return predictor_of(talker, TALKER, PREDICTOR, int(part(talker, TEXT)["hidden_size"]), FIXED)


def _decoder(given: Mapping[str, Any], where: str) -> DecoderFacts:
    if given.get("mlp_only_layers"):
        raise ModelError(
            f"config.json, {where}: mlp_only_layers={given['mlp_only_layers']!r} is not supported; only [] is"
        )
    theta, sections = rotation(given, where, woven=True)
    return DecoderFacts(layers_of(Qwen3Config, given, where, theta, FIXED), experts_of(given, where), sections)
