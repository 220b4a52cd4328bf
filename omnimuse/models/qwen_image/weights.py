"""How names in a published Qwen-Image transformer checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename

BLOCK = r"^(transformer_blocks\.\d+)\."

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^img_in\.", "image_embedder."),
    Rename(r"^txt_norm\.", "text_norm."),
    Rename(r"^txt_in\.", "text_embedder."),
    Rename(r"^time_text_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_text_embed\.addition_t_embedding\.", "kind_embedder."),
    # Within blocks, what has names of its own gets those that other networks of the kind have.
    Rename(BLOCK + r"img_mod\.1\.", r"\1.norm1.linear."),
    Rename(BLOCK + r"txt_mod\.1\.", r"\1.norm1_context.linear."),
    Rename(BLOCK + r"img_mlp\.", r"\1.ff."),
    Rename(BLOCK + r"txt_mlp\.", r"\1.ff_context."),
    *BLOCKS,
)
