"""The names that tensors of decoders (`decoder.py`) have in checkpoints, and how one network's are told from those of
others in the same files.
"""

from __future__ import annotations

from omnimuse.loader.rules import Drop, Fuse, Rename, joined

LAYERS: tuple[Rename | Fuse, ...] = (
    Rename(r"\.(gate|up|down)_proj\.", r".\1."),
    *joined("*_proj", "qkv", "qkv"),
    Fuse(("gate.weight", "up.weight"), into="gate_up.weight"),
)
"""How layers, as transformers saves them, become ours: MLPs, and the experts of those that have some."""


def inside(begins: str) -> tuple[Drop, Rename]:
    """Of files that hold several networks, the tensors whose names match the regular expression `begins` with their
    beginning, less that.
    """
    return Drop(rf"^(?!{begins})"), Rename(rf"^{begins}", "")
