"""How names in a published Stable Diffusion 3 transformer checkpoint (diffusers layout) become ours."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^pos_embed\.proj\.", "image_embedder."),
    Rename(r"^pos_embed\.pos_embed$", "places"),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_text_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_text_embed\.text_embedder\.linear_1\.", "pooled_embedder.0."),
    Rename(r"^time_text_embed\.text_embedder\.linear_2\.", "pooled_embedder.2."),
    # The second attention, of the image to itself.
    Rename(r"^transformer_blocks\.(\d+)\.attn2\.to_out\.0\.", r"stack.double_blocks.\1.to_out."),
    Rename(r"^transformer_blocks\.(\d+)\.attn2\.", r"stack.double_blocks.\1.qkv."),
    *BLOCKS,
)
