"""How names in a published Qwen3-Omni checkpoint become ours. Tables for the loader.

All its networks lie in the same files.
"""

from __future__ import annotations

from omnimuse.components.decoder_names import LAYERS, inside
from omnimuse.loader.rules import Drop, Fuse, Rename
from omnimuse.models.qwen3_tts.weights import PREDICTOR as PREDICTOR

_EXPERTS = (Rename(r"\.mlp\.gate\.weight$", ".mlp.router.weight"), *LAYERS)

RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!thinker\.(model|lm_head)\.)"),
    Rename(r"^thinker\.(model\.)?", ""),
    Rename(r"^lm_head\.", "head."),
    *_EXPERTS,
)

VISION: tuple[Rename | Drop, ...] = (
    *inside(r"thinker\.visual\."),
    Rename(r"^patch_embed\.proj\.", "patch_embed."),
    Rename(r"^(blocks\.\d+)\.attn\.", r"\1."),
    Rename(r"^(blocks\.\d+)\.mlp\.linear_", r"\1."),
)

HEARING: tuple[Rename | Drop, ...] = (
    *inside(r"thinker\.audio_tower\."),
    Rename(r"\.self_attn\.", "."),
)

TALKER: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^talker\.code_predictor\."),
    *inside(r"talker\.(model\.)?"),
    *_EXPERTS,
)

WAVES: tuple[Rename | Drop, ...] = (
    *inside(r"code2wav\."),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
)
