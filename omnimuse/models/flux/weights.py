"""How names in a published FLUX.1 transformer checkpoint (diffusers layout) become ours. A table for the loader.

Renames act in order and are anchored where a name may occur elsewhere; fuses join the three attention projections.
"""

from __future__ import annotations

from omnimuse.loader.rules import Fuse, Rename

DOUBLE = r"^(stack\.double_blocks\.\d+)\."
SINGLE = r"^(stack\.single_blocks\.\d+)\."

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_text_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_text_embed\.guidance_embedder\.", "guidance_embedder."),
    Rename(r"^time_text_embed\.text_embedder\.linear_1\.", "pooled_embedder.0."),
    Rename(r"^time_text_embed\.text_embedder\.linear_2\.", "pooled_embedder.2."),
    Rename(r"^norm_out\.linear\.", "head.modulation."),
    Rename(r"^proj_out\.", "head.linear."),
    # Double blocks: the image's weights have the plain names, the text's the added ones.
    Rename(r"^transformer_blocks\.(\d+)\.", r"stack.double_blocks.\1."),
    Rename(DOUBLE + r"norm1\.linear\.", r"\1.image.modulation."),
    Rename(DOUBLE + r"norm1_context\.linear\.", r"\1.text.modulation."),
    Rename(DOUBLE + r"attn\.(to_[qkv]|norm_[qk])\.", r"\1.image.qkv.\2."),
    Rename(DOUBLE + r"attn\.add_([qkv])_proj\.", r"\1.text.qkv.to_\2."),
    Rename(DOUBLE + r"attn\.norm_added_([qk])\.", r"\1.text.qkv.norm_\2."),
    Rename(DOUBLE + r"attn\.to_out\.0\.", r"\1.image.to_out."),
    Rename(DOUBLE + r"attn\.to_add_out\.", r"\1.text.to_out."),
    Rename(DOUBLE + r"ff\.net\.0\.proj\.", r"\1.image.mlp.0."),
    Rename(DOUBLE + r"ff\.net\.2\.", r"\1.image.mlp.2."),
    Rename(DOUBLE + r"ff_context\.net\.0\.proj\.", r"\1.text.mlp.0."),
    Rename(DOUBLE + r"ff_context\.net\.2\.", r"\1.text.mlp.2."),
    # Single blocks.
    Rename(r"^single_transformer_blocks\.(\d+)\.", r"stack.single_blocks.\1."),
    Rename(SINGLE + r"norm\.linear\.", r"\1.modulation."),
    Rename(SINGLE + r"attn\.", r"\1.qkv."),
    Rename(SINGLE + r"proj_mlp\.", r"\1.mlp.0."),
    Rename(SINGLE + r"proj_out\.", r"\1.to_out."),
    *(
        Fuse(parts=(f"qkv.to_q.{kind}", f"qkv.to_k.{kind}", f"qkv.to_v.{kind}"), into=f"qkv.linear.{kind}")
        for kind in ("weight", "bias")
    ),
    Fuse(parts=("qkv.norm_q.weight", "qkv.norm_k.weight"), into="qkv.norm_qk.weight"),
)
