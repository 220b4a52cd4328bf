"""The Mistral language model as a text encoder (arXiv 2310.06825): hidden states of a prompt, no next token.

The arithmetic is that of transformers' `MistralModel`: that of Qwen3 without norms of queries and keys. Of a model that
reads pictures, too, only the part that reads texts is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omnimuse.components.qwen3_facts import IRRELEVANT, ROPE, WHERE, Qwen3Config, rope_theta
from omnimuse.loader.facts import read_facts
from omnimuse.loader.rules import Drop, Rename

RULES: tuple[Rename | Drop, ...] = (
    Drop(r"(^|\.)(lm_head|vision_tower|multi_modal_projector)\."),
    Rename(r"^(model\.)?language_model\.", ""),
    Rename(r"^model\.", ""),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
)
"""How tensors in a published checkpoint are called here, saved by transformers before 5 or since."""

FIXED: Mapping[str, Any] = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "sliding_window": None,
    "quantization_config": None,
}
"""What a configuration may say in one way only."""


@dataclass(frozen=True)
class MistralConfig(Qwen3Config):
    """The facts in the checkpoint's text_encoder/config.json; of a model that reads pictures, in its `text_config`."""

    norms_heads: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = WHERE) -> MistralConfig:
        """Read config.json's contents; raises ModelError for a variant that this file does not compute."""
        texts = config.get("text_config") or config
        fixed = {key: (None, value) for key, value in FIXED.items()}
        ignored = (IRRELEVANT | set(ROPE)) - {"sliding_window"}
        return read_facts(cls, {**texts, "rope_theta": rope_theta(texts, where)}, where, fixed, ignored)
