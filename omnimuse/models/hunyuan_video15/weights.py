"""How names in a published HunyuanVideo-1.5 transformer checkpoint (diffusers layout) become ours, and what adapters
call its layers. For the loader.
"""

from __future__ import annotations

from omnimuse.components.two_stream_names import ALIASES as LAYERS
from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename, joined

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

_BLOCK, _TEXT = r"transformer_blocks.\1", "context_embedder"
_REFINER = rf"{_TEXT}.token_refiner.refiner_blocks.\1"

ALIASES: tuple[Alias, ...] = (
    Alias(r"double_blocks\.(\d+)\.img_attn_([qkv])", (rf"{_BLOCK}.attn.to_\2",)),
    Alias(r"double_blocks\.(\d+)\.txt_attn_([qkv])", (rf"{_BLOCK}.attn.add_\2_proj",)),
    Alias(r"double_blocks\.(\d+)\.img_attn_proj", (f"{_BLOCK}.attn.to_out.0",)),
    Alias(r"double_blocks\.(\d+)\.txt_attn_proj", (f"{_BLOCK}.attn.to_add_out",)),
    Alias(r"double_blocks\.(\d+)\.img_mlp\.fc1", (f"{_BLOCK}.ff.net.0.proj",)),
    Alias(r"double_blocks\.(\d+)\.img_mlp\.fc2", (f"{_BLOCK}.ff.net.2",)),
    Alias(r"double_blocks\.(\d+)\.txt_mlp\.fc1", (f"{_BLOCK}.ff_context.net.0.proj",)),
    Alias(r"double_blocks\.(\d+)\.txt_mlp\.fc2", (f"{_BLOCK}.ff_context.net.2",)),
    Alias(r"double_blocks\.(\d+)\.img_mod\.linear", (f"{_BLOCK}.norm1.linear",)),
    Alias(r"double_blocks\.(\d+)\.txt_mod\.linear", (f"{_BLOCK}.norm1_context.linear",)),
    Alias(
        r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn_qkv",
        tuple(f"{_REFINER}.attn.to_{part}" for part in "qkv"),
    ),
    Alias(r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.self_attn_proj", (f"{_REFINER}.attn.to_out.0",)),
    Alias(r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.mlp\.fc1", (f"{_REFINER}.ff.net.0.proj",)),
    Alias(r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.mlp\.fc2", (f"{_REFINER}.ff.net.2",)),
    Alias(r"txt_in\.individual_token_refiner\.blocks\.(\d+)\.adaLN_modulation\.1", (f"{_REFINER}.norm_out.linear",)),
    Alias(r"txt_in\.input_embedder", (f"{_TEXT}.proj_in",)),
    Alias(r"txt_in\.c_embedder\.linear_([12])", (rf"{_TEXT}.time_text_embed.text_embedder.linear_\1",)),
    *(
        Alias(rf"{theirs}\.mlp\.{layer}", (f"{ours}.linear_{number}",))
        for theirs, ours in (
            (r"txt_in\.t_embedder", f"{_TEXT}.time_text_embed.timestep_embedder"),
            (r"time_in", "time_embed.timestep_embedder"),
            (r"time_r_in", "time_embed.timestep_embedder_r"),
        )
        for number, layer in enumerate((0, 2), 1)
    ),
    Alias(r"byt5_in\.fc([123])", (rf"{_TEXT}_2.linear_\1",)),
    Alias(r"vision_in\.proj\.1", ("image_embedder.linear_1",)),
    Alias(r"vision_in\.proj\.3", ("image_embedder.linear_2",)),
    *LAYERS,
)
"""The first published code's names, where queries, keys and values are layers of their own, and the shorter ones of
programs that join them.
"""
