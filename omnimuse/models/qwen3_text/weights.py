"""How names in a published Qwen3 checkpoint (transformers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.decoder_names import LAYERS
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^model\.", ""),
    Rename(r"^lm_head\.", "head."),
    *LAYERS,
)
