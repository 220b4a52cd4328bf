"""How names in a published Qwen3-TTS checkpoint become ours. Tables for the loader.

The talker, the predictor and the speaker encoder are networks in the same files.
"""

from __future__ import annotations

from omnimuse.components.decoder_names import LAYERS
from omnimuse.loader.rules import Drop, Fuse, Rename

RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^talker\.code_predictor\."),
    Drop(r"^speaker_encoder\."),
    Rename(r"^talker\.(model\.)?", ""),
    *LAYERS,
)

SPEAKER: tuple[Rename | Drop, ...] = (
    Drop(r"^(?!speaker_encoder\.)"),
    Rename(r"^speaker_encoder\.", ""),
)

PREDICTOR: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!talker\.code_predictor\.)"),
    Rename(r"^talker\.code_predictor\.(model\.)?", ""),
    Rename(r"^lm_head\.", "heads."),
    *LAYERS,
)
