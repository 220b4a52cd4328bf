"""Norms, embeddings and rotations compute what diffusers computes."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_timestep_embedding
from diffusers.models.normalization import RMSNorm as ReferenceRMSNorm
from diffusers.models.transformers.transformer_z_image import FeedForward, RopeEmbedder, TimestepEmbedder

from omnimuse.layers.embedding import TimestepEmbedding, sinusoid
from omnimuse.layers.mlp import GatedMLP
from omnimuse.layers.norm import QueryKeyNorm, RMSNorm
from omnimuse.layers.rotary import rotary_table, rotate


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_rounds_where_the_reference_rounds(x_dtype, weight_dtype):
    ours, reference = RMSNorm(16, eps=1e-5).to(weight_dtype), ReferenceRMSNorm(16, eps=1e-5).to(weight_dtype)
    weight = {"weight": 1 + 0.1 * draw(16)}
    ours.load_state_dict(weight)
    reference.load_state_dict(weight)
    x = draw(4, 16, seed=1).to(x_dtype)
    assert ours(x).dtype == reference(x).dtype
    assert torch.equal(ours(x), reference(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rounds_once", "kind"), [(False, RMSNorm), (True, torch.nn.RMSNorm)])
def test_queries_and_keys_are_normed_as_one_by_one(rounds_once, kind, dtype):
    weight, x = 1 + 0.1 * draw(32), draw(1, 5, 2, 3, 16, seed=1).to(dtype)
    both = QueryKeyNorm(16, 1e-5, rounds_once=rounds_once).to(dtype)
    both.load_state_dict({"weight": weight})
    for which, part in enumerate(weight.split(16)):
        one = kind(16, 1e-5).to(dtype)
        one.load_state_dict({"weight": part})
        assert torch.equal(both(x)[:, :, which], one(x[:, :, which]))


def test_sinusoids_equal_those_of_both_reference_formulas():
    t = torch.tensor([0.0, 0.37, 500.0, 999.5])
    assert torch.equal(sinusoid(t, 64), TimestepEmbedder.timestep_embedding(t, 64))
    general = get_timestep_embedding(t, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(sinusoid(t, 64), general, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_time_embedding_equals_the_reference(dtype):
    ours, reference = TimestepEmbedding(16, 32).to(dtype), TimestepEmbedder(16, 32).to(dtype)
    for name, part in (("linear_1", reference.mlp[0]), ("linear_2", reference.mlp[2])):
        ours.get_submodule(name).load_state_dict(part.state_dict())
    t = torch.tensor([3.0, 750.0])
    assert torch.equal(ours(t), reference(t))


def test_the_gated_mlp_equals_the_reference():
    ours, reference = GatedMLP(8, 20), FeedForward(8, 20)
    for name, part in (("gate", reference.w1), ("up", reference.w3), ("down", reference.w2)):
        ours.get_submodule(name).load_state_dict(part.state_dict())
    x = draw(3, 8)
    assert torch.equal(ours(x), reference(x))


def test_rotary_tables_equal_the_reference_bit_for_bit():
    axes, generator = (4, 6, 6), torch.Generator().manual_seed(0)
    positions = torch.randint(0, 100, (50, 3), generator=generator)
    reference = RopeEmbedder(256.0, axes, (100, 100, 100))(positions)
    cosines, sines = rotary_table(positions, axes, 256.0).unbind(1)
    assert torch.equal(torch.view_as_complex(cosines + sines), reference)


def test_rotation_keeps_the_length_of_every_pair_and_depends_on_distance_only():
    positions = torch.tensor([[5], [9], [25], [29]])
    table = rotary_table(positions, (8,), 100.0)[None]  # [1, 4, 2, 4, 2]
    q, k = draw(8), draw(8, seed=1)
    turned_q, turned_k = rotate(torch.stack([q, k]).expand(1, 4, 2, 8)[..., None, :], table)[0, :, :, 0].unbind(1)
    pairs = turned_q.unflatten(-1, (-1, 2)).norm(dim=-1)
    assert torch.allclose(pairs, q.unflatten(-1, (-1, 2)).norm(dim=-1).expand(4, 4), atol=1e-6)
    assert torch.allclose(turned_q[0] @ turned_k[1], turned_q[2] @ turned_k[3], atol=1e-5)


def test_rotation_computes_in_float32_and_returns_the_dtype_it_was_given():
    table = rotary_table(torch.tensor([[7]]), (8,), 100.0)[None]
    x = draw(1, 1, 2, 3, 8).bfloat16()
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


@pytest.mark.parametrize("head_dim", [20, 64])  # pairs that are not, and that are, whole vectors
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_token_is_turned_as_the_reference_does_wherever_it_lies_and_whatever_the_threads(head_dim, threads):
    positions = torch.arange(1103)[:, None]
    x, table = draw(1, 1103, 2, 2, head_dim), rotary_table(positions, (head_dim,), 100.0, exact=True)[None]
    angles = torch.outer(positions[:, 0].double(), 100.0 ** -(torch.arange(0, head_dim, 2).double() / head_dim))
    repeated = [part.float().repeat_interleave(2, dim=1) for part in (angles.cos(), angles.sin())]
    expected = apply_rotary_emb(x.flatten(2, 3), repeated, sequence_dim=1).view_as(x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = [rotate(x[:, :count], table[:, :count]) for count in (1, 2, 5, 130, 1100, 1103)]
    torch.set_num_threads(before)
    for turned in found:
        assert torch.equal(turned, expected[:, : turned.shape[1]])
