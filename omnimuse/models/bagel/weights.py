"""How names in a published BAGEL checkpoint become ours. Tables for the loader."""

from __future__ import annotations

from omnimuse.components.decoder_names import LAYERS
from omnimuse.loader.rules import Drop, Fuse, Rename, joined
from omnimuse.models.bagel.layout import LEVELS

SEEING = r"^(vit_model|connector|vit_pos_embed)\."

RULES: tuple[Rename | Fuse | Drop, ...] = (
    Drop(SEEING),
    Rename(r"^language_model\.lm_head\.", "head."),
    Rename(r"^language_model\.model\.", ""),
    Rename(r"^norm_moe_gen\.", "drawn_norm."),
    Rename(r"^(layers\.\d+)\.(.*)_moe_gen\.", r"\1.drawn.\2."),
    Rename(r"^(layers\.\d+)\.(?!drawn\.)", r"\1.read."),
    Rename(r"\.self_attn\.", "."),
    Rename(r"^vae2llm\.", "enter_drawn."),
    Rename(r"^llm2vae\.", "say_drawn."),
    Rename(r"^time_embedder\.mlp\.0\.", "time_embedder.linear_1."),
    Rename(r"^time_embedder\.mlp\.2\.", "time_embedder.linear_2."),
    Rename(r"^latent_pos_embed\.pos_embed$", "places"),
    *LAYERS,
)

VISION: tuple[Rename | Fuse | Drop, ...] = (
    Drop(r"^(?!vit_model\.|connector\.|vit_pos_embed\.)"),
    Rename(r"^vit_pos_embed\.pos_embed$", "places"),
    Rename(r"^vit_model\.vision_model\.(embeddings\.)?", ""),
    Rename(r"^encoder\.layers\.", "blocks."),
    Rename(r"^position_embedding\.weight$", "position_embedding"),
    Rename(r"\.layer_norm([12])\.", r".norm\1."),
    Rename(r"\.self_attn\.out_proj\.", ".proj."),
    Rename(r"\.self_attn\.", "."),
    Rename(r"\b(mlp|connector)\.fc1\.", r"\1.0."),
    Rename(r"\b(mlp|connector)\.fc2\.", r"\1.2."),
    *joined("*_proj", "qkv", "qkv"),
)

AUTOENCODER: tuple[Rename, ...] = (
    Rename(r"^encoder\.down\.", "encoder.down_blocks."),
    *(Rename(rf"^decoder\.up\.{n}\.", f"decoder.up_blocks.{LEVELS - 1 - n}.") for n in range(LEVELS)),
    Rename(r"\.block\.", ".resnets."),
    Rename(r"\.(down|up)sample\.", r".\1samplers.0."),
    Rename(r"\.nin_shortcut\.", ".conv_shortcut."),
    Rename(r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    Rename(r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    Rename(r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    Rename(r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    Rename(r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    Rename(r"\.norm_out\.", ".conv_norm_out."),
)
