"""The names that networks of two streams (`two_streams.py`) have in checkpoints, and those that adapters have."""

from __future__ import annotations

from omnimuse.loader.rules import Alias, Fuse, Rename, joined

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

_DOUBLE, _SINGLE = r"transformer_blocks.\1", r"single_transformer_blocks.\1"
_IMAGE = tuple(f"{_DOUBLE}.attn.to_{part}" for part in "qkv")
_TEXT = tuple(f"{_DOUBLE}.attn.add_{part}_proj" for part in "qkv")
_ALL = tuple(f"{_SINGLE}.attn.to_{part}" for part in "qkv")

ALIASES: tuple[Alias, ...] = (
    Alias(r"double_blocks\.(\d+)\.(?:img_attn\.qkv|processor\.qkv_lora1)", _IMAGE),
    Alias(r"double_blocks\.(\d+)\.(?:txt_attn\.qkv|processor\.qkv_lora2)", _TEXT),
    Alias(r"double_blocks\.(\d+)\.(?:img_attn\.proj|processor\.proj_lora1)", (f"{_DOUBLE}.attn.to_out.0",)),
    Alias(r"double_blocks\.(\d+)\.(?:txt_attn\.proj|processor\.proj_lora2)", (f"{_DOUBLE}.attn.to_add_out",)),
    Alias(r"double_blocks\.(\d+)\.img_mlp\.0", (f"{_DOUBLE}.ff.net.0.proj",)),
    Alias(r"double_blocks\.(\d+)\.img_mlp\.2", (f"{_DOUBLE}.ff.net.2",)),
    Alias(r"double_blocks\.(\d+)\.txt_mlp\.0", (f"{_DOUBLE}.ff_context.net.0.proj",)),
    Alias(r"double_blocks\.(\d+)\.txt_mlp\.2", (f"{_DOUBLE}.ff_context.net.2",)),
    Alias(r"double_blocks\.(\d+)\.img_mod\.lin", (f"{_DOUBLE}.norm1.linear",)),
    Alias(r"double_blocks\.(\d+)\.txt_mod\.lin", (f"{_DOUBLE}.norm1_context.linear",)),
    Alias(r"single_blocks\.(\d+)\.linear1", (*_ALL, f"{_SINGLE}.proj_mlp")),
    Alias(r"single_blocks\.(\d+)\.processor\.qkv_lora", _ALL),
    Alias(r"single_blocks\.(\d+)\.(?:linear2|processor\.proj_lora)", (f"{_SINGLE}.proj_out",)),
    Alias(r"single_blocks\.(\d+)\.modulation\.lin", (f"{_SINGLE}.norm.linear",)),
    Alias(r"img_in", ("x_embedder",)),
    Alias(r"txt_in", ("context_embedder",)),
    Alias(r"final_layer\.linear", ("proj_out",)),
    Alias(r"final_layer\.adaLN_modulation\.1", ("norm_out.linear",), turned=True),
)
"""What adapters call layers: the names of the first published code, as Kohya's trainers and AI-Toolkit have them, and
those of XLabs. There queries, keys and values are one layer.
"""
