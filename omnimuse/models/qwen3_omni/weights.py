"""How names in a published Qwen3-Omni checkpoint become ours. Tables for the loader.

All its networks lie in the same files.
"""

from __future__ import annotations

from omnimuse.loader.rules import Drop, Fuse, Rename
from omnimuse.models.qwen3_tts.weights import PREDICTOR as PREDICTOR

LAYERS = (
    Rename(r"\.mlp\.gate\.weight$", ".mlp.router.weight"),
    Rename(r"\.(gate|up|down)_proj\.", r".\1."),
    Fuse(("q_proj.weight", "k_proj.weight", "v_proj.weight"), into="qkv.weight"),
    Fuse(("gate.weight", "up.weight"), into="gate_up.weight"),
)

RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!thinker\.(model|lm_head)\.)"),
    Rename(r"^thinker\.(model\.)?", ""),
    Rename(r"^lm_head\.", "head."),
    *LAYERS,
)

VISION: tuple[Rename | Drop, ...] = (
    Drop(r"^(?!thinker\.visual\.)"),
    Rename(r"^thinker\.visual\.", ""),
    Rename(r"^patch_embed\.proj\.", "patch_embed."),
    Rename(r"^(blocks\.\d+)\.attn\.", r"\1."),
    Rename(r"^(blocks\.\d+)\.mlp\.linear_", r"\1."),
)

HEARING: tuple[Rename | Drop, ...] = (
    Drop(r"^(?!thinker\.audio_tower\.)"),
    Rename(r"^thinker\.audio_tower\.", ""),
    Rename(r"\.self_attn\.", "."),
)

TALKER: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!talker\.)"),
    Drop(r"^talker\.code_predictor\."),
    Rename(r"^talker\.(model\.)?", ""),
    *LAYERS,
)

WAVES: tuple[Rename | Drop, ...] = (
    Drop(r"^(?!code2wav\.)"),
    Rename(r"^code2wav\.", ""),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
)
