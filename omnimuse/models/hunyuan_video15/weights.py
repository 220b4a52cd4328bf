"""How names in a published HunyuanVideo-1.5 transformer checkpoint (diffusers layout) become ours. For the loader."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename, joined

REFINER = r"^(refiner\.blocks\.\d+)\."

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^image_embedder\.", "picture_embedder."),
    Rename(r"^x_embedder\.proj\.", "image_embedder."),
    Rename(r"^time_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_embed\.timestep_embedder_r\.", "end_embedder."),
    Rename(r"^cond_type_embed\.", "kinds."),
    Rename(r"^context_embedder_2\.", "glyph_embedder."),
    Rename(r"^(picture|glyph)_embedder\.norm(?:_in)?\.", r"\1_embedder.0."),
    Rename(r"^(picture|glyph)_embedder\.linear_1\.", r"\1_embedder.1."),
    Rename(r"^(picture|glyph)_embedder\.linear_2\.", r"\1_embedder.3."),
    Rename(r"^picture_embedder\.norm_out\.", "picture_embedder.4."),
    Rename(r"^glyph_embedder\.linear_3\.", "glyph_embedder.5."),
    # The refiner of the text: a small network of its own, which is told the time.
    Rename(r"^context_embedder\.proj_in\.", "text_embedder."),
    Rename(r"^context_embedder\.time_text_embed\.timestep_embedder\.", "refiner.time_embedder."),
    Rename(r"^context_embedder\.time_text_embed\.text_embedder\.linear_1\.", "pooled_embedder.0."),
    Rename(r"^context_embedder\.time_text_embed\.text_embedder\.linear_2\.", "pooled_embedder.2."),
    Rename(r"^context_embedder\.token_refiner\.refiner_blocks\.", "refiner.blocks."),
    Rename(REFINER + r"norm_out\.linear\.", r"\1.gates."),
    Rename(REFINER + r"attn\.to_out\.0\.", r"\1.to_out."),
    Rename(REFINER + r"attn\.to_([qkv])\.", r"\1.refined_\2."),
    Rename(REFINER + r"ff\.net\.0\.proj\.", r"\1.mlp.0."),
    Rename(REFINER + r"ff\.net\.2\.", r"\1.mlp.2."),
    *joined("refined_*", "qkv", "to_qkv"),
    *BLOCKS,
)
