"""The names that the tensors of networks of two streams (`two_streams.py`) have in checkpoints."""

from __future__ import annotations

from omnimuse.loader.rules import Fuse, Rename, joined

DOUBLE = r"^(stack\.double_blocks\.\d+)\."
SINGLE = r"^(stack\.single_blocks\.\d+)\."

RULES: tuple[Rename | Fuse, ...] = (
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
    Rename(SINGLE + r"attn\.norm_", r"\1.qkv.norm_"),
    Rename(SINGLE + r"(?:attn\.to_|proj_)(q|k|v|mlp)\.", r"\1.all.\2."),
    Rename(SINGLE + r"proj_out\.", r"\1.to_out."),
    *joined("qkv.to_*", "qkv", "qkv.linear"),
    *joined("all.*", ("q", "k", "v", "mlp"), "qkv.linear"),
    Fuse(parts=("qkv.norm_q.weight", "qkv.norm_k.weight"), into="qkv.norm_qk.weight"),
)
"""How the names of blocks and of the head, as diffusers saves such networks, become ours.

Renames act in order and are anchored where a name may occur elsewhere; fuses join the attention's three projections,
and the MLP's first layer where it stands beside them.
"""
