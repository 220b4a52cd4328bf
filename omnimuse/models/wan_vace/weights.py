"""How names in a published checkpoint of Wan VACE (diffusers layout) become ours: Wan's, with two lists of blocks."""

from __future__ import annotations

from omnimuse.loader.rules import Rename, Rule
from omnimuse.models.wan import weights as wan

RULES: tuple[Rule, ...] = (
    Rename(r"^vace_blocks\.0\.proj_in\.", "control_in."),
    Rename(r"^vace_patch_embedding\.", "control_embedding."),
    Rename(r"^blocks\.(\d+)\.", r"blocks.video.\1."),
    Rename(r"^vace_blocks\.", "blocks.control."),
    *wan.RULES,
)
