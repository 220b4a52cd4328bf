"""How names in a published Qwen3 checkpoint (transformers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^model\.", ""),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
    Rename(r"^lm_head\.", "head."),
    Fuse(("q_proj.weight", "k_proj.weight", "v_proj.weight"), into="qkv.weight"),
    Fuse(("mlp.gate.weight", "mlp.up.weight"), into="mlp.gate_up.weight"),
)
