"""How names in a published FLUX.1 transformer checkpoint (diffusers layout) become ours, and what adapters call its
layers: by the names of the first published code, as Kohya's trainers have them, and by those of XLabs. Tables for the
loader.
"""

from __future__ import annotations

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

_DOUBLE, _SINGLE = r"transformer_blocks.\1", r"single_transformer_blocks.\1"
_IMAGE = tuple(f"{_DOUBLE}.attn.to_{part}" for part in "qkv")
_TEXT = tuple(f"{_DOUBLE}.attn.add_{part}_proj" for part in "qkv")
_ALL = tuple(f"{_SINGLE}.attn.to_{part}" for part in "qkv")
_TIMES = "time_text_embed"

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
    *(
        Alias(rf"{theirs}\.{layer}", (f"{_TIMES}.{ours}.linear_{number}",))
        for theirs, ours in (
            ("time_in", "timestep_embedder"),
            ("guidance_in", "guidance_embedder"),
            ("vector_in", "text_embedder"),
        )
        for number, layer in enumerate(("in_layer", "out_layer"), 1)
    ),
)
"""Whole layers where the checkpoint has queries, keys and values apart. `final_layer.adaLN_modulation` is not among
them: there scale and shift stand the other way round.
"""
