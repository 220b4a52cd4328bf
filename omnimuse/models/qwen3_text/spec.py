"""Facts about Qwen3's dense language models, without torch. Source: their published config.json (arXiv 2505.09388)."""

from __future__ import annotations

from omnimuse.components.entries import ONE, longest_of, writing
from omnimuse.core.params import GenerationParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant


def limits(configs: Configs) -> Limits:
    """So many tokens are read and written in all."""
    return writing(configs, longest_of(configs["model"]))


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
    defaults=ONE,
    supported=frozenset(),
    limits=limits,
    extra=GenerationParams,
    variants=(Variant("Qwen3", PUBLISHED, ONE),),
)
