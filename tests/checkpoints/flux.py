"""Tiny random checkpoints of the FLUX.1 kind, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two double and two single blocks), CLIP and T5 text encoders of width 32 and 24
with tokenizers of their own, 16-channel VAE with factor 8.
"""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import FluxTransformer2DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from tests.checkpoints import parts

POOLED_WIDTH = 32
TEXT_WIDTH = 24
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-"


def clip_tokenizer() -> CLIPTokenizer:
    """Lower case, words that end in `</w>`, 77 tokens; `<|endoftext|>` also pads and has the highest id."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=100_000, min_frequency=1, show_progress=False, end_of_word_suffix="</w>")
    trained.train_from_iterator([parts.PROMPT_WORDS], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer(longest: int = 512) -> T5Tokenizer:
    """One piece per word of the prompts, letters for all others, `<unk>` for what is left; `longest` tokens."""
    words = dict.fromkeys(parts.PROMPT_WORDS.split())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -6.0) for word in words] + [(letter, -8.0) for letter in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=longest)


def transformer(guidance: bool = True) -> FluxTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )


def clip_encoder(vocabulary: int) -> CLIPTextModel:
    """As published: an end token of 2 that no vocabulary has, so the highest id of a prompt is taken for its end."""
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=POOLED_WIDTH,
        intermediate_size=2 * POOLED_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def t5_encoder(vocabulary: int, width: int = TEXT_WIDTH) -> T5EncoderModel:
    """An encoder as T5 v1.1 has it: gated GELU, no tied head."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def build(folder: Path, *, schnell: bool = False, seed: int = 0, arch: str = "FluxPipeline") -> Path:
    """Writes the checkpoint into `folder` and returns it.

    The dev kind has a guidance embedding and a dynamic shift; `schnell` has neither. Other pipelines (`arch`) have the
    same components.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    clip.save_pretrained(folder / "tokenizer")
    t5.save_pretrained(folder / "tokenizer_2")
    parts.save_module(folder, "transformer", seed, lambda: transformer(guidance=not schnell))
    parts.save_module(folder, "text_encoder", seed, lambda: clip_encoder(len(clip)))
    parts.save_module(folder, "text_encoder_2", seed, lambda: t5_encoder(len(t5)))
    parts.save_module(folder, "vae", seed, parts.kl_autoencoder)
    shift = {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", shift)
    components = {
        "feature_extractor": None,
        "image_encoder": None,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "tokenizer_2": ("transformers", "T5TokenizerFast"),
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, arch, components)
    return folder
