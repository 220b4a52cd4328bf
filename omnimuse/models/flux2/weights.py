"""How names in a published FLUX.2 transformer checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^x_embedder\.", "image_embedder."),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_guidance_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_guidance_embed\.guidance_embedder\.", "guidance_embedder."),
    Rename(r"^double_stream_modulation_img\.linear\.", "modulations.image."),
    Rename(r"^double_stream_modulation_txt\.linear\.", "modulations.text."),
    Rename(r"^single_stream_modulation\.linear\.", "modulations.single."),
    Rename(r"\.(ff|ff_context)\.linear_in\.", r".\1.net.0.proj."),
    Rename(r"\.(ff|ff_context)\.linear_out\.", r".\1.net.2."),
    Rename(r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"stack.single_blocks.\1.qkv.linear."),
    Rename(r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"stack.single_blocks.\1.to_out."),
    *BLOCKS,
)
