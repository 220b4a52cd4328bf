"""An attention backend that needs little memory: a few queries at a time, whatever the kernel.

Letters: B batch, S query tokens, K key tokens, N heads, H head dim.
"""

import torch
import torch.nn.functional as F

CHUNK = 256
"""Queries at a time."""


class Chunks:
    """softmax(q k^T / sqrt(H)) v, CHUNK queries at a time; scores are [B, N, CHUNK, K] at most."""

    name = "example_chunks"
    weighs = False

    def why_not(self, device, dtype, head_dim):
        """It runs wherever torch does."""
        return None if dtype.is_floating_point else f"it computes in floating point, not in {dtype}"

    def __call__(self, q, k, v, mask=None):
        """[B, S, N, H], [B, K, N, H] twice -> [B, S, N, H]."""
        key, value = k.transpose(1, 2), v.transpose(1, 2)
        made = []
        for start in range(0, q.shape[1], CHUNK):
            some = slice(start, start + CHUNK)
            part = mask[..., some, :] if mask is not None and mask.shape[-2] > 1 else mask
            made.append(F.scaled_dot_product_attention(q[:, some].transpose(1, 2), key, value, part).transpose(1, 2))
        return torch.cat(made, dim=1)

    def packed(self, q, k, v, layout, kv_layout):
        """Rows of any lengths, one after the other."""
        rows = zip(layout.slices(), kv_layout.slices(), strict=True)
        return torch.cat([self(q[:, mine], k[:, theirs], v[:, theirs]) for mine, theirs in rows], dim=1)

    def weigh(self, q, k, v):
        """Not told: a ring of ranks is refused this backend."""
        raise NotImplementedError
