"""The text encoder and the transformer, and one batched forward over both for training.

``ZImageTransformer2DModel`` takes lists of single pictures; ``Network.forward`` does the same arithmetic on
one batch of equal shapes (a test compares them), with rotary embedding on half-split channels: the rows of
the query and key weights are reordered on the fly, which attention cannot notice.

Letters: B batch, L padded caption tokens, P picture tokens, S = P + L, N heads, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

PATCH = 2
TRANSFORMER_CONFIG = {
    "in_channels": 16,
    "dim": 192,
    "n_layers": 4,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "cap_feat_dim": 128,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1024, 64, 64],
}
_GATE_BIAS = 0.3


def build_text_encoder(vocabulary: int) -> Qwen3Model:
    """The caption encoder; its last layer and last norm are never used (hidden_states[-2])."""
    config = Qwen3Config(
        vocab_size=-(-vocabulary // 32) * 32,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.04,
        use_cache=False,
        tie_word_embeddings=True,
    )
    return Qwen3Model(config)


def build_transformer() -> ZImageTransformer2DModel:
    """The denoiser, its gates open enough to train (they pass through tanh)."""
    model = ZImageTransformer2DModel(**TRANSFORMER_CONFIG)
    for block in [*model.noise_refiner, *model.layers]:
        linear = block.adaLN_modulation[0]
        nn.init.normal_(linear.weight, std=0.01)
        bias = torch.zeros(4, model.dim)
        bias[1], bias[3] = _GATE_BIAS, _GATE_BIAS
        linear.bias.data.copy_(bias.flatten())
    nn.init.normal_(model.cap_pad_token, std=0.02)
    final = model.all_final_layer[f"{PATCH}-1"]
    nn.init.zeros_(final.adaLN_modulation[1].weight)
    nn.init.zeros_(final.adaLN_modulation[1].bias)
    nn.init.zeros_(final.linear.weight)
    return model


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on half-split channels; x [B, S, N, H], cos and sin [S, 1, H/2]."""
    low, high = x.float().chunk(2, -1)
    return torch.cat([low * cos - high * sin, low * sin + high * cos], -1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """[B, S, N, H] each to [B, S, N*H].  Plain products: torch's fused CPU backward takes five times longer."""
    if k.shape[2] != q.shape[2]:
        k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], 2) for part in (k, v))
    q, k, v = q.transpose(1, 2) * q.shape[-1] ** -0.5, k.permute(0, 2, 3, 1), v.transpose(1, 2)
    scores = (q @ k).float()  # [B, N, S, S]
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


class Network(nn.Module):
    """Captions and noisy latents to the predicted velocity."""

    _split: Tensor
    _whole: Tensor

    def __init__(self, text_encoder: Qwen3Model, transformer: ZImageTransformer2DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer
        head = transformer.dim // transformer.n_heads
        split = torch.cat([torch.arange(0, head, 2), torch.arange(1, head, 2)])
        whole = (torch.arange(transformer.n_heads)[:, None] * head + split).flatten()
        self.register_buffer("_split", split, persistent=False)
        self.register_buffer("_whole", whole, persistent=False)

    def angles(self, length: int, side: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) [P + L, 1, H/2] of a caption padded to ``length`` and side*side picture tokens."""
        caption = torch.stack([torch.arange(1, length + 1), torch.zeros(length), torch.zeros(length)], 1)
        rows = torch.arange(side * side)
        picture = torch.stack([torch.full((side * side,), length + 1), rows // side, rows % side], 1)
        places = torch.cat([picture, caption]).double()
        parts = []
        for axis, size in enumerate(self.transformer.axes_dims):
            rates = 1.0 / self.transformer.rope_theta ** (torch.arange(0, size, 2).double() / size)
            parts.append(places[:, axis : axis + 1] * rates)
        angle = torch.cat(parts, 1)[:, None]
        return angle.cos().float(), angle.sin().float()

    def _text(self, ids: Tensor) -> Tensor:
        """ids [B, L] to hidden_states[-2] [B, L, 128]; right padding cannot reach back past a causal mask."""
        model = self.text_encoder
        h = model.embed_tokens(ids)
        cos, sin = model.rotary_emb(h, torch.arange(ids.shape[1], device=ids.device)[None])
        half = cos.shape[-1] // 2
        cos, sin = cos[0, :, None, :half].float(), sin[0, :, None, :half].float()  # [L, 1, H/2]
        for layer in model.layers[:-1]:
            attention, mlp = layer.self_attn, layer.mlp
            x = _normed(h, layer.input_layernorm.weight, model.config.rms_norm_eps)
            q, k, v = (
                proj(x).unflatten(-1, (-1, attention.head_dim))
                for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q = _turned(_normed(q, attention.q_norm.weight, model.config.rms_norm_eps), cos, sin)
            k = _turned(_normed(k, attention.k_norm.weight, model.config.rms_norm_eps), cos, sin)
            h = h + attention.o_proj(attend(q, k, v, causal=True))
            x = _normed(h, layer.post_attention_layernorm.weight, model.config.rms_norm_eps)
            h = h + mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
        return h

    def _attention(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        weights = [
            attention.to_q.weight[self._whole],
            attention.to_k.weight[self._whole],
            attention.to_v.weight,
        ]
        qkv = F.linear(x, torch.cat(weights)).unflatten(-1, (3, self.transformer.n_heads, -1))  # [B, S, 3, N, H]
        q, k, v = qkv.unbind(2)
        q = _turned(_normed(q, attention.norm_q.weight[self._split], 1e-5), cos, sin)
        k = _turned(_normed(k, attention.norm_k.weight[self._split], 1e-5), cos, sin)
        return attention.to_out[0](attend(q, k, v, causal=False))

    def _block(self, block: Any, x: Tensor, cos: Tensor, sin: Tensor, t: Tensor | None) -> Tensor:
        eps = block.attention_norm1.eps
        scale1 = gate1 = scale2 = gate2 = torch.ones((), dtype=x.dtype, device=x.device)
        if t is not None:
            scale1, gate1, scale2, gate2 = block.adaLN_modulation(t)[:, None].chunk(4, -1)
            scale1, gate1, scale2, gate2 = 1 + scale1, gate1.tanh(), 1 + scale2, gate2.tanh()
        y = self._attention(block.attention, _normed(x, block.attention_norm1.weight, eps) * scale1, cos, sin)
        x = x + gate1 * _normed(y, block.attention_norm2.weight, eps)
        ffn = block.feed_forward
        y = _normed(x, block.ffn_norm1.weight, eps) * scale2
        a, b = F.linear(y, torch.cat([ffn.w1.weight, ffn.w3.weight])).chunk(2, -1)
        return x + gate2 * _normed(ffn.w2(F.silu(a) * b), block.ffn_norm2.weight, eps)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, P, 64] noisy patches, t [B] in 0..1 (1 is clean), ids and mask [B, L]; velocity [B, P, 64]."""
        model, (cos, sin) = self.transformer, angles
        key, tokens = f"{PATCH}-1", x.shape[1]
        norm, project = model.cap_embedder
        caption = project(_normed(self._text(ids), norm.weight, norm.eps))  # [B, L, D]
        caption = torch.where(mask[..., None], caption, model.cap_pad_token.to(caption.dtype))
        time = model.t_embedder(t * model.t_scale).to(caption.dtype)
        h = model.all_x_embedder[key](x)
        for block in model.noise_refiner:
            h = self._block(block, h, cos[:tokens], sin[:tokens], time)
        for block in model.context_refiner:
            caption = self._block(block, caption, cos[tokens:], sin[tokens:], None)
        h = torch.cat([h, caption.to(h.dtype)], 1)  # [B, S, D]
        for block in model.layers:
            h = self._block(block, h, cos, sin, time)
        return model.all_final_layer[key](h[:, :tokens], c=time)


def to_patches(z: Tensor) -> Tensor:
    """Latents [B, c, h, w] to tokens [B, (h/2)(w/2), 4c], the order of the transformer's own patchify."""
    b, c, h, w = z.shape
    z = z.view(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return z.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // PATCH) * (w // PATCH), PATCH * PATCH * c)


def from_patches(x: Tensor, side: int) -> Tensor:
    """The inverse of ``to_patches`` for side*side tokens."""
    b, _, width = x.shape
    x = x.view(b, side, side, PATCH, PATCH, width // PATCH**2)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, side * PATCH, side * PATCH)
