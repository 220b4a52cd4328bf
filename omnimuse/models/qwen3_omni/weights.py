"""How names in a published Qwen3-Omni checkpoint become ours. Tables for the loader.

All its networks lie in the same files.
"""

from __future__ import annotations

from omnimuse.components.answering_names import HEARING, PREDICTOR, TALKER, VISION
from omnimuse.components.answering_names import THINKER as RULES
from omnimuse.components.answering_names import THINKER_ALIASES as ALIASES
from omnimuse.components.decoder_names import inside
from omnimuse.loader.rules import Drop, Rename

WAVES: tuple[Rename | Drop, ...] = (
    *inside(r"code2wav\."),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
)

__all__ = ["ALIASES", "HEARING", "PREDICTOR", "RULES", "TALKER", "VISION", "WAVES"]
