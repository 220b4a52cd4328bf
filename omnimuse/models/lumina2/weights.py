"""How names in a published Lumina 2 transformer checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.one_stream import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename

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

_TOLD = "time_caption_embed"

ALIASES: tuple[Alias, ...] = (
    Alias(r"(\w+)\.(\d+)\.attention\.qkv", tuple(rf"\1.\2.attn.to_{part}" for part in "qkv")),
    Alias(r"(\w+)\.(\d+)\.attention\.out", (r"\1.\2.attn.to_out.0",)),
    Alias(r"(\w+)\.(\d+)\.feed_forward\.w([123])", (r"\1.\2.feed_forward.linear_\3",)),
    Alias(r"(\w+)\.(\d+)\.adaLN_modulation\.1", (r"\1.\2.norm1.linear",)),
    Alias(r"cap_embedder\.1", (f"{_TOLD}.caption_embedder.1",)),
    Alias(r"t_embedder\.mlp\.0", (f"{_TOLD}.timestep_embedder.linear_1",)),
    Alias(r"t_embedder\.mlp\.2", (f"{_TOLD}.timestep_embedder.linear_2",)),
    Alias(r"final_layer\.adaLN_modulation\.1", ("norm_out.linear_1",)),
    Alias(r"final_layer\.linear", ("norm_out.linear_2",)),
)
"""What adapters call its layers by the names of the first published code."""
