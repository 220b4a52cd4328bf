"""Stand-ins for published models that nothing here could draw with: their layout, random weights, sizes that a CPU
draws in seconds.
"""

from __future__ import annotations

from pathlib import Path

SLOW = 0.1
"""What weights that read the time are multiplied with: random ones make so much of it that no step is like the one
before. So, what the blocks add changes by about a tenth from one of 20 steps to the next, as the demo model's does.
"""


def film_folder(folder: Path) -> Path:
    """Wan's layout with 8 blocks of width 256: enough for step caches and packed weights to have work."""
    from diffusers import WanTransformer3DModel
    from safetensors.torch import load_file, save_file

    from tests.checkpoints import parts, wan

    wan.build(folder, "2.1")

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=4, attention_head_dim=64, in_channels=16, out_channels=16, text_dim=wan.TEXT_WIDTH,
            freq_dim=256, ffn_dim=1024, num_layers=8,
        )  # fmt: skip

    parts.save_module(folder, "transformer", 0, transformer)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["condition_embedder.time_embedder.linear_1.weight"] *= SLOW
    save_file(weights, file, {"format": "pt"})
    return folder
