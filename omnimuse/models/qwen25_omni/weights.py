"""How names in a published Qwen2.5-Omni checkpoint become ours. Tables for the loader.

All its networks lie in the same files.
"""

from __future__ import annotations

from omnimuse.components.answering_names import HEARING as HEARING
from omnimuse.components.answering_names import TALKER as TALKER
from omnimuse.components.answering_names import THINKER as RULES
from omnimuse.components.answering_names import THINKER_ALIASES as ALIASES
from omnimuse.components.answering_names import VISION as VISION
from omnimuse.components.decoder_names import inside
from omnimuse.loader.rules import Drop, Rename

__all__ = ["ALIASES", "FLOW", "HEARING", "RULES", "TALKER", "VISION", "VOCODER"]

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
