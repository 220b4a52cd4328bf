"""How names in a published Qwen3-TTS checkpoint become ours. Tables for the loader.

The talker, the predictor and the speaker encoder are networks in the same files.
"""

from __future__ import annotations

from omnimuse.components.answering_names import PREDICTOR as PREDICTOR
from omnimuse.components.decoder_names import LAYERS, inside
from omnimuse.loader.rules import Drop, Fuse, Rename

RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^talker\.code_predictor\."),
    *inside(r"talker\.(model\.)?"),
    *LAYERS,
)

SPEAKER: tuple[Rename | Drop, ...] = inside(r"speaker_encoder\.")
