"""The names that networks have in the checkpoints of models that answer to what they are shown, as transformers saves
them. Tables for the loader.

All networks of such a model lie in the same files.
"""

from __future__ import annotations

from omnimuse.components.decoder_names import LAYERS, inside
from omnimuse.loader.rules import Alias, Drop, Fuse, Rename, joined

ROUTER = Rename(r"\.mlp\.gate\.weight$", ".mlp.router.weight")
"""What chooses among experts, where layers have some."""

THINKER: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^(?!thinker\.(model|lm_head)\.)"),
    Rename(r"^thinker\.(model\.)?", ""),
    Rename(r"^lm_head\.", "head."),
    ROUTER,
    *LAYERS,
)

THINKER_ALIASES: tuple[Alias, ...] = (Alias(r"(model\.layers\..+|lm_head)", (r"thinker.\1",)),)
"""What adapters call its layers that were trained for a thinker by itself."""

VISION: tuple[Rename | Drop | Fuse, ...] = (
    *inside(r"thinker\.visual\."),
    Rename(r"^patch_embed\.proj\.", "patch_embed."),
    Rename(r"^(blocks\.\d+)\.attn\.", r"\1."),
    *joined("*", "qkv", "qkv"),
    Rename(r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
    Rename(r"\.mlp\.linear_fc1\.", ".mlp.0."),
    Rename(r"\.mlp\.linear_fc2\.", ".mlp.2."),
)

HEARING: tuple[Rename | Drop, ...] = (
    Drop(r"\.audio_bos_eos_token\."),  # nothing reads it
    *inside(r"thinker\.audio_tower\."),
    Rename(r"\.self_attn\.", "."),
)

TALKER: tuple[Rename | Drop | Fuse, ...] = (
    Drop(r"^talker\.code_predictor\."),
    *inside(r"talker\.(model\.)?"),
    Rename(r"^embed_tokens\.", "codec_embedding."),
    ROUTER,
    *LAYERS,
)

PREDICTOR: tuple[Rename | Drop | Fuse, ...] = (
    *inside(r"talker\.code_predictor\.(model\.)?"),
    Rename(r"^lm_head\.", "heads."),
    *LAYERS,
)
