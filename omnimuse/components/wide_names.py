"""What adapters call layers of networks with norms over all heads (`wide_attention.py`) that draw videos: the names of
the first published code, as trainers have them. Checkpoints have those of diffusers.
"""

from __future__ import annotations

from omnimuse.loader.rules import Alias

_BLOCK, _TOLD = r"\1blocks.\2", "condition_embedder"

ALIASES: tuple[Alias, ...] = (
    Alias(r"(vace_)?blocks\.(\d+)\.self_attn\.([qkv])", (rf"{_BLOCK}.attn1.to_\3",)),
    Alias(r"(vace_)?blocks\.(\d+)\.self_attn\.o", (f"{_BLOCK}.attn1.to_out.0",)),
    Alias(r"(vace_)?blocks\.(\d+)\.cross_attn\.([qkv])", (rf"{_BLOCK}.attn2.to_\3",)),
    Alias(r"(vace_)?blocks\.(\d+)\.cross_attn\.o", (f"{_BLOCK}.attn2.to_out.0",)),
    Alias(r"(vace_)?blocks\.(\d+)\.cross_attn\.([kv])_img", (rf"{_BLOCK}.attn2.add_\3_proj",)),
    Alias(r"(vace_)?blocks\.(\d+)\.ffn\.0", (f"{_BLOCK}.ffn.net.0.proj",)),
    Alias(r"(vace_)?blocks\.(\d+)\.ffn\.2", (f"{_BLOCK}.ffn.net.2",)),
    Alias(r"vace_blocks\.(\d+)\.before_proj", (r"vace_blocks.\1.proj_in",)),
    Alias(r"vace_blocks\.(\d+)\.after_proj", (r"vace_blocks.\1.proj_out",)),
    Alias(r"(text|time)_embedding\.0", (rf"{_TOLD}.\1_embedder.linear_1",)),
    Alias(r"(text|time)_embedding\.2", (rf"{_TOLD}.\1_embedder.linear_2",)),
    Alias(r"time_projection\.1", (f"{_TOLD}.time_proj",)),
    Alias(r"img_emb\.proj\.1", (f"{_TOLD}.image_embedder.ff.net.0.proj",)),
    Alias(r"img_emb\.proj\.3", (f"{_TOLD}.image_embedder.ff.net.2",)),
    Alias(r"head\.head", ("proj_out",)),
)
