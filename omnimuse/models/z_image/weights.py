"""How names in a published Z-Image transformer checkpoint (diffusers layout) become ours. A table for the
loader.

Renames are anchored and no name matches two of them; fuses join the three attention projections into one.
"""

from __future__ import annotations

from omnimuse.components.one_stream import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^all_x_embedder\.2-1\.", "image_embedder."),
    Rename(r"^cap_embedder\.0\.", "caption_norm."),
    Rename(r"^cap_embedder\.1\.", "caption_embedder."),
    Rename(r"^t_embedder\.mlp\.0\.", "time_embedder.linear_1."),
    Rename(r"^t_embedder\.mlp\.2\.", "time_embedder.linear_2."),
    Rename(r"^x_pad_token$", "image_pad"),
    Rename(r"^cap_pad_token$", "caption_pad"),
    Rename(r"^all_final_layer\.2-1\.adaLN_modulation\.1\.", "head.modulation."),
    Rename(r"^all_final_layer\.2-1\.linear\.", "head.linear."),
    Rename(r"\.adaLN_modulation\.0\.", ".modulation."),
    Rename(r"\.feed_forward\.w1\.", ".mlp.gate."),
    Rename(r"\.feed_forward\.w3\.", ".mlp.up."),
    Rename(r"\.feed_forward\.w2\.", ".mlp.down."),
    *BLOCKS,
)

ALIASES: tuple[Alias, ...] = (
    Alias(r"(\w+)\.(\d+)\.attention\.qkv", tuple(rf"\1.\2.attention.to_{part}" for part in "qkv")),
    Alias(r"(\w+)\.(\d+)\.attention\.to\.([qkv])", (r"\1.\2.attention.to_\3",)),
    Alias(r"(\w+)\.(\d+)\.attention\.out", (r"\1.\2.attention.to_out.0",)),
    Alias(r"x_embedder", ("all_x_embedder.2-1",)),
    Alias(r"final_layer\.(linear|adaLN_modulation\.1)", (r"all_final_layer.2-1.\1",)),
)
"""What adapters call its layers by the names of the first published code."""
