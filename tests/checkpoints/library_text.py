"""Tiny random language models of classes that no family here knows, in the layout that transformers saves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from omnimuse.loader.components import quiet
from tests.checkpoints import parts
from tests.checkpoints.qwen3 import CHOICES, PROMPTS, prompt_ids, theirs
from tests.checkpoints.wishes import Writer

ARCH = "AutoModelForCausalLM"
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 2048}
SHARED = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2}
CLASSES: Mapping[str, Mapping[str, Any]] = {
    "Llama": SHARED,
    "Mistral": {**SHARED, "sliding_window": 40},
    "Gemma2": {**SHARED, "head_dim": 16, "sliding_window": 40, "query_pre_attn_scalar": 24, "num_hidden_layers": 4},
    "Gemma3": {
        **SHARED,
        "intermediate_size": 101,
        "head_dim": 16,
        "sliding_window": 40,
        "sliding_window_pattern": 2,
        "num_hidden_layers": 4,
    },
    "Phi3": {**SHARED, "sliding_window": 150},
    "GPTNeoX": {**SIZES, "num_hidden_layers": 3, "rotary_pct": 0.5},
    "Olmo2": SHARED,
    "Granite": {**SHARED, "attention_multiplier": 0.1, "logits_scaling": 4.0, "residual_multiplier": 0.7},
    "Qwen2": SHARED,
    "SmolLM3": {**SHARED, "no_rope_layers": [1, 0, 1]},
    "GPT2": {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 2048},
}
"""What makes a configuration of each small: windows are shorter than what is read in a step, or than a prompt, and
activations end within a vector."""
ENDS = ("eos_token_id", "bos_token_id", "pad_token_id")


def facts(name: str, vocabulary: int, end: int = 0) -> dict[str, Any]:
    """What makes the configuration of the class that begins with `name` small."""
    return {**CLASSES[name], "vocab_size": vocabulary, **dict.fromkeys(ENDS, end)}


def build(folder: Path, name: str, seed: int = 0) -> Path:
    """Writes the checkpoint of the class that begins with `name` into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    kind = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    told = facts(name, len(tokenizer), end)
    with quiet("transformers"):
        model: Any = parts.filled("model", seed, parts.unfilled(lambda: kind(kind.config_class(**told))))
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.7, top_k=20, top_p=0.9, eos_token_id=[end]
        )
        model.save_pretrained(folder)
    return folder


def generated(folder: Path, prompt: Any, seed: int, choices: Mapping[str, Any]) -> list[int]:
    """The tokens that `generate` of transformers writes after a prompt, with all random numbers from `seed`."""
    with quiet("transformers"):
        kind = transformers.AutoModelForCausalLM
        model: Any = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([prompt_ids(folder, prompt)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **theirs(choices))
    return [int(token) for token in found[0, ids.shape[1] :]]


EVERY = tuple(
    Writer(
        arch=ARCH,
        kind=name,
        build=partial(build, name=name),
        prompts=PROMPTS,
        choices=CHOICES,
        reference=generated,
    )
    for name in CLASSES
)
WRITERS = EVERY[:1]
"""Of all of them that with which everything else is crossed."""
