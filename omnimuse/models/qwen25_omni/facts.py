"""What the config.json of a Qwen2.5-Omni checkpoint says of its networks. No torch.

The published files carry every setting that transformers has, so keys that nobody here knows are passed over; those
that would change the arithmetic are known, and refused at another value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from omnimuse.components.answering_facts import TALKER, TEXT, THINKER, text_of
from omnimuse.components.qwen3_facts import Qwen3Config, layers_of, rotation
from omnimuse.core.errors import ModelError
from omnimuse.loader.facts import part

FIXED: Mapping[str, Sequence[Any]] = {"hidden_act": ("silu",), "use_sliding_window": (False,)}
SECTIONS = (16, 24, 24)


@dataclass(frozen=True)
class Qwen2Config(Qwen3Config):
    """The facts of a decoder whose queries, keys and values have biases and no norms."""

    norms_heads: ClassVar[bool] = False
    biased: ClassVar[bool] = True


@dataclass(frozen=True)
class DecoderFacts:
    """A decoder's layers; how many pairs of a head turn by time, by height and by width."""

    layers: Qwen2Config
    sections: tuple[int, ...]


def thinker_of(config: Mapping[str, Any]) -> DecoderFacts:
    """The thinker's facts; ModelError for a variant that is not computed here."""
    return _decoder(text_of(config), f"{THINKER}, {TEXT}")


def talker_of(config: Mapping[str, Any]) -> DecoderFacts:
    """The talker's facts; ModelError for a variant that is not computed here."""
    return _decoder(part(config, TALKER), TALKER)


def _decoder(given: Mapping[str, Any], where: str) -> DecoderFacts:
    theta, sections = rotation(given, where, SECTIONS, woven=False)
    layers = layers_of(Qwen2Config, given, where, theta, FIXED)
    if sum(sections) != layers.head_dim // 2:
        raise ModelError(f"config.json, {where}: mrope_section={sections} is not half of a head of {layers.head_dim}")
    return DecoderFacts(layers, sections)
