"""How names in a published Chroma checkpoint (diffusers layout) become ours, and what adapters call its layers."""

from __future__ import annotations

from omnimuse.components.two_stream_names import ALIASES as LAYERS
from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^distilled_guidance_layer\.(in|out)_proj\.", r"modulator.\1_linear."),
    Rename(r"^distilled_guidance_layer\.layers\.(\d+)\.linear_", r"modulator.layers.\1.linear_"),
    Rename(r"^distilled_guidance_layer\.norms\.(\d+)\.", r"modulator.layers.\1.norm."),
    *BLOCKS,
)

_GUIDANCE = r"distilled_guidance_layer.layers.\1"

ALIASES: tuple[Alias, ...] = (
    *LAYERS,
    Alias(r"distilled_guidance_layer\.layers\.(\d+)\.in_layer", (f"{_GUIDANCE}.linear_1",)),
    Alias(r"distilled_guidance_layer\.layers\.(\d+)\.out_layer", (f"{_GUIDANCE}.linear_2",)),
)
