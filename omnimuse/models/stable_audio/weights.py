"""How names in a published Stable Audio transformer checkpoint (diffusers layout) become ours. A table for the loader.

Fuses join projections that read the same tokens: queries, keys and values of the sound; keys and values of the text.
"""

from __future__ import annotations

from omnimuse.loader.rules import Fuse, Rename, joined

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^transformer_blocks\.", "blocks."),
    Rename(r"\.attn1\.", ".self_attention."),
    Rename(r"\.attn2\.", ".cross_attention."),
    Rename(r"\.to_out\.0\.", ".to_out."),
    Rename(r"\.ff\.net\.0\.proj\.", ".mlp.linear_1."),
    Rename(r"\.ff\.net\.2\.", ".mlp.linear_2."),
    *joined("self_attention.to_*", "qkv", "self_attention.to_qkv", kinds=("weight",)),
    *joined("cross_attention.to_*", "kv", "cross_attention.to_kv", kinds=("weight",)),
)
