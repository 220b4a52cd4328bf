"""How names in a published Wan checkpoint (diffusers layout) become ours. Fuses join what reads the same tokens."""

from __future__ import annotations

from omnimuse.components.wide_names import ALIASES as TRAINED
from omnimuse.loader.rules import Drop, Rename, Rule, joined

RULES: tuple[Rule, ...] = (
    Drop(r"\.attn2\.norm_added_q\."),  # stored beside the one for keys; the reference reads it as little
    Rename(r"^condition_embedder\.(time_embedder|time_proj|text_embedder|image_embedder)\.", r"\1."),
    Rename(r"^image_embedder\.ff\.", "image_embedder."),
    Rename(r"\.attn2\.add_([kv])_proj\.", r".cross_attention.to_image_\1."),
    Rename(r"\.attn2\.norm_added_k\.", ".cross_attention.norm_image_k."),
    Rename(r"^(scale_shift_table$|proj_out\.)", r"head.\1"),
    Rename(r"\.attn1\.", ".self_attention."),
    Rename(r"\.attn2\.", ".cross_attention."),
    Rename(r"\.to_out\.0\.", ".to_out."),
    Rename(r"\.net\.0\.proj\.", ".linear_1."),
    Rename(r"\.net\.2\.", ".linear_2."),
    *joined("self_attention.to_*", "qkv", "self_attention.to_qkv"),
    *joined("cross_attention.to_*", "kv", "cross_attention.to_kv"),
    *joined("to_image_*", "kv", "to_image_kv"),
    *joined("self_attention.norm_*", "qk", "self_attention.norm_qk", kinds=("weight",)),
)

ALIASES = TRAINED
FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2")
"""Parts that stay in float32 whatever the dtype: the reference's list, less those without weights."""
