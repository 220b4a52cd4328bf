"""How checkpoints of transformers name the layers of a dense decoder (`decoder.py`). A table for the loader."""

from __future__ import annotations

from omnimuse.loader.rules import Fuse, Rename, joined

LAYERS: tuple[Rename | Fuse, ...] = (
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
    *joined("*_proj", "qkv", "qkv"),
    Fuse(("mlp.gate.weight", "mlp.up.weight"), into="mlp.gate_up.weight"),
)
