"""The layers that the contract names compute what torch, diffusers and transformers compute, and load as it says."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import normalization
from diffusers.models.embeddings import apply_rotary_emb, get_timestep_embedding
from torch import Tensor, nn

from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layer import Backend
from omnimuse.attention.selection import BACKENDS, bind
from omnimuse.compat.contract.surroundings import Surroundings, within
from omnimuse.compat.vllm.model_executor.layers.activation import SiluAndMul
from omnimuse.compat.vllm.model_executor.layers.layernorm import RMSNorm
from omnimuse.compat.vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from omnimuse.compat.vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from omnimuse.compat.vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from omnimuse.compat.vllm_omni.diffusion.attention.layer import Attention
from omnimuse.compat.vllm_omni.diffusion.distributed.cfg_parallel import CFGParallelMixin
from omnimuse.compat.vllm_omni.diffusion.layers.adalayernorm import (
    AdaLayerNorm,
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
)
from omnimuse.compat.vllm_omni.diffusion.layers.rope import RotaryEmbedding, apply_rope_to_qk
from omnimuse.compat.vllm_omni.model_executor.layers.timestep_embedding import timestep_embedding
from omnimuse.core.config import AttentionConfig, ParallelConfig
from omnimuse.core.errors import ConfigError, ModelError, UnsupportedError
from omnimuse.parallel.mesh import Mesh


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["scale", "causal", "padding", "by row", "by head", "shared keys", "joint"])
def test_attention_is_that_of_torch(kind: str) -> None:
    q, k, v = (drawn(2, 5, 4, 8, seed=seed) for seed in range(3))
    meta, options, chosen = AttentionMetadata(), dict[str, object](), {"scale": 8**-0.5}
    if kind == "scale":
        chosen = options = {"scale": 0.3}
        options = {"softmax_scale": 0.3}
    if kind == "causal":
        options, chosen = {"causal": True}, {"is_causal": True}
    if kind == "shared keys":
        k, v = k[:, :, :2], v[:, :, :2]
        options = {"num_kv_heads": 2}
    if kind == "padding":
        keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        meta, chosen = AttentionMetadata(attn_mask=keep), {"attn_mask": (keep != 0)[:, None, None, :]}
    if kind in ("by row", "by head"):  # of rows there are two, of heads four
        shown = drawn(2 if kind == "by row" else 4, 5, 5, seed=3) > 0
        shown |= torch.eye(5, dtype=torch.bool)
        meta = AttentionMetadata(attn_mask=shown)
        chosen = {"attn_mask": shown[:, None] if kind == "by row" else shown[None]}
    whole = (q, k, v)
    if kind == "joint":
        meta = AttentionMetadata(joint_query=q[:, :2], joint_key=k[:, :2], joint_value=v[:, :2])
        q, k, v = q[:, 2:], k[:, 2:], v[:, 2:]
    found = Attention(4, 8, **options)(q, k, v, meta)  # type: ignore[arg-type]
    turned = [each.transpose(1, 2).repeat_interleave(4 // each.shape[2], 1) for each in whole]
    expected = F.scaled_dot_product_attention(*turned, **chosen).transpose(1, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


class Unmasked(Sdpa):
    """A kernel that takes no mask."""

    name = "unmasked"

    def why_no_mask(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        return "it knows none"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None
        return super().__call__(q, k, v)


def test_a_mask_that_its_backend_does_not_take_is_refused_at_the_start_or_as_it_comes_with_what_to_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cast(dict[str, Backend], BACKENDS), "unmasked", Unmasked())
    everywhere = AttentionConfig("unmasked")
    with pytest.raises(ConfigError, match=r"at role 'self' .*: this site has a mask, and it knows none; choose"):
        bind(Attention(2, 8, causal=True), everywhere)
    bind(Attention(2, 8, causal=True), AttentionConfig("unmasked", {"self": "sdpa"}))
    site, q = Attention(2, 8, role="theirs.text", role_category="cross"), drawn(1, 3, 2, 8)
    bind(site, everywhere)
    assert torch.equal(site(q, q, q), Attention(2, 8)(q, q, q))
    masked = AttentionMetadata(attn_mask=torch.tensor([[1, 1, 0]]))
    advice = "'unmasked' cannot attend at role 'theirs.text', .*: it knows none; start with --attention.per_role.theirs"
    with pytest.raises(UnsupportedError, match=advice):
        site(q, q, q, masked)
    bind(site, AttentionConfig("unmasked", {"theirs.text": "sdpa"}))
    assert torch.equal(site(q, q, q, masked), Attention(2, 8)(q, q, q, masked))


def test_hints_for_kernels_are_taken_but_not_those_that_say_which_keys_count() -> None:
    q = drawn(1, 3, 2, 8)
    site = Attention(2, 8, True, 8**-0.5, qkv_layout="BSND", use_sync=True, disable_kv_quant=True)
    assert site(q, q, q, AttentionMetadata(extra={"kv_cache_dtype": None})).shape == q.shape
    with pytest.raises(ModelError, match=r"extra has \['valid_kv_length'\], which is not taken"):
        site(q, q, q, AttentionMetadata(extra={"valid_kv_length": 2}))
    with pytest.raises(ValueError, match="scatter_idx and gather_idx"):
        Attention(2, 8, scatter_idx=1)


def test_guidance_of_several_branches_is_that_of_two_or_the_pipelines_own() -> None:
    class Own(CFGParallelMixin):
        def predict_noise(self, value: float) -> torch.Tensor:  # type: ignore[override]
            return torch.tensor([value])

    both = [{"value": 3.0}, {"value": 1.0}]
    assert Own().predict_noise_with_multi_branch_cfg(True, 2.0, both) == torch.tensor([5.0])
    assert Own().predict_noise_with_multi_branch_cfg(False, 2.0, both) == torch.tensor([3.0])
    assert Own().predict_noise_maybe_with_cfg(True, 2.0, *both, cfg_normalize=False, kwargs={}) == torch.tensor([5.0])
    assert Own().check_cfg_parallel_validity(1.0, False)
    with pytest.raises(ModelError, match=r"3 branches with true_cfg_scale=2.* need a pipeline's own"):
        Own().predict_noise_with_multi_branch_cfg(True, 2.0, [*both, both[0]])


def test_a_norm_with_a_residual_gives_their_sum_too() -> None:
    norm, x, residual = RMSNorm(8), drawn(3, 8), drawn(3, 8, seed=1)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), torch.ones(8), 1e-6))
    normed, added = norm(x, residual)
    assert torch.equal(added, x + residual)
    assert torch.equal(normed, norm(x + residual))


def test_rotations_and_timesteps_are_those_of_diffusers() -> None:
    x, angles = drawn(1, 5, 2, 8), drawn(5, 4, seed=1)
    cos, sin = angles.cos(), angles.sin()
    both = [each.repeat_interleave(2, dim=1) for each in (cos, sin)]
    expected = apply_rotary_emb(x, (both[0], both[1]), sequence_dim=1)
    torch.testing.assert_close(RotaryEmbedding()(x, cos, sin), expected)
    torch.testing.assert_close(RotaryEmbedding(half_head_dim=False)(x, both[0], both[1]), expected)
    part = RotaryEmbedding(is_neox_style=True, half_head_dim=False)(
        x, *(torch.cat([c[:, :2]] * 2, 1) for c in (cos, sin))
    )
    torch.testing.assert_close(part[..., :4], RotaryEmbedding(is_neox_style=True)(x[..., :4], cos[:, :2], sin[:, :2]))
    assert torch.equal(part[..., 4:], x[..., 4:])
    assert apply_rope_to_qk(RotaryEmbedding(), x, x, None) == (x, x)
    t = torch.tensor([0.0, 12.5, 999.0])
    expected = get_timestep_embedding(t, 16, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, 16), expected, atol=1e-4, rtol=0)


def test_activations_and_shifted_norms_are_as_written() -> None:
    x, condition = drawn(2, 3, 8), drawn(2, 24, seed=1)
    torch.testing.assert_close(SiluAndMul()(x), F.silu(x[..., :4]) * x[..., 4:])
    made, gate = AdaLayerNorm(8)(x, condition)
    shift, scale, wanted = (each[:, None] for each in condition.chunk(3, -1))
    torch.testing.assert_close(made, F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift)
    assert torch.equal(gate, wanted)


def test_shifted_norms_are_those_of_diffusers() -> None:
    x, emb = drawn(2, 3, 8), drawn(2, 8, seed=1)
    pairs = [
        (AdaLayerNormZero(8), normalization.AdaLayerNormZero(8), {"emb": emb}),
        (AdaLayerNormZeroSingle(8), normalization.AdaLayerNormZeroSingle(8), {"emb": emb}),
        (AdaLayerNormContinuous(8, 8), normalization.AdaLayerNormContinuous(8, 8, False, 1e-6), {}),
    ]
    for ours, theirs, named in pairs:
        theirs.load_state_dict(ours.state_dict())
        given = named or {"conditioning_embedding": emb}
        torch.testing.assert_close(ours(x, **given), theirs(x, **given))
    scale, shift = drawn(2, 1, 8, seed=2), drawn(2, 1, 8, seed=3)
    torch.testing.assert_close(AdaLayerNorm(8)(x, scale, shift), F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shares_of_all_ranks_make_up_the_layer(ranks: int) -> None:
    """Queries of 4 heads and keys of 2, columns in two pieces, and rows: what each rank computes, put together."""
    q, k, v = drawn(16, 6), drawn(8, 6, seed=1), drawn(8, 6, seed=2)
    up, down, x = drawn(8, 6, seed=3), drawn(6, 8, seed=4), drawn(2, 6, seed=5)
    queries, pieces, added = [], [], torch.zeros(2, 6)
    for rank in range(ranks):
        mesh = Mesh.planned(ParallelConfig(tensor=ranks), rank)
        with within(Surroundings(torch.device("cpu"), torch.float32, mesh, None)):
            qkv = QKVParallelLinear(6, 4, 4, 2, bias=False)
            merged = MergedColumnParallelLinear(6, [8, 8], bias=False, return_bias=False)
            row = RowParallelLinear(8, 6, bias=False, return_bias=False, reduce_results=False)
        for shard, weight in (("q", q), ("k", k), ("v", v)):
            qkv.weight_loader(qkv.weight, weight, shard)
        merged.weight_loader(merged.weight, up, 0)
        merged.weight_loader(merged.weight, -up, 1)
        row.weight_loader(row.weight, down)
        sizes = [qkv.num_heads * 4, *[qkv.num_kv_heads * 4] * 2]
        own, keys, _ = qkv(x)[0].split(sizes, dim=-1)
        queries.append(own)
        first = rank * 2 // ranks * 4
        torch.testing.assert_close(keys, F.linear(x, k)[:, first : first + keys.shape[1]])
        pieces.append(merged(x).chunk(2, -1))
        added = added + row(pieces[-1][0])
    torch.testing.assert_close(torch.cat(queries, -1), F.linear(x, q))
    for piece, weight in enumerate((up, -up)):
        torch.testing.assert_close(torch.cat([each[piece] for each in pieces], -1), F.linear(x, weight))
    torch.testing.assert_close(added, F.linear(F.linear(x, up), down))


def test_a_layer_returns_its_bias_as_the_contract_says() -> None:
    layer = ColumnParallelLinear(4, 6)
    x = drawn(2, 4)
    out, bias = layer(x)
    assert bias is None
    later, bias = ColumnParallelLinear(4, 6, skip_bias_add=True)(x)
    assert bias is not None
    assert out.shape == later.shape
    assert isinstance(ColumnParallelLinear(4, 6, return_bias=False)(x), torch.Tensor)


def test_weights_go_to_who_has_their_names() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fused = nn.Linear(2, 2, bias=False)

        def load_weights(self, weights: object) -> set[str]:
            [(name, tensor)] = list(weights)  # type: ignore[call-overload]
            assert name == "old.weight"
            self.fused.weight.data.copy_(tensor)
            return {"fused.weight"}

    module = nn.ModuleDict({"part": Part(), "plain": nn.Linear(2, 1)})
    tensors = {"part.old.weight": torch.ones(2, 2), "x.plain.weight": torch.zeros(1, 2), "x.plain.bias": torch.ones(1)}
    mapper = WeightsMapper(orig_to_new_prefix={"x.": ""})
    loaded = AutoWeightsLoader(module).load_weights(tensors.items(), mapper=mapper)
    assert loaded == {"part.fused.weight", "plain.weight", "plain.bias"}
    assert module["plain"].bias.item() == 1.0
    with pytest.raises(ModelError, match=r"has no parameter 'plain.scale'"):
        AutoWeightsLoader(module).load_weights([("plain.scale", torch.ones(1))])
    assert AutoWeightsLoader(module, skip_prefixes=["plain."]).load_weights([("plain.scale", torch.ones(1))]) == set()
