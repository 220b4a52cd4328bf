"""Text encoders in one GGUF file, as llama.cpp's converters write them: `write` makes one of a component's folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from tests.checkpoints import gguf_file
from tests.checkpoints.single_file import Tensors, weights

ARCHITECTURES = {
    "t5": "t5encoder",
    "umt5": "t5encoder",
    "qwen3": "qwen3",
    "qwen2_5_vl_text": "qwen2vl",
    "mistral": "llama",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
"""What such files call the models that transformers calls so."""
T5 = {
    "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
    **{f"layer.0.SelfAttention.{letter}": f"attn_{letter}" for letter in "qkvo"},
    "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm",
    "layer.1.DenseReluDense.wi_0": "ffn_gate",
    "layer.1.DenseReluDense.wi_1": "ffn_up",
    "layer.1.DenseReluDense.wi": "ffn_up",
    "layer.1.DenseReluDense.wo": "ffn_down",
}
LAYER = {
    **{f"self_attn.{letter}_proj": f"attn_{letter}" for letter in "qkv"},
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA = {
    **LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ENDS = {
    "shared": "token_embd",
    "embed_tokens": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "norm": "output_norm",
    "lm_head": "output",
}


def text_config(folder: Path) -> Any:
    """The configuration of the part that reads."""
    return AutoConfig.from_pretrained(folder).get_text_config()


def architecture(folder: Path) -> str:
    """What a file of the encoder in `folder` says that it is; empty where there are none."""
    return ARCHITECTURES.get(text_config(folder).model_type, "")


def write(path: Path, folder: Path, kind: str = "", kind_of: Callable[[str, Tensor], str] = gguf_file.usual) -> Path:
    """The encoder in `folder`, in several formats, as of its own architecture or that `kind`."""
    config = text_config(folder)
    tensors = named(weights(folder), config)
    return gguf_file.write(path, tensors, kind_of, kind or architecture(folder), facts(config))


def named(library: Tensors, config: Any) -> Tensors:
    """Its tensors in the names of llama.cpp, and as it keeps them; without towers that look."""
    found: Tensors = {}
    for name, tensor in library.items():
        if (called := called_there(name, config.model_type)) is None:
            continue
        if heads := turned(called, config):
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        if config.model_type.startswith("gemma") and called.endswith("norm.weight"):
            tensor = tensor + 1
        found[called] = tensor
    return found


def turned(called: str, config: Any) -> int:
    """How many heads there are whose rows it turns around; 0 where it turns none."""
    if config.model_type != "mistral" or not re.search(r"attn_[qk]\.", called):
        return 0
    heads: int = config.num_key_value_heads if ".attn_k." in called else config.num_attention_heads
    return heads


def called_there(name: str, model: str) -> str | None:
    """What llama.cpp calls a tensor of a `model` of transformers; None for one that its files do not have."""
    if re.search(r"(^|\.)(visual|vision_tower|multi_modal_projector)\.", name):
        return None
    stem, _, suffix = re.sub(r"^(model\.)?(language_model\.)?(model\.)?", "", name).rpartition(".")
    if match := re.fullmatch(r"encoder\.block\.(\d+)\.(.*)", stem):
        return f"enc.blk.{match[1]}.{T5[match[2]]}.{suffix}"
    if match := re.fullmatch(r"layers\.(\d+)\.(.*)", stem):
        return f"blk.{match[1]}.{(GEMMA if model.startswith('gemma') else LAYER)[match[2]]}.{suffix}"
    return f"{ENDS[stem]}.{suffix}" if stem != "encoder.embed_tokens" else None


def facts(config: Any) -> Mapping[str, int | float]:
    """What such a file tells of its model, as far as transformers asks."""
    if config.model_type in ("t5", "umt5"):
        return {
            "block_count": config.num_layers,
            "embedding_length": config.d_model,
            "feed_forward_length": config.d_ff,
            "attention.head_count": config.num_heads,
            "attention.key_length": config.d_kv,
            "attention.layer_norm_epsilon": config.layer_norm_epsilon,
            "attention.relative_buckets_count": config.relative_attention_num_buckets,
            "vocab_size": config.vocab_size,
        }
    rope = config.rope_parameters
    return {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim if hasattr(config, "head_dim") else 0,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope.get("rope_theta", 1e6)),
        "vocab_size": config.vocab_size,
    }


def stands_for(file: Path, folder: Path) -> Tensors:
    """What the tensors in `file` stand for, by the names in `folder`, which it was made of."""
    config, exact = text_config(folder), gguf_file.exact(file)
    found: Tensors = {}
    for name in weights(folder):
        if (called := called_there(name, config.model_type)) is None:
            continue
        tensor = exact[called]
        if heads := turned(called, config):
            tensor = tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        found[name] = tensor - 1 if config.model_type.startswith("gemma") and called.endswith("norm.weight") else tensor
    return found
