"""How names in a published FLUX.1 transformer checkpoint (diffusers layout) become ours, and what adapters call its
layers. Tables for the loader.
"""

from __future__ import annotations

from omnimuse.components.two_stream_names import ALIASES as LAYERS
from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_text_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_text_embed\.guidance_embedder\.", "guidance_embedder."),
    Rename(r"^time_text_embed\.text_embedder\.linear_1\.", "pooled_embedder.0."),
    Rename(r"^time_text_embed\.text_embedder\.linear_2\.", "pooled_embedder.2."),
    *BLOCKS,
)

ALIASES: tuple[Alias, ...] = (
    *LAYERS,
    *(
        Alias(rf"{theirs}\.{layer}", (f"time_text_embed.{ours}.linear_{number}",))
        for theirs, ours in (
            ("time_in", "timestep_embedder"),
            ("guidance_in", "guidance_embedder"),
            ("vector_in", "text_embedder"),
        )
        for number, layer in enumerate(("in_layer", "out_layer"), 1)
    ),
)
