"""How names in a published Qwen3 checkpoint (transformers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.loader.rules import Rename

RULES: tuple[Rename, ...] = (
    Rename(r"^model\.", ""),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
    Rename(r"^lm_head\.", "head."),
)
