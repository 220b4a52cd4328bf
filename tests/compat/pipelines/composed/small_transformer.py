"""The denoising network: blocks of two streams, then of one, with the guide's linears and attention.

Letters: B batch, T text tokens, I picture tokens, S all of them, D width, N heads, H head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omnimuse.compat.sglang.runtime.layers.attention import USPAttention
from omnimuse.compat.sglang.runtime.layers.layernorm import RMSNorm
from omnimuse.compat.sglang.runtime.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from omnimuse.compat.sglang.runtime.models.dits.base import CachableDiT
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.config import _MODEL_COEFFICIENTS
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.context import CacheContext
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.extractors import register_extractor


class Linear(ReplicatedLinear):
    """The output alone."""

    def forward(self, x):
        return super().forward(x)[0]


class Rotary(nn.Module):
    """Angles [S, H/2] as cosines and sines, by three axes."""

    def __init__(self, axes, theta=10000):
        super().__init__()
        self.axes, self.theta = axes, theta

    def forward(self, ids):
        angles = [
            ids[:, axis : axis + 1].double()
            * self.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim)
            for axis, dim in enumerate(self.axes)
        ]
        whole = torch.cat(angles, dim=-1)
        return whole.cos().float(), whole.sin().float()


def rotated(x: Tensor, freqs: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = (each[None, :, None, :] for each in freqs)
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Embedder(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.linear_1 = Linear(width, inner)
        self.linear_2 = Linear(inner, inner)

    def forward(self, x):
        return self.linear_2(nn.functional.silu(self.linear_1(x)))


def waves(t: Tensor) -> Tensor:
    steps = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
    angles = t.float()[:, None] * steps[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Times(nn.Module):
    def __init__(self, width, pooled, guided):
        super().__init__()
        self.timestep_embedder = Embedder(256, width)
        self.guidance_embedder = Embedder(256, width) if guided else None
        self.text_embedder = Embedder(pooled, width)

    def forward(self, timestep, guidance, pooled):
        found = self.timestep_embedder(waves(timestep / 1000 * 1000).to(pooled.dtype))
        if self.guidance_embedder is not None:
            found = found + self.guidance_embedder(waves(guidance).to(pooled.dtype))
        return found + self.text_embedder(pooled)


class Shift(nn.Module):
    def __init__(self, width, count):
        super().__init__()
        self.linear = Linear(width, count * width)
        self.count = count

    def forward(self, temb):
        return self.linear(nn.functional.silu(temb))[:, None].chunk(self.count, dim=-1)


def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Joint(nn.Module):
    """Attention of a text and a picture, with projections of each."""

    def __init__(self, heads, head, two):
        super().__init__()
        width = heads * head
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(head, eps=1e-6), RMSNorm(head, eps=1e-6)
        if two:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (Linear(width, width) for _ in range(3))
            self.norm_added_q, self.norm_added_k = RMSNorm(head, eps=1e-6), RMSNorm(head, eps=1e-6)
            self.to_out = nn.ModuleList([Linear(width, width)])
            self.to_add_out = Linear(width, width)
        self.attn = USPAttention(num_heads=heads, head_size=head, causal=False)

    def _parts(self, x, q, k, v, norm_q, norm_k):
        q, k, v = (each(x).unflatten(-1, (self.heads, -1)) for each in (q, k, v))
        return norm_q(q), norm_k(k), v

    def forward(self, x, freqs, text=None, prefix=0):
        parts = self._parts(x, self.to_q, self.to_k, self.to_v, self.norm_q, self.norm_k)
        if text is not None:
            first = self._parts(
                text, self.add_q_proj, self.add_k_proj, self.add_v_proj, self.norm_added_q, self.norm_added_k
            )
            parts = [torch.cat(pair, dim=1) for pair in zip(first, parts, strict=True)]
            prefix = text.shape[1]
        q, k, v = parts
        found = self.attn(rotated(q, freqs), rotated(k, freqs), v, num_replicated_prefix=prefix).flatten(2)
        if text is None:
            return found
        return self.to_out[0](found[:, text.shape[1] :]), self.to_add_out(found[:, : text.shape[1]])


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc_in = ColumnParallelLinear(width, 4 * width, return_bias=False)
        self.fc_out = RowParallelLinear(4 * width, width, return_bias=False)

    def forward(self, x):
        return self.fc_out(nn.functional.gelu(self.fc_in(x), approximate="tanh"))


class TwoStreams(nn.Module):
    def __init__(self, heads, head):
        super().__init__()
        width = heads * head
        self.norm1, self.norm1_context = Shift(width, 6), Shift(width, 6)
        self.attn = Joint(heads, head, two=True)
        self.ff, self.ff_context = Mlp(width), Mlp(width)

    def forward(self, x, text, temb, freqs):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(temb)
        t_shift, t_scale, t_gate, t_shift_mlp, t_scale_mlp, t_gate_mlp = self.norm1_context(temb)
        seen, read = self.attn(normed(x, scale, shift), freqs, normed(text, t_scale, t_shift))
        x, text = x + gate * seen, text + t_gate * read
        x = x + gate_mlp * self.ff(normed(x, scale_mlp, shift_mlp))
        return x, text + t_gate_mlp * self.ff_context(normed(text, t_scale_mlp, t_shift_mlp))


class OneStream(nn.Module):
    def __init__(self, heads, head):
        super().__init__()
        width = heads * head
        self.norm, self.attn = Shift(width, 3), Joint(heads, head, two=False)
        self.proj_mlp, self.proj_out = Linear(width, 4 * width), Linear(5 * width, width)

    def forward(self, x, temb, freqs, prefix):
        shift, scale, gate = self.norm(temb)
        inner = normed(x, scale, shift)
        mlp = nn.functional.gelu(self.proj_mlp(inner), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([self.attn(inner, freqs, prefix=prefix), mlp], dim=2))


class FluxTransformer2DModel(CachableDiT):
    _repeated_blocks = ["TwoStreams", "OneStream"]
    param_names_mapping = {
        r"^(.*)\.(ff|ff_context)\.net\.0\.proj\.(.*)$": r"\1.\2.fc_in.\3",
        r"^(.*)\.(ff|ff_context)\.net\.2\.(.*)$": r"\1.\2.fc_out.\3",
    }

    def __init__(self, config, hf_config, **kwargs):
        super().__init__(config=config, hf_config=hf_config)
        heads, head = config.num_attention_heads, config.attention_head_dim
        width = self.hidden_size = config.hidden_size
        self.rotary_emb = Rotary(config.axes_dims_rope)
        self.time_text_embed = Times(width, config.pooled_projection_dim, config.guidance_embeds)
        self.context_embedder = Linear(config.joint_attention_dim, width)
        self.x_embedder = Linear(config.in_channels, width)
        self.transformer_blocks = nn.ModuleList(TwoStreams(heads, head) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(OneStream(heads, head) for _ in range(config.num_single_layers))
        self.norm_out = Shift(width, 2)
        self.proj_out = Linear(width, config.in_channels)

    def forward(
        self,
        hidden_states,
        encoder_hidden_states,
        pooled_projections,
        timestep,
        guidance=None,
        freqs_cis=None,
        **kwargs,
    ):
        x, text = self.x_embedder(hidden_states), self.context_embedder(encoder_hidden_states)
        temb = self.time_text_embed(timestep, guidance, pooled_projections)
        for block in self.transformer_blocks:
            x, text = block(x, text, temb, freqs_cis)
        x = torch.cat([text, x], dim=1)
        for block in self.single_transformer_blocks:
            x = block(x, temb, freqs_cis, text.shape[1])
        scale, shift = self.norm_out(temb)
        return self.proj_out(normed(x[:, text.shape[1] :], scale, shift))


def extract_small_context(module, hidden_states, encoder_hidden_states, pooled_projections, timestep, **kwargs):
    """The forward in pieces, for TeaCache."""
    x, text = module.x_embedder(hidden_states), module.context_embedder(encoder_hidden_states)
    temb, freqs = module.time_text_embed(timestep, kwargs["guidance"], pooled_projections), kwargs["freqs_cis"]
    shift, scale = module.transformer_blocks[0].norm1(temb)[:2]

    def run_transformer_blocks():
        h, e = x, text
        for block in module.transformer_blocks:
            h, e = block(h, e, temb, freqs)
        h = torch.cat([e, h], dim=1)
        for block in module.single_transformer_blocks:
            h = block(h, temb, freqs, e.shape[1])
        return (h[:, e.shape[1] :],)

    def postprocess(h):
        scale, shift = module.norm_out(temb)
        return module.proj_out(normed(h, scale, shift))

    return CacheContext(
        modulated_input=normed(x, scale, shift),
        hidden_states=x,
        encoder_hidden_states=text,
        temb=temb,
        run_transformer_blocks=run_transformer_blocks,
        postprocess=postprocess,
    )


register_extractor("FluxTransformer2DModel", extract_small_context)
_MODEL_COEFFICIENTS["FluxTransformer2DModel"] = [1.0, 0.0]

EntryClass = FluxTransformer2DModel
