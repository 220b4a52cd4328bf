"""How names in a published CogView4 checkpoint (diffusers layout) become ours. A table for the loader."""

from __future__ import annotations

from omnimuse.components.joint_stream_names import RULES as JOINT
from omnimuse.loader.rules import Fuse, Rename

RULES: tuple[Rename | Fuse, ...] = (
    Rename(r"^patch_embed\.proj\.", "image_embedder."),
    Rename(r"^patch_embed\.text_proj\.", "text_embedder."),
    *JOINT,
)
