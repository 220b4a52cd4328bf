"""Tiny random Qwen3 language models in the layout that transformers saves, and what `generate` makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from omnimuse.loader.components import quiet
from tests.checkpoints import parts
from tests.checkpoints.wishes import Writer

WIDTH, LAYERS, HEAD, LONGEST = 64, 3, 16, 2048


def language_model(
    vocabulary: int, tied: bool, end: int, width: int = WIDTH, layers: int = LAYERS, head: int = HEAD
) -> Qwen3ForCausalLM:
    """Four heads, two of keys and values."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=head,
            max_position_embeddings=LONGEST,
            tie_word_embeddings=tied,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def build(
    folder: Path, *, tied: bool = False, seed: int = 0, width: int = WIDTH, layers: int = LAYERS, head: int = HEAD
) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = language_model(len(tokenizer), tied, end, width, layers, head)
    parts.filled("model", seed, model)
    model.config.architectures = ["Qwen3ForCausalLM"]
    model.config.save_pretrained(folder)
    kept = {
        name: value.contiguous() for name, value in model.state_dict().items() if not tied or name != "lm_head.weight"
    }
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    GenerationConfig(do_sample=True, temperature=0.7, top_k=20, top_p=0.9, eos_token_id=[end]).save_pretrained(folder)
    return folder


NAMES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "suppressed": "suppress_tokens"}
"""How transformers calls what we call otherwise."""


def generated(
    folder: Path, prompt: str | Sequence[Mapping[str, str]], seed: int, choices: Mapping[str, Any]
) -> list[int]:
    """The tokens that `generate` of transformers writes after a prompt, with all random numbers from `seed`."""
    with quiet("transformers"):
        model: Any = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt_ids(folder, prompt)])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **theirs(choices))
    return [int(token) for token in found[0, ids.shape[1] :]]


def theirs(choices: Mapping[str, Any]) -> dict[str, Any]:
    """Choices as transformers' `generate` takes them."""
    found = {
        NAMES.get(name, name): list(value) if isinstance(value, tuple) else value for name, value in choices.items()
    }
    if found.get("temperature") == 0:
        found |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return found


def prompt_ids(folder: Path, prompt: str | Sequence[Mapping[str, Any]], template: str | None = None) -> list[int]:
    """The tokens of a text as it stands, or of a conversation, by transformers; perhaps by a template of its own."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if isinstance(prompt, str):
        return list(tokenizer(prompt).input_ids)
    how = {"add_generation_prompt": True, "return_dict": False, "chat_template": template}
    return list(tokenizer.apply_chat_template(prompt, **how))


PROMPTS = (
    "a red circle on a",
    [{"role": "system", "content": "be short"}, {"role": "user", "content": "a green star"}],
    "one two three " * 150,
)
CHOICES: tuple[Mapping[str, Any], ...] = (
    {"temperature": 0, "max_tokens": 24},
    {"max_tokens": 12},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2, "max_tokens": 18},
    {"temperature": 1.5, "top_k": 0, "top_p": 0.5, "min_tokens": 9, "suppressed": (3, 5), "max_tokens": 10},
    {"temperature": 0, "repetition_penalty": 1.3, "max_tokens": 16},
)
WRITERS = tuple(
    Writer(
        arch="Qwen3ForCausalLM",
        kind="tied" if tied else "",
        build=partial(build, tied=tied),
        prompts=PROMPTS,
        choices=CHOICES,
        reference=generated,
    )
    for tied in (False, True)
)
