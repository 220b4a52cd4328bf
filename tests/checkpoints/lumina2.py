"""Tiny random checkpoints of Lumina-Image 2.0, in the layout that diffusers saves: `build(folder)`.

Transformer of width 48 (4 heads of 12, of which two share keys; one refiner of either kind and two blocks), Gemma 2 of
width 24, 8-channel VAE with factor 8.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, of_picture, reference_of

TEXT_WIDTH = 24


def tokenizer() -> GemmaTokenizer:
    """One token a byte or letter, after one that begins every text; pads on the left."""
    letters = [*encoders.LETTERS, "▁", ".", ","]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return GemmaTokenizer(vocab=vocab, merges=[], model_max_length=512, add_bos_token=True)


def text_encoder() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=len(tokenizer()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=1024,
        sliding_window=64,
        query_pre_attn_scalar=12,
    )
    return Gemma2Model(config)


def transformer() -> Lumina2Transformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=8,
        hidden_size=48,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=32,
        ffn_dim_multiplier=0.7,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=TEXT_WIDTH,
    )


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "text_encoder", seed, text_encoder)
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, lambda: parts.kl_autoencoder(8))
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", {"shift": 6.0})
    components = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "Gemma2Model"),
        "tokenizer": ("transformers", "GemmaTokenizerFast"),
        "transformer": ("diffusers", "Lumina2Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
    }
    parts.write_index(folder, "Lumina2Pipeline", components)
    return folder


def _asked(params: DiffusionParams, tokens: int, **extra: object) -> DiffusionParams:
    return replace(params, max_sequence_length=tokens, extra=extra)


FAMILIES = (
    Family(
        arch="Lumina2Pipeline",
        build=build,
        wishes=(
            Wish("a red circle", "blurry, grey", _asked(of_picture(4, 4.0, 64, 64, 7), 256)),
            Wish(
                "two squares and a long story about them " * 6,
                None,
                _asked(of_picture(3, 1.0, 96, 64, 8), 60, system_prompt="Draw:"),
            ),
            Wish(
                "a star",
                None,
                _asked(of_picture(5, 5.0, 32, 48, 9), 60, cfg_trunc_ratio=0.6, cfg_normalization=False),
            ),
            Wish("a cross", "", _asked(of_picture(6, 3.0, 48, 64, 10), 60, cfg_trunc_ratio=0.34, system_prompt="")),
        ),
        reference=reference_of(Lumina2Pipeline),
        unable=EULER,
    ),
)
