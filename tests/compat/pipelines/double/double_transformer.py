"""A transformer with two lists of blocks, adapted as the guide has it: fused projections, a sequence-parallel plan."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from torch import Tensor, nn

from omnimuse.compat.vllm.distributed import tensor_model_parallel_all_gather
from omnimuse.compat.vllm.model_executor.layers.layernorm import RMSNorm
from omnimuse.compat.vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from omnimuse.compat.vllm.model_executor.model_loader.weight_utils import default_weight_loader
from omnimuse.compat.vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from omnimuse.compat.vllm_omni.diffusion.attention.layer import Attention
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig
from omnimuse.compat.vllm_omni.diffusion.distributed.sp_plan import SequenceParallelInput, SequenceParallelOutput
from omnimuse.compat.vllm_omni.diffusion.layers.rope import RotaryEmbedding

Turns = tuple[Tensor, Tensor, Tensor, Tensor]
"""Cosines and sines of the text, and of the picture."""


class RopePreparer(nn.Module):
    """The rotations of both streams, apart, so that those of the picture can be shared out."""

    def __init__(self, theta: int, axes_dim: tuple[int, ...]) -> None:
        super().__init__()
        self.pos_embed = FluxPosEmbed(theta=theta, axes_dim=axes_dim)

    def forward(self, txt_ids: Tensor, img_ids: Tensor) -> Turns:
        (txt_cos, txt_sin), (img_cos, img_sin) = self.pos_embed(txt_ids), self.pos_embed(img_ids)
        return txt_cos[:, ::2], txt_sin[:, ::2], img_cos[:, ::2], img_sin[:, ::2]


class DoubleAttention(nn.Module):
    """The picture's tokens, and the text's as the other part of a joint sequence."""

    def __init__(self, dim: int, heads: int, head_dim: int, both: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_qkv = QKVParallelLinear(dim, head_dim, heads)
        self.norm_q, self.norm_k = RMSNorm(head_dim, eps=1e-6), RMSNorm(head_dim, eps=1e-6)
        if both:
            self.add_kv_proj = QKVParallelLinear(dim, head_dim, heads)
            self.norm_added_q, self.norm_added_k = RMSNorm(head_dim, eps=1e-6), RMSNorm(head_dim, eps=1e-6)
            self.to_out = nn.ModuleList([RowParallelLinear(dim, dim, return_bias=False)])
            self.to_add_out = RowParallelLinear(dim, dim, return_bias=False)
        self.rope = RotaryEmbedding(is_neox_style=False)
        self.attn = Attention(
            num_heads=self.to_qkv.num_heads, head_size=head_dim, num_kv_heads=self.to_qkv.num_kv_heads, role="self"
        )

    def heads(self, layer: QKVParallelLinear, norms: tuple[RMSNorm, RMSNorm], x: Tensor, turns: Turns) -> list[Tensor]:
        qkv, _ = layer(x)
        sizes = [layer.num_heads * self.head_dim, *[layer.num_kv_heads * self.head_dim] * 2]
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv.split(sizes, dim=-1))
        return [self.rope(norms[0](q), *turns), self.rope(norms[1](k), *turns), v]

    def attend(self, picture: list[Tensor], text: list[Tensor]) -> tuple[Tensor, Tensor]:
        meta = AttentionMetadata(joint_query=text[0], joint_key=text[1], joint_value=text[2], joint_strategy="front")
        found = self.attn(*picture, attn_metadata=meta).flatten(2)
        length = text[0].shape[1]
        return found[:, :length], found[:, length:]


class DoubleTransformerBlock(nn.Module):
    """One block of both streams."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm1_context = AdaLayerNormZero(dim), AdaLayerNormZero(dim)
        self.attn = DoubleAttention(dim, heads, head_dim, both=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.norm2_context = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(dim=dim, dim_out=dim, activation_fn="gelu-approximate")
        self.ff_context = FeedForward(dim=dim, dim_out=dim, activation_fn="gelu-approximate")

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, turns: Turns
    ) -> tuple[Tensor, Tensor]:
        attn = self.attn
        x, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(hidden_states, emb=temb)
        c, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp = self.norm1_context(encoder_hidden_states, emb=temb)
        text, picture = attn.attend(
            attn.heads(attn.to_qkv, (attn.norm_q, attn.norm_k), x, turns[2:]),
            attn.heads(attn.add_kv_proj, (attn.norm_added_q, attn.norm_added_k), c, turns[:2]),
        )
        hidden_states = hidden_states + gate.unsqueeze(1) * attn.to_out[0](picture)
        x = self.norm2(hidden_states) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        hidden_states = hidden_states + gate_mlp.unsqueeze(1) * self.ff(x)
        encoder_hidden_states = encoder_hidden_states + c_gate.unsqueeze(1) * attn.to_add_out(text)
        c = self.norm2_context(encoder_hidden_states) * (1 + c_scale_mlp[:, None]) + c_shift_mlp[:, None]
        return encoder_hidden_states + c_gate_mlp.unsqueeze(1) * self.ff_context(c), hidden_states


class SingleTransformerBlock(nn.Module):
    """One block of one stream, which both are parts of."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = AdaLayerNormZeroSingle(dim)
        self.proj_mlp = nn.Linear(dim, 4 * dim)
        self.attn = DoubleAttention(dim, heads, head_dim, both=False)
        self.proj_out = nn.Linear(5 * dim, dim)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, turns: Turns
    ) -> tuple[Tensor, Tensor]:
        length, attn = encoder_hidden_states.shape[1], self.attn
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(x, emb=temb)
        norms = (attn.norm_q, attn.norm_k)
        found = attn.attend(
            attn.heads(attn.to_qkv, norms, normed[:, length:], turns[2:]),
            attn.heads(attn.to_qkv, norms, normed[:, :length], turns[:2]),
        )
        found = tuple(tensor_model_parallel_all_gather(part) for part in found)  # what follows is whole on every rank
        mlp = nn.functional.gelu(self.proj_mlp(normed), approximate="tanh")
        x = x + gate.unsqueeze(1) * self.proj_out(torch.cat([torch.cat(found, dim=1), mlp], dim=2))
        return x[:, :length], x[:, length:]


class DoubleTransformer2DModel(nn.Module):
    """From packed latents [B, S, C] to a prediction of the same shape."""

    _repeated_blocks = ["DoubleTransformerBlock", "SingleTransformerBlock"]
    _layerwise_offload_blocks_attrs = ["transformer_blocks", "single_transformer_blocks"]
    _sp_plan = {
        "rope_preparer": {
            2: SequenceParallelInput(split_dim=0, expected_dims=2, split_output=True),
            3: SequenceParallelInput(split_dim=0, expected_dims=2, split_output=True),
        },
        "transformer_blocks.0": {"hidden_states": SequenceParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": SequenceParallelOutput(gather_dim=1, expected_dims=3),
    }

    @staticmethod
    def _is_transformer_block(name: str, module) -> bool:
        return "transformer_blocks" in name and name.split(".")[-1].isdigit()

    _hsdp_shard_conditions = [_is_transformer_block]

    def __init__(
        self,
        *,
        od_config: OmniDiffusionConfig | None = None,
        in_channels: int = 64,
        out_channels: int | None = None,
        num_layers: int = 19,
        num_single_layers: int = 38,
        attention_head_dim: int = 128,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        pooled_projection_dim: int = 768,
        axes_dims_rope: tuple[int, ...] = (16, 56, 56),
    ) -> None:
        super().__init__()
        self.od_config = od_config
        dim = num_attention_heads * attention_head_dim
        self.rope_preparer = RopePreparer(theta=10000, axes_dim=axes_dims_rope)
        self.time_text_embed = CombinedTimestepGuidanceTextProjEmbeddings(dim, pooled_projection_dim)
        self.context_embedder = nn.Linear(joint_attention_dim, dim)
        self.x_embedder = nn.Linear(in_channels, dim)
        sizes = (dim, num_attention_heads, attention_head_dim)
        self.transformer_blocks = nn.ModuleList([DoubleTransformerBlock(*sizes) for _ in range(num_layers)])
        self.single_transformer_blocks = nn.ModuleList(
            [SingleTransformerBlock(*sizes) for _ in range(num_single_layers)]
        )
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, out_channels or in_channels)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
        guidance: Tensor,
    ) -> tuple[Tensor]:
        hidden_states = self.x_embedder(hidden_states)
        temb = self.time_text_embed(timestep * 1000, guidance * 1000, pooled_projections)
        encoder_hidden_states = self.context_embedder(encoder_hidden_states)
        turns = self.rope_preparer(txt_ids, img_ids)
        for block in self.transformer_blocks:
            encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb, turns)
        for block in self.single_transformer_blocks:
            encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb, turns)
        return (self.proj_out(self.norm_out(hidden_states, temb)),)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        stacked_params_mapping = [
            (".to_qkv", ".to_q", "q"),
            (".to_qkv", ".to_k", "k"),
            (".to_qkv", ".to_v", "v"),
            (".add_kv_proj", ".add_q_proj", "q"),
            (".add_kv_proj", ".add_k_proj", "k"),
            (".add_kv_proj", ".add_v_proj", "v"),
        ]
        params, loaded = dict(self.named_parameters()), set()
        for name, tensor in weights:
            for fused, own, shard in stacked_params_mapping:
                if f"{own}." in name:
                    name = name.replace(f"{own}.", f"{fused}.")
                    params[name].weight_loader(params[name], tensor, shard)
                    break
            else:
                loader = getattr(params[name], "weight_loader", default_weight_loader)
                loader(params[name], tensor)
            loaded.add(name)
        return loaded
