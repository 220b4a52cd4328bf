"""A tiny random checkpoint of the HiDream-I1 kind, in the layout that diffusers saves: `build(folder)`.

No family of ours covers it: `tools/compat_check.py` has it drawn by a pipeline of others. Transformer of width 32 (2
heads of 16, a block of two streams and one of one, four experts), two CLIP text encoders, T5, a Llama of two layers
whose tokenizer lies beside it, too, and a VAE of factor 2, for such pipelines draw 16384 cells whatever is asked. All
weights are stored in bfloat16, as published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.checkpoints import encoders, parts, stable_diffusion_3
from tests.checkpoints.wishes import Family, Wish, drawn, of_picture

LLAMA = "text_encoder_4"
LLAMA_WIDTH = 32
LONGEST = 248


def transformer() -> HiDreamImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[encoders.TEXT_WIDTH, LLAMA_WIDTH],
        text_emb_dim=sum(width // 2 * 3 for width in stable_diffusion_3.WIDTHS),
        axes_dims_rope=(8, 4, 4),
        llama_layers=[0, 1],
    )


def words() -> PreTrainedTokenizerFast:
    """One token per word of the prompts."""
    texts = ["<|start|>", "<|end|>", "<unk>", *dict.fromkeys(parts.PROMPT_WORDS.split())]
    tokenizer = Tokenizer(models.WordLevel({text: number for number, text in enumerate(texts)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", unk_token="<unk>", model_max_length=256
    )


def llama(vocabulary: int) -> LlamaForCausalLM:
    """A language model, of which the hidden states of every layer are read."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=LLAMA_WIDTH,
        intermediate_size=2 * LLAMA_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def clip_encoder(vocabulary: int, width: int) -> CLIPTextModelWithProjection:
    """As published, with more places than others have."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LONGEST,
        projection_dim=width // 2 * 3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def build(folder: Path, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    clip, t5, fourth = encoders.clip_tokenizer(), encoders.t5_tokenizer(), words()
    clip.model_max_length = LONGEST
    tokenizers = {"tokenizer": clip, "tokenizer_2": clip, "tokenizer_3": t5, "tokenizer_4": fourth, LLAMA: fourth}
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
    for name, width in zip(("text_encoder", "text_encoder_2"), stable_diffusion_3.WIDTHS, strict=True):
        parts.save_module(folder, name, seed, partial(clip_encoder, len(clip), width))
    parts.save_module(folder, "text_encoder_3", seed, partial(encoders.t5_encoder, len(t5)))
    parts.save_module(folder, LLAMA, seed, partial(llama, len(fourth)))
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, partial(parts.kl_autoencoder, widths=(16, 32)))
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_3": ("transformers", "T5EncoderModel"),
        LLAMA: ("transformers", "LlamaForCausalLM"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "CLIPTokenizer"),
        "tokenizer_3": ("transformers", "T5Tokenizer"),
        "tokenizer_4": ("transformers", "PreTrainedTokenizerFast"),
        "transformer": ("diffusers", "HiDreamImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "HiDreamImagePipeline", components)
    for path in folder.rglob("*.safetensors"):
        weights = load_file(path)
        save_file({name: each.bfloat16() for name, each in weights.items()}, path, {"format": "pt"})
        if path.parent.name.startswith("text_encoder"):
            config = path.with_name("config.json")
            config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    return folder


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What diffusers make of every wish, computing in `dtype`."""
    pipe = HiDreamImagePipeline.from_pretrained(folder, dtype=dtype)
    return [drawn(pipe, wish, output_type) for wish in wishes]


OTHERS = (
    Family(
        arch="HiDreamImagePipeline",
        build=build,
        wishes=(Wish("a red circle", "grey", of_picture(1, 4.0, 64, 64, 7)),),
        reference=reference,
    ),
)
"""What the check of borrowed pipelines has besides the families of ours."""
