"""How names in a published GLM-Image checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.joint_stream_names import RULES as JOINT
from omnimuse.loader.rules import Drop, Fuse, Rename, joined

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^image_projector\.proj\.", "image_embedder."),
    Rename(r"^glyph_projector\.net\.0\.proj\.", "text_embedder."),
    Rename(r"^glyph_projector\.net\.2\.", "text_mlp.1."),
    Rename(r"^prior_token_embedding\.", "prior_embedder."),
    Rename(r"^prior_projector\.net\.0\.proj\.", "prior_mlp.0."),
    Rename(r"^prior_projector\.net\.2\.", "prior_mlp.2."),
    *JOINT,
)

LANGUAGE_RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^model\.vqmodel\.post_quant_conv\."),  # the way back, which nobody goes
    Rename(r"^lm_head\.", "head."),
    Rename(r"^model\.language_model\.", ""),
    *joined("*_proj", "qkv", "qkv"),
    Rename(r"\.mlp\.(gate_up|down)_proj\.", r".mlp.\1."),
    Rename(r"^model\.vqmodel\.(quantize\.)?", "codebook."),
    Rename(r"^model\.visual\.(embeddings\.|(?=blocks|patch))", "vision."),
    Rename(r"^vision\.patch_embed\.proj\.", "vision.patch_embed."),
    Rename(r"^(vision\.blocks\.\d+)\.attn\.", r"\1."),
    Rename(r"^(vision\.blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.0."),
    Rename(r"^(vision\.blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.2."),
)
"""The same of its language model, in the layout of transformers."""
