"""How names in a published FLUX.1 transformer checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_text_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_text_embed\.guidance_embedder\.", "guidance_embedder."),
    Rename(r"^time_text_embed\.text_embedder\.linear_1\.", "pooled_embedder.0."),
    Rename(r"^time_text_embed\.text_embedder\.linear_2\.", "pooled_embedder.2."),
    *BLOCKS,
)
