"""The denoising network of videos: ranks share frames, and each rotates its tokens by where its frames stand.

Letters: B batch, f frames of latents here, S tokens of them, D width, N heads, H head dim.
"""

from __future__ import annotations

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTimeTextImageEmbedding
from torch import Tensor, nn

from omnimuse.compat.sglang.runtime.distributed import get_sp_parallel_rank, get_sp_world_size
from omnimuse.compat.sglang.runtime.layers.attention import LocalAttention, USPAttention
from omnimuse.compat.sglang.runtime.layers.layernorm import RMSNorm
from omnimuse.compat.sglang.runtime.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from omnimuse.compat.sglang.runtime.models.dits.base import CachableDiT


class Sight(nn.Module):
    """Attention of a video's tokens, to themselves or to those of a text; norms go over all heads."""

    def __init__(self, heads, head, eps, site):
        super().__init__()
        width = heads * head
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (ReplicatedLinear(width, width, return_bias=False) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(width, eps=eps), RMSNorm(width, eps=eps)
        self.to_out = nn.ModuleList([ReplicatedLinear(width, width, return_bias=False)])
        self.attn = site(num_heads=heads, head_size=head, causal=False)

    def forward(self, x, seen, freqs=None):
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(seen)), self.to_v(seen)
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in (q, k, v))
        if freqs is not None:
            q, k = rotated(q, *freqs), rotated(k, *freqs)
        return self.to_out[0](self.attn(q, k, v).flatten(2))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, S, N, H] by angles [1, S, 1, H], of which each stands twice."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-imaginary, real], dim=-1).flatten(-2) * sin).type_as(x)


class Feed(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc_in = ColumnParallelLinear(width, inner, return_bias=False)
        self.fc_out = RowParallelLinear(inner, width, return_bias=False)

    def forward(self, x):
        return self.fc_out(nn.functional.gelu(self.fc_in(x), approximate="tanh"))


class MotionBlock(nn.Module):
    def __init__(self, heads, head, inner, eps):
        super().__init__()
        width = heads * head
        self.norm1, self.norm3 = (FP32LayerNorm(width, eps, elementwise_affine=False) for _ in range(2))
        self.norm2 = FP32LayerNorm(width, eps, elementwise_affine=True)
        self.attn1, self.attn2 = Sight(heads, head, eps, USPAttention), Sight(heads, head, eps, LocalAttention)
        self.ffn = Feed(width, inner)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, width))

    def forward(self, x, text, temb, freqs):
        shift, scale, gate, f_shift, f_scale, f_gate = (self.scale_shift_table + temb).chunk(6, dim=1)
        inner = self.norm1(x) * (1 + scale) + shift
        x = x + self.attn1(inner, inner, freqs) * gate
        x = x + self.attn2(self.norm2(x), text)
        return x + self.ffn(self.norm3(x) * (1 + f_scale) + f_shift) * f_gate


class WanTransformer3DModel(CachableDiT):
    """From latents [B, C, f, h, w] of this rank's frames to a prediction of the same shape."""

    _repeated_blocks = ["MotionBlock"]
    param_names_mapping = {
        r"^(.*)\.ffn\.net\.0\.proj\.(.*)$": r"\1.ffn.fc_in.\2",
        r"^(.*)\.ffn\.net\.2\.(.*)$": r"\1.ffn.fc_out.\2",
    }

    def __init__(self, config, hf_config, **kwargs):
        super().__init__(config=config, hf_config=hf_config)
        heads, head, self.patch = config.num_attention_heads, config.attention_head_dim, tuple(config.patch_size)
        width = self.hidden_size = heads * head
        self.rope = WanRotaryPosEmbed(head, self.patch, config.rope_max_seq_len)
        self.patch_embedding = nn.Conv3d(config.in_channels, width, kernel_size=self.patch, stride=self.patch)
        self.condition_embedder = WanTimeTextImageEmbedding(
            dim=width, time_freq_dim=config.freq_dim, time_proj_dim=width * 6, text_embed_dim=config.text_dim
        )
        self.blocks = nn.ModuleList(
            MotionBlock(heads, head, config.ffn_dim, config.eps) for _ in range(config.num_layers)
        )
        self.norm_out = FP32LayerNorm(width, config.eps, elementwise_affine=False)
        self.proj_out = ReplicatedLinear(
            width, config.out_channels * self.patch[0] * self.patch[1] * self.patch[2], return_bias=False
        )
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, width))

    def freqs(self, latents: Tensor) -> list[Tensor]:
        """Cosines and sines of this rank's tokens: its frames are one after the other, as those of all ranks are."""
        batch, channels, frames, height, width = latents.shape
        ranks, rank = get_sp_world_size(), get_sp_parallel_rank()
        everywhere = self.rope(latents.new_empty(batch, channels, frames * ranks, height, width))
        return [each.chunk(ranks, dim=1)[rank] for each in everywhere]

    def forward(self, hidden_states, encoder_hidden_states, timestep, **kwargs):
        grid = [side // cell for side, cell in zip(hidden_states.shape[2:], self.patch, strict=True)]
        freqs = self.freqs(hidden_states)
        x = self.patch_embedding(hidden_states).flatten(2).transpose(1, 2)
        read = encoder_hidden_states.to(hidden_states.dtype)
        temb, steps, text, _ = self.condition_embedder(timestep, read, None)
        for block in self.blocks:
            x = block(x, text, steps.unflatten(1, (6, -1)), freqs)
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out(self.norm_out(x) * (1 + scale) + shift)
        x = x.unflatten(2, (*self.patch, -1)).unflatten(1, grid)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


EntryClass = WanTransformer3DModel
