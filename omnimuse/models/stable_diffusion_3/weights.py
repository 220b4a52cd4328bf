"""How names in a published Stable Diffusion 3 transformer checkpoint (diffusers layout) become ours."""

from __future__ import annotations

from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^pos_embed\.proj\.", "image_embedder."),
    Rename(r"^pos_embed\.pos_embed$", "places"),
    Rename(r"^context_embedder\.", "text_embedder."),
    Rename(r"^time_text_embed\.timestep_embedder\.", "time_embedder."),
    Rename(r"^time_text_embed\.text_embedder\.linear_1\.", "pooled_embedder.0."),
    Rename(r"^time_text_embed\.text_embedder\.linear_2\.", "pooled_embedder.2."),
    # The second attention, of the image to itself.
    Rename(r"^transformer_blocks\.(\d+)\.attn2\.to_out\.0\.", r"stack.double_blocks.\1.to_out."),
    Rename(r"^transformer_blocks\.(\d+)\.attn2\.", r"stack.double_blocks.\1.qkv."),
    *BLOCKS,
)

_BLOCK, _TOLD = r"transformer_blocks.\1", "time_text_embed"

ALIASES: tuple[Alias, ...] = (
    Alias(r"joint_blocks\.(\d+)\.x_block\.attn(2?)\.qkv", tuple(rf"{_BLOCK}.attn\2.to_{part}" for part in "qkv")),
    Alias(r"joint_blocks\.(\d+)\.x_block\.attn(2?)\.proj", (rf"{_BLOCK}.attn\2.to_out.0",)),
    Alias(r"joint_blocks\.(\d+)\.x_block\.mlp\.fc1", (f"{_BLOCK}.ff.net.0.proj",)),
    Alias(r"joint_blocks\.(\d+)\.x_block\.mlp\.fc2", (f"{_BLOCK}.ff.net.2",)),
    Alias(r"joint_blocks\.(\d+)\.x_block\.adaLN_modulation\.1", (f"{_BLOCK}.norm1.linear",)),
    Alias(r"joint_blocks\.(\d+)\.context_block\.adaLN_modulation\.1", (f"{_BLOCK}.norm1_context.linear",), turned=True),
    Alias(r"joint_blocks\.(\d+)\.context_block\.attn\.qkv", tuple(f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv")),
    Alias(r"joint_blocks\.(\d+)\.context_block\.attn\.proj", (f"{_BLOCK}.attn.to_add_out",)),
    Alias(r"joint_blocks\.(\d+)\.context_block\.mlp\.fc1", (f"{_BLOCK}.ff_context.net.0.proj",)),
    Alias(r"joint_blocks\.(\d+)\.context_block\.mlp\.fc2", (f"{_BLOCK}.ff_context.net.2",)),
    *(
        Alias(rf"{theirs}\.mlp\.{layer}", (f"{_TOLD}.{ours}.linear_{number}",))
        for theirs, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder"))
        for number, layer in enumerate((0, 2), 1)
    ),
    Alias(r"final_layer\.linear", ("proj_out",)),
    Alias(r"final_layer\.adaLN_modulation\.1", ("norm_out.linear",), turned=True),
)
"""What adapters call its layers by the names of the first published code, as Kohya's trainers have them. The modulation
of the text in the last block is, like that of the end, a shift and a scale alone, whose order is another here.
"""
