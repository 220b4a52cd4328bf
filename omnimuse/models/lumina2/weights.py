"""How names in a published Lumina 2 transformer checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.one_stream import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^time_caption_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_caption_embed\.caption_embedder\.0\.", "caption_norm."),
    Rename(r"^time_caption_embed\.caption_embedder\.1\.", "caption_embedder."),
    Rename(r"^norm_out\.linear_1\.", "head.modulation."),
    Rename(r"^norm_out\.linear_2\.", "head.linear."),
    # Within blocks: timed ones have a norm with a modulation beside it, the others the norm alone.
    Rename(r"\.norm1\.linear\.", ".modulation."),
    Rename(r"\.norm1\.(?:norm\.)?", ".attention_norm1."),
    Rename(r"\.norm2\.", ".attention_norm2."),
    Rename(r"\.attn\.", ".attention."),
    Rename(r"\.feed_forward\.linear_1\.", ".mlp.gate."),
    Rename(r"\.feed_forward\.linear_2\.", ".mlp.down."),
    Rename(r"\.feed_forward\.linear_3\.", ".mlp.up."),
    *BLOCKS,
)
