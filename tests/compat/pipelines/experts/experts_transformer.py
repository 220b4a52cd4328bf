"""A transformer of videos with attention to its text apart, adapted as the guide has it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTimeTextImageEmbedding
from torch import Tensor, nn

from omnimuse.compat.vllm.model_executor.layers.layernorm import RMSNorm
from omnimuse.compat.vllm.model_executor.layers.linear import QKVParallelLinear, ReplicatedLinear
from omnimuse.compat.vllm.model_executor.model_loader.weight_utils import default_weight_loader
from omnimuse.compat.vllm_omni.diffusion.attention.layer import Attention
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig
from omnimuse.compat.vllm_omni.diffusion.distributed.sp_plan import SequenceParallelInput, SequenceParallelOutput
from omnimuse.compat.vllm_omni.diffusion.layers.rope import RotaryEmbedding


class ExpertsSelfAttention(nn.Module):
    """A video's tokens to themselves."""

    def __init__(self, dim: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_qkv = QKVParallelLinear(dim, head_dim, heads, disable_tp=True)
        self.norm_q, self.norm_k = RMSNorm(dim, eps=eps), RMSNorm(dim, eps=eps)
        self.to_out = nn.ModuleList([ReplicatedLinear(dim, dim, return_bias=False)])
        self.rope = RotaryEmbedding(is_neox_style=False)
        self.attn = Attention(num_heads=heads, head_size=head_dim, causal=False, role="self")

    def forward(self, hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        qkv, _ = self.to_qkv(hidden_states)
        q, k, v = qkv.chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (self.norm_q(q), self.norm_k(k), v))
        found = self.attn(self.rope(q, cos, sin), self.rope(k, cos, sin), v)
        return self.to_out[0](found.flatten(2))


class ExpertsCrossAttention(nn.Module):
    """A video's tokens to those of the text, which every rank has all of."""

    def __init__(self, dim: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q, self.to_k, self.to_v = (ReplicatedLinear(dim, dim, return_bias=False) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(dim, eps=eps), RMSNorm(dim, eps=eps)
        self.to_out = nn.ModuleList([ReplicatedLinear(dim, dim, return_bias=False)])
        self.attn = Attention(
            num_heads=heads, head_size=head_dim, role="experts.text", role_category="cross", skip_sequence_parallel=True
        )

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        q, k = self.norm_q(self.to_q(hidden_states)), self.norm_k(self.to_k(encoder_hidden_states))
        heads = [x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, self.to_v(encoder_hidden_states))]
        return self.to_out[0](self.attn(*heads).flatten(2))


class ExpertsTransformerBlock(nn.Module):
    """Attention to itself, then to the text, then the layer between."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = ExpertsSelfAttention(dim, heads, head_dim, eps)
        self.attn2 = ExpertsCrossAttention(dim, heads, head_dim, eps)
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x = hidden_states
        shift, scale, gate, c_shift, c_scale, c_gate = (self.scale_shift_table + temb.float()).chunk(6, dim=1)
        normed = (self.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + self.attn1(normed, cos, sin) * gate).type_as(x)
        x = x + self.attn2(self.norm2(x.float()).type_as(x), encoder_hidden_states)
        normed = (self.norm3(x.float()) * (1 + c_scale) + c_shift).type_as(x)
        return (x.float() + self.ffn(normed).float() * c_gate).type_as(x)


class RopePreparer(nn.Module):
    """Cosines and sines of every token, [S, H / 2]."""

    def __init__(self, head_dim: int, patch_size: tuple[int, ...], length: int) -> None:
        super().__init__()
        self.rope = WanRotaryPosEmbed(head_dim, patch_size, length)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rope(hidden_states)
        return cos[0, :, 0, 0::2], sin[0, :, 0, 1::2]


class ExpertsTransformer3DModel(nn.Module):
    """From latents [B, C, f, h, w] to a prediction of the same shape."""

    _repeated_blocks = ["ExpertsTransformerBlock"]
    _layerwise_offload_blocks_attrs = ["blocks"]
    _sp_plan = {
        "rope_preparer": {
            0: SequenceParallelInput(split_dim=0, expected_dims=2, split_output=True),
            1: SequenceParallelInput(split_dim=0, expected_dims=2, split_output=True),
        },
        "blocks.0": {"hidden_states": SequenceParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": SequenceParallelOutput(gather_dim=1, expected_dims=3),
    }

    def __init__(
        self,
        *,
        od_config: OmniDiffusionConfig | None = None,
        patch_size: tuple[int, ...] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
    ) -> None:
        super().__init__()
        self.patch_size, dim = tuple(patch_size), num_attention_heads * attention_head_dim
        self.rope_preparer = RopePreparer(attention_head_dim, self.patch_size, rope_max_seq_len)
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.condition_embedder = WanTimeTextImageEmbedding(
            dim=dim, time_freq_dim=freq_dim, time_proj_dim=dim * 6, text_embed_dim=text_dim
        )
        self.blocks = nn.ModuleList(
            [
                ExpertsTransformerBlock(dim, ffn_dim, num_attention_heads, attention_head_dim, eps)
                for _ in range(num_layers)
            ]
        )
        self.norm_out = FP32LayerNorm(dim, eps, elementwise_affine=False)
        cells = self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.proj_out = nn.Linear(dim, out_channels * cells)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, dim))

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        grid = [side // cell for side, cell in zip(hidden_states.shape[2:], self.patch_size, strict=True)]
        cos, sin = self.rope_preparer(hidden_states)
        x = self.patch_embedding(hidden_states.to(encoder_hidden_states.dtype)).flatten(2).transpose(1, 2)
        temb, timestep_proj, text, _ = self.condition_embedder(timestep, encoder_hidden_states, None)
        timestep_proj = timestep_proj.unflatten(1, (6, -1))
        for block in self.blocks:
            x = block(x, text, timestep_proj, cos, sin)
        shift, scale = (self.scale_shift_table.to(temb.device) + temb.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).type_as(x))
        x = x.unflatten(2, (*self.patch_size, -1)).unflatten(1, grid)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        params, loaded = dict(self.named_parameters()), set()
        for name, tensor in weights:
            for shard in "qkv":
                if f"attn1.to_{shard}." in name:
                    name = name.replace(f"to_{shard}", "to_qkv")
                    params[name].weight_loader(params[name], tensor, shard)
                    break
            else:
                getattr(params[name], "weight_loader", default_weight_loader)(params[name], tensor)
            loaded.add(name)
        return loaded
