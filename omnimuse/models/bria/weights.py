"""How names in a published Bria checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_embed\.timestep_embedder\.", "time_embedder."),
    *BLOCKS,
)
