"""Stand-ins for published models that nothing here could draw with: their layout, random weights, sizes that a CPU
draws in seconds.
"""

from __future__ import annotations

from pathlib import Path


def film_folder(folder: Path) -> Path:
    """Wan's layout with 8 blocks of width 256: enough for step caches and packed weights to have work."""
    from diffusers import WanTransformer3DModel

    from tests.checkpoints import parts, wan

    wan.build(folder, "2.1")

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=4, attention_head_dim=64, in_channels=16, out_channels=16, text_dim=wan.TEXT_WIDTH,
            freq_dim=256, ffn_dim=1024, num_layers=8,
        )  # fmt: skip

    parts.save_module(folder, "transformer", 0, transformer)
    return folder
