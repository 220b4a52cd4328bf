"""GLM-Image's language model: it reads a prompt and pictures, and writes what is in a picture, one token for a patch.

The arithmetic is that of transformers' `GlmImageForConditionalGeneration`; the frame is `components/decoder.py`.
Pictures are tokens among others: a vision tower and a codebook make them (`vision.py`). A token has a place on three
axes, of which each turns some pairs of a head; the rest of a head does not turn.

Letters: S tokens of a row, D width, H head dim, P pairs that turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from omnimuse.ar.kv import Reading
from omnimuse.ar.remembering import Conditions
from omnimuse.components.decoder import DecoderLayer, JoinedMLP
from omnimuse.components.picture_codes import Codebook, StretchedTower
from omnimuse.components.qwen3_facts import IRRELEVANT, ROPE, Qwen3Config, rotation
from omnimuse.components.sights import PlacedDecoder, in_turn
from omnimuse.core.errors import ModelError
from omnimuse.layers.norm import RMSNorm
from omnimuse.loader.facts import read_facts
from omnimuse.models.glm_image.vision import codebook_of, tower_of

WHERE = "vision_language_encoder/config.json"
FIXED = {"model_type": ("glm_image_text",), "hidden_act": ("silu",), "layer_types": (None,), "attention_bias": (True,)}


@dataclass(frozen=True)
class LanguageConfig(Qwen3Config):
    """The facts in the part `text_config` of the checkpoint's config.json; defaults are those of the published 9B.

    Of the pairs of a head as many turn as `sections` are together.
    """

    norms_heads: ClassVar[bool] = False
    biased: ClassVar[bool] = True

    vocab_size: int = 168064
    hidden_size: int = 4096
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    vision_vocab_size: int = 16512
    sections: tuple[int, ...] = (8, 12, 12)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], where: str = WHERE) -> LanguageConfig:
        """Read the part's contents; raises ModelError for a variant that this file does not compute."""
        rope = {"rope_theta": cls.rope_theta, **(config.get("rope_parameters") or {})}
        share = rope.pop("partial_rotary_factor", 1.0)
        theta, sections = rotation({**config, "rope_parameters": rope}, "text_config", cls.sections, woven=False)
        width, heads = config.get("hidden_size", cls.hidden_size), config.get("num_attention_heads", 32)
        told = {"rope_theta": theta, "sections": sections, "head_dim": config.get("head_dim") or width // heads}
        found = read_facts(cls, {**config, **told}, where, FIXED, IRRELEVANT | set(ROPE))
        turned = int(found.head_dim * share)
        if 2 * sum(sections) != turned:
            raise ModelError(f"{where}: mrope_section={sections} does not share out {turned // 2} pairs of a head")
        return found


class GlmImageWriter(PlacedDecoder):
    """Tokens, their places and what came before them -> logits of the next token of a picture."""

    def __init__(self, config: LanguageConfig, vision: StretchedTower, codebook: Codebook) -> None:
        super().__init__(config, partial(GlmImageLayer, config), in_turn(config.sections))
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vision_vocab_size, bias=False)
        self.vision = vision
        self.codebook = codebook

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GlmImageWriter:
        """The language model that a checkpoint's config.json describes."""
        parts = {name: config.get(name) or {} for name in ("text_config", "vision_config", "vq_config")}
        vision, codebook = tower_of(parts["vision_config"]), codebook_of(parts["vq_config"])
        return cls(LanguageConfig.from_dict(parts["text_config"]), vision, codebook)

    def see(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """The tokens of a picture, int64 [rows * columns], from its patches, row by row, [rows * columns, *]."""
        return self.codebook(self.vision(patches, rows, columns))

    def enter(self, given: Tensor, cond: Conditions) -> Tensor:
        return self.embed_tokens(given)

    def say(self, rows: Sequence[Reading], last: Tensor) -> Tensor:
        return self.head(last)


class GlmImageLayer(DecoderLayer):
    """The same, but that what attention and MLP give is normed, too, before it is added."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__(config, layer, JoinedMLP(config.hidden_size, config.intermediate_size))
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, cond: Conditions) -> Tensor:
        hidden = hidden + self.post_self_attn_layernorm(self.self_attn(self.input_layernorm(hidden), cond))
        return hidden + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(hidden)))
