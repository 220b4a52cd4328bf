"""How names in a published FLUX.2 checkpoint (diffusers layout) become ours, and what adapters call its layers."""

from __future__ import annotations

from omnimuse.components.two_stream_names import ALIASES as LAYERS
from omnimuse.components.two_stream_names import RULES as BLOCKS
from omnimuse.loader.rules import Alias, Fuse, Rename

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

_DOUBLE, _SINGLE = r"transformer_blocks.\1", r"single_transformer_blocks.\1"
_TIME = "time_guidance_embed"

ALIASES: tuple[Alias, ...] = (
    # What is otherwise than in other networks of two streams comes first.
    Alias(r"double_blocks\.(\d+)\.img_mlp\.0", (f"{_DOUBLE}.ff.linear_in",)),
    Alias(r"double_blocks\.(\d+)\.img_mlp\.2", (f"{_DOUBLE}.ff.linear_out",)),
    Alias(r"double_blocks\.(\d+)\.txt_mlp\.0", (f"{_DOUBLE}.ff_context.linear_in",)),
    Alias(r"double_blocks\.(\d+)\.txt_mlp\.2", (f"{_DOUBLE}.ff_context.linear_out",)),
    Alias(r"single_blocks\.(\d+)\.linear1", (f"{_SINGLE}.attn.to_qkv_mlp_proj",)),
    Alias(r"single_blocks\.(\d+)\.linear2", (f"{_SINGLE}.attn.to_out",)),
    Alias(
        r"(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)\.lin", (r"\1.linear",)
    ),
    Alias(r"time_in\.in_layer", (f"{_TIME}.timestep_embedder.linear_1",)),
    Alias(r"time_in\.out_layer", (f"{_TIME}.timestep_embedder.linear_2",)),
    Alias(r"guidance_in\.in_layer", (f"{_TIME}.guidance_embedder.linear_1",)),
    Alias(r"guidance_in\.out_layer", (f"{_TIME}.guidance_embedder.linear_2",)),
    *LAYERS,
)
