"""A transformer of two streams, adapted as the guide has it: attention and linears replaced, diffusers' mixins gone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn

from omnimuse.compat.vllm.logger import init_logger
from omnimuse.compat.vllm.model_executor.layers.linear import QKVParallelLinear, ReplicatedLinear, RowParallelLinear
from omnimuse.compat.vllm.model_executor.model_loader.weight_utils import default_weight_loader
from omnimuse.compat.vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from omnimuse.compat.vllm_omni.diffusion.attention.layer import Attention
from omnimuse.compat.vllm_omni.diffusion.data import OmniDiffusionConfig

logger = init_logger(__name__)


class MediumJointAttention(nn.Module):
    """Text and picture attend to both."""

    def __init__(self, dim: int, heads: int, head_dim: int, last: bool) -> None:
        super().__init__()
        self.to_qkv = QKVParallelLinear(dim, head_dim, heads)
        self.add_kv_proj = QKVParallelLinear(dim, head_dim, heads)
        self.to_out = nn.ModuleList([RowParallelLinear(dim, dim, return_bias=False)])
        self.to_add_out = None if last else RowParallelLinear(dim, dim, return_bias=False)
        self.head_dim = head_dim
        self.attn = Attention(
            num_heads=self.to_qkv.num_heads,
            head_size=head_dim,
            softmax_scale=1.0 / (head_dim**0.5),
            causal=False,
            num_kv_heads=self.to_qkv.num_kv_heads,
            role="medium.joint",
            role_category="self",
        )

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor | None]:
        pictures = self._heads(self.to_qkv, hidden_states)
        texts = self._heads(self.add_kv_proj, encoder_hidden_states)
        query, key, value = (torch.cat(pair, dim=1) for pair in zip(pictures, texts, strict=True))
        found = self.attn(query, key, value, attn_metadata=AttentionMetadata()).flatten(2)
        picture, text = found.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        return self.to_out[0](picture), None if self.to_add_out is None else self.to_add_out(text)

    def _heads(self, layer: QKVParallelLinear, x: Tensor) -> list[Tensor]:
        qkv, _ = layer(x)
        sizes = [layer.num_heads * self.head_dim, *[layer.num_kv_heads * self.head_dim] * 2]
        return [part.unflatten(-1, (-1, self.head_dim)) for part in qkv.split(sizes, dim=-1)]


class MediumTransformerBlock(nn.Module):
    """One block of both streams; the last one lets go of the text."""

    def __init__(self, dim: int, heads: int, head_dim: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.norm1 = AdaLayerNormZero(dim)
        self.norm1_context = (
            AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6) if last else AdaLayerNormZero(dim)
        )
        self.attn = MediumJointAttention(dim, heads, head_dim, last)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(dim=dim, dim_out=dim, activation_fn="gelu-approximate")
        if not last:
            self.norm2_context = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
            self.ff_context = FeedForward(dim=dim, dim_out=dim, activation_fn="gelu-approximate")

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        normed, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(hidden_states, emb=temb)
        if self.last:
            normed_context = self.norm1_context(encoder_hidden_states, temb)
        else:
            normed_context, c_gate, c_shift_mlp, c_scale_mlp, c_gate_mlp = self.norm1_context(
                encoder_hidden_states, emb=temb
            )
        picture, text = self.attn(normed, normed_context)
        hidden_states = hidden_states + gate.unsqueeze(1) * picture
        normed = self.norm2(hidden_states) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        hidden_states = hidden_states + gate_mlp.unsqueeze(1) * self.ff(normed)
        if not self.last:
            encoder_hidden_states = encoder_hidden_states + c_gate.unsqueeze(1) * text
            normed_context = self.norm2_context(encoder_hidden_states) * (1 + c_scale_mlp[:, None])
            normed_context = normed_context + c_shift_mlp[:, None]
            encoder_hidden_states = encoder_hidden_states + c_gate_mlp.unsqueeze(1) * self.ff_context(normed_context)
        return encoder_hidden_states, hidden_states


class MediumTransformer2DModel(nn.Module):
    """From latents [B, C, h, w] to a prediction of the same shape."""

    _repeated_blocks = ["MediumTransformerBlock"]
    _layerwise_offload_blocks_attrs = ["transformer_blocks"]

    def __init__(
        self,
        *,
        od_config: OmniDiffusionConfig | None = None,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1152,
        pooled_projection_dim: int = 2048,
        out_channels: int | None = 16,
        pos_embed_max_size: int = 96,
    ) -> None:
        super().__init__()
        self.od_config = od_config
        self.parallel_config = od_config.parallel_config if od_config else None
        dim = num_attention_heads * attention_head_dim
        self.patch_size = patch_size
        self.out_channels = out_channels or in_channels
        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=dim,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, pooled_projection_dim)
        self.context_embedder = ReplicatedLinear(joint_attention_dim, caption_projection_dim, return_bias=False)
        self.transformer_blocks = nn.ModuleList(
            [
                MediumTransformerBlock(dim, num_attention_heads, attention_head_dim, last=index == num_layers - 1)
                for index in range(num_layers)
            ]
        )
        self.norm_out = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * self.out_channels)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor
    ) -> tuple[Tensor]:
        height, width = (side // self.patch_size for side in hidden_states.shape[-2:])
        hidden_states = self.pos_embed(hidden_states).contiguous()
        temb = self.time_text_embed(timestep, pooled_projections)
        encoder_hidden_states = self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            encoder_hidden_states, hidden_states = block(hidden_states, encoder_hidden_states, temb)
        return (self.unpatched(hidden_states, temb, height, width),)

    def unpatched(self, hidden_states: Tensor, temb: Tensor, height: int, width: int) -> Tensor:
        """What the blocks made, as a prediction; sides in patches."""
        hidden_states = self.proj_out(self.norm_out(hidden_states, temb))
        patch = self.patch_size
        hidden_states = hidden_states.unflatten(2, (patch, patch, -1)).unflatten(1, (height, width))
        hidden_states = hidden_states.permute(0, 5, 1, 3, 2, 4)  # [B, C, h, patch, w, patch]
        return hidden_states.flatten(4, 5).flatten(2, 3)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        stacked_params_mapping = [
            (".to_qkv", ".to_q", "q"),
            (".to_qkv", ".to_k", "k"),
            (".to_qkv", ".to_v", "v"),
            (".add_kv_proj", ".add_q_proj", "q"),
            (".add_kv_proj", ".add_k_proj", "k"),
            (".add_kv_proj", ".add_v_proj", "v"),
        ]
        params = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        loaded: set[str] = set()
        for name, tensor in weights:
            for param_name, weight_name, shard_id in stacked_params_mapping:
                if weight_name not in name:
                    continue
                name = name.replace(weight_name, param_name)
                params[name].weight_loader(params[name], tensor, shard_id)
                break
            else:
                weight_loader = getattr(params[name], "weight_loader", default_weight_loader)
                weight_loader(params[name], tensor)
            loaded.add(name)
        return loaded
