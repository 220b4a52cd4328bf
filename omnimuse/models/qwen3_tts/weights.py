"""How names in a published Qwen3-TTS checkpoint become ours. Tables for the loader.

The talker, the predictor and the speaker encoder are networks in the same files.
"""

from __future__ import annotations

from omnimuse.loader.rules import Drop, Fuse, Rename

_LAYERS = (
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
    Fuse(("q_proj.weight", "k_proj.weight", "v_proj.weight"), into="qkv.weight"),
    Fuse(("mlp.gate.weight", "mlp.up.weight"), into="mlp.gate_up.weight"),
)

RULES: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^talker\.code_predictor\."),
    Drop(r"^speaker_encoder\."),
    Rename(r"^talker\.(model\.)?", ""),
    *_LAYERS,
)

SPEAKER: tuple[Rename | Drop, ...] = (
    Drop(r"^(?!speaker_encoder\.)"),
    Rename(r"^speaker_encoder\.", ""),
)

PREDICTOR: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!talker\.code_predictor\.)"),
    Rename(r"^talker\.code_predictor\.(model\.)?", ""),
    Rename(r"^lm_head\.", "heads."),
    *_LAYERS,
)
