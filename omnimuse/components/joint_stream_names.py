"""The names that the tensors of networks with one set of weights for text and image (`joint_stream.py`) have in
checkpoints.
"""

from __future__ import annotations

from omnimuse.loader.rules import Fuse, Rename, joined

BLOCK = r"^(stack\.double_blocks\.\d+)\."

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^time_condition_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_condition_embed\.condition_embedder\.linear_1\.", "size_embedder.0."),
    Rename(r"^time_condition_embed\.condition_embedder\.linear_2\.", "size_embedder.2."),
    Rename(r"^norm_out\.linear\.", "head.modulation."),
    Rename(r"^proj_out\.", "head.linear."),
    Rename(r"^transformer_blocks\.(\d+)\.", r"stack.double_blocks.\1."),
    Rename(BLOCK + r"norm1\.linear\.", r"\1.modulation."),
    Rename(BLOCK + r"attn1\.to_out\.0\.", r"\1.to_out."),
    Rename(BLOCK + r"attn1\.", r"\1."),
    Rename(BLOCK + r"ff\.net\.0\.proj\.", r"\1.mlp.0."),
    Rename(BLOCK + r"ff\.net\.2\.", r"\1.mlp.2."),
    *joined("to_*", "qkv", "to_qkv"),
)
"""How the names of all but what makes tokens of text and image, as diffusers saves such networks, become ours."""
