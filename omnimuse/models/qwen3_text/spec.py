"""Facts about Qwen3's dense language models, without torch. Source: their published config.json (arXiv 2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from omnimuse.components.entries import longest_of
from omnimuse.core.params import DiffusionParams, GenerationParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant, calls

NO_PICTURE = "what comes out is text"
REFUSES: Mapping[str, str] = MappingProxyType(
    {
        "num_inference_steps": "a text has as many steps as tokens; use max_tokens",
        "height": NO_PICTURE,
        "width": NO_PICTURE,
        "max_sequence_length": "the whole prompt is read; max_tokens bounds what is written",
        "output_type": "a text has one form",
        "cache": "no step of a text can be skipped",
    }
)
"""What no model that writes is asked for, and why."""


def limits(configs: Configs) -> Limits:
    """So many tokens are read and written in all."""
    longest = longest_of(configs["model"])
    able = calls(configs)
    return Limits(size_multiple=1, max_side=1, max_sequence_length=longest, refuses=REFUSES, calls=able)


DEFAULTS = DiffusionParams(num_outputs_per_prompt=1, output_type="pil")
PUBLISHED = (
    *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B")),
    *(f"Qwen/Qwen3-{size}-Base" for size in ("0.6B", "1.7B", "4B", "8B", "14B")),
    "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen3-4B-Thinking-2507",
)

SPEC = Spec(
    arch="Qwen3ForCausalLM",
    family="qwen3_text",
    summary="Qwen3, dense: text from a prompt or a conversation",
    tasks=("text-to-text",),
    components={
        "model": Component(
            ("Qwen3ForCausalLM",),
            network="omnimuse.models.qwen3_text.transformer:Qwen3Decoder",
            rules="omnimuse.models.qwen3_text.weights:RULES",
        ),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
    },
    defaults=DEFAULTS,
    supported=frozenset(),
    limits=limits,
    extra=GenerationParams,
    variants=(Variant("Qwen3", PUBLISHED, DEFAULTS),),
)
