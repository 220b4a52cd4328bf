"""GLM-Image's language model: it reads a prompt and pictures, and writes what is in a picture, one token for a patch.

The arithmetic is that of transformers' `GlmImageForConditionalGeneration`, of its `GlmImageVisionModel` and of the
encoding half of its `GlmImageVQVAE`; the frame is `components/picture_codes.py`. A token has a place on three axes, of
which each turns some pairs of a head; the rest of a head does not turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from omnimuse.components.decoder import DecoderLayer, JoinedMLP
from omnimuse.components.picture_codes import Codebook, CodebookConfig, PictureWriter, StretchedTower, TowerConfig
from omnimuse.components.qwen3_facts import IRRELEVANT, ROPE, Qwen3Config, rotation
from omnimuse.components.sights import in_turn
from omnimuse.core.errors import ModelError
from omnimuse.layers.norm import RMSNorm
from omnimuse.loader.facts import read_facts

WHERE = "vision_language_encoder/config.json"
FIXED = {"model_type": ("glm_image_text",), "hidden_act": ("silu",), "layer_types": (None,), "attention_bias": (True,)}
FIXED_VISION = {"model_type": ("glm_image_vision",), "hidden_act": ("gelu",), "spatial_merge_size": (1,)}
FIXED_CODES = {"model_type": ("glm_image_vqmodel",), "in_channels": (3,)}
IGNORED = ("initializer_range", "attention_dropout", "dtype", "torch_dtype", "transformers_version")


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


class GlmImageWriter(PictureWriter):
    """A decoder of such layers; its eyes are described beside it in config.json."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GlmImageWriter:
        text, vision, codes = (config.get(f"{name}_config") or {} for name in ("text", "vision", "vq"))
        eyes = (
            StretchedTower(read_facts(TowerConfig, vision, WHERE, FIXED_VISION, IGNORED)),
            Codebook(read_facts(CodebookConfig, codes, WHERE, FIXED_CODES, IGNORED)),
        )
        found = LanguageConfig.from_dict(text)
        make, axes = partial(GlmImageLayer, found), in_turn(found.sections)
        return cls(found, make, axes, found.vision_vocab_size, eyes)


class GlmImageLayer(DecoderLayer):
    """The same, but that what attention and MLP give is normed, too, before it is added."""

    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__(config, layer, JoinedMLP(config.hidden_size, config.intermediate_size))
        self.post_self_attn_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def answered(self, hidden: Tensor, seen: Tensor) -> Tensor:
        hidden = hidden + self.post_self_attn_layernorm(self.self_attn.o_proj(seen))
        return hidden + self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(hidden)))

    pieces = (DecoderLayer.made, answered)
