"""How names in a published Qwen2.5-Omni checkpoint become ours. Tables for the loader.

All its networks lie in the same files.
"""

from __future__ import annotations

from omnimuse.components.decoder_names import LAYERS, inside
from omnimuse.loader.rules import Drop, Fuse, Rename, joined

RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!thinker\.(model|lm_head)\.)"),
    Rename(r"^thinker\.(model\.)?", ""),
    Rename(r"^lm_head\.", "head."),
    *LAYERS,
)

VISION: tuple[Rename | Drop | Fuse, ...] = (
    *inside(r"thinker\.visual\."),
    Rename(r"^patch_embed\.proj\.", "patch_embed."),
    Rename(r"^(blocks\.\d+)\.attn\.", r"\1."),
    *joined("*", "qkv", "qkv"),
    Rename(r"^(blocks\.\d+)\.mlp\.(gate|up|down)_proj\.", r"\1.\2."),
)

HEARING: tuple[Rename | Drop, ...] = (
    Drop(r"\.audio_bos_eos_token\."),  # nothing reads it
    *inside(r"thinker\.audio_tower\."),
    Rename(r"\.self_attn\.", "."),
)

TALKER: tuple[Rename | Drop | Fuse, ...] = (
    *inside(r"talker\.(model\.)?"),
    Rename(r"^embed_tokens\.", "codec_embedding."),
    *LAYERS,
)

FLOW: tuple[Rename | Drop, ...] = (
    *inside(r"token2wav\.code2wav_dit_model\."),
    Drop(r"inv_freq$"),
    Rename(r"^time_embed\.", ""),
    Rename(r"^text_embed\.codec_embed\.", "codec_embed."),
    Rename(r"^input_embed\.", ""),
    Rename(r"^transformer_blocks\.", "blocks."),
    Rename(r"\.attn_norm\.linear\.", ".modulation."),
    Rename(r"\.attn\.to_out\.0\.", ".to_out."),
    Rename(r"\.attn\.", "."),
    Rename(r"\.ff\.ff\.", ".ff."),
    Rename(r"^norm_out\.linear\.", "modulation."),
)

VOCODER: tuple[Rename | Drop, ...] = (
    *inside(r"token2wav\.code2wav_bigvgan_model\."),
    Drop(r"\.filter$"),
    Rename(r"^ups\.(\d+)\.0\.", r"ups.\1."),
)
