"""The text encoder and the transformer of the model of films: the published layout of Wan, small, and its tokenizer.

Letters: B films, L text tokens, f h w latents (3, 8, 8), C channels.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from tools.train_shapes.data import COLOURS
from tools.train_shapes.film import BACKGROUNDS, SHAPES, WORDS
from tools.train_shapes.film_vae import CHANNELS
from tools.train_shapes.network import attend

LENGTH = 32
"""Text tokens that the transformer reads, padded with zeros."""
TEXT_WIDTH = 128
TRANSFORMER_CONFIG = {
    "num_attention_heads": 4,
    "attention_head_dim": 40,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 128,
    "ffn_dim": 640,
    "num_layers": 6,
    "rope_max_seq_len": 64,
}
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'-"


def build_tokenizer() -> T5Tokenizer:
    """One piece per word of the captions, capital or not; letters for all others, `<unk>` for what is left."""
    told = chain.from_iterable(text.split() for text in (*WORDS, *COLOURS, *SHAPES, *BACKGROUNDS))
    words = dict.fromkeys(form for word in sorted({*told} - {"{}"}) for form in (word, word.capitalize()))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -6.0) for word in words] + [(letter, -8.0) for letter in _LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """The caption encoder."""
    config = UMT5Config(
        vocab_size=-(-vocabulary // 32) * 32,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    model = UMT5EncoderModel(config)
    nn.init.normal_(model.shared.weight, std=1.0)
    return model


def build_transformer() -> WanTransformer3DModel:
    """The denoiser; what it says is nothing at first."""
    model = WanTransformer3DModel(**TRANSFORMER_CONFIG)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    for part in (model.condition_embedder.time_proj, *(block.attn1.to_out[0] for block in model.blocks)):
        nn.init.normal_(part.weight, std=0.02)
    for block in model.blocks:
        nn.init.normal_(block.scale_shift_table, std=0.02)
        block.scale_shift_table.data[:, [2, 5]] += 1.0  # gates
    return model


class PlainAttention:
    """The reference's processor by plain products, whose backward takes a fifth of the fused one's time on a CPU."""

    def __call__(
        self, attn: Any, x: Tensor, context: Tensor | None = None, mask: None = None, angles: Any = None
    ) -> Tensor:
        told = x if context is None else context
        q, k = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(told))
        q, k, v = (part.unflatten(2, (attn.heads, -1)) for part in (q, k, attn.to_v(told)))  # [B, S, N, H]
        if angles is not None:
            cos, sin = angles
            q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        return attn.to_out[0](attend(q, k, v, causal=False))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on interleaved pairs; x [B, S, N, H], cos and sin [1, S, 1, H]."""
    low, high = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([low * cos - high * sin, low * sin + high * cos], -1).flatten(-2).to(x.dtype)


class FilmNetwork(nn.Module):
    """Captions and noisy latents to what the transformer predicts: noise less data."""

    def __init__(self, text_encoder: UMT5EncoderModel, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer
        for block in transformer.blocks:
            block.attn1.processor = block.attn2.processor = PlainAttention()

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids and mask [B, L] to the embedded captions [B, LENGTH, D], zeros behind them, as the pipeline has them."""
        told = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        return nn.functional.pad(told, (0, 0, 0, LENGTH - told.shape[1]))

    def forward(self, x: Tensor, noise_level: Tensor, told: Tensor) -> Tensor:
        """x [B, C, f, h, w] at noise levels [B] in 0..1 (0 is clean) beside captions [B, LENGTH, D]."""
        return self.transformer(x, noise_level * 1000, told, return_dict=False)[0]


def load_or_build_tokenizer(folder: Path) -> T5Tokenizer:
    """The tokenizer saved in ``folder``; saved there if there is none."""
    if not (folder / "tokenizer.json").exists():
        build_tokenizer().save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)
