"""Models of published size without their weights, which are drawn on the device: `published(folder, name)`.

The text encoders are those of the tiny test checkpoints: what is measured are the networks that run at every step, and
the decoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoints import flux, qwen_image, wan, z_image


@dataclass(frozen=True)
class Model:
    """One model: what builds its tiny checkpoint, the configurations that make it one of published size, and how it is
    asked.

    `guided_by` is the name of the guidance's scale, `off` the one that turns it off. A video has `frames`. `gigabytes`
    is what its weights take in two bytes a number.
    """

    name: str
    build: Callable[[Path], Path]
    reference: str
    sizes: Mapping[str, Mapping[str, Any]]
    gigabytes: float
    guided_by: str
    guidance: float
    off: float
    frames: int | None = None


def published(folder: Path, model: Model) -> Path:
    """Writes the folder of `model`: configurations of published size, and weights of the text encoders only."""
    model.build(folder)
    for component, sizes in model.sizes.items():
        path = folder / component / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(sizes)))
        for weights in (folder / component).glob("*.safetensors*"):
            weights.unlink()
    return folder


PICTURES = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
HEADS = {"attention_head_dim": 128, "num_attention_heads": 24}
DEEP = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}

MODELS = {
    model.name: model
    for model in (
        Model(
            "z_image",
            z_image.build,
            "ZImagePipeline",
            {
                "transformer": {
                    "dim": 3840,
                    "n_layers": 30,
                    "n_refiner_layers": 2,
                    "n_heads": 30,
                    "n_kv_heads": 30,
                    "axes_dims": [32, 48, 48],
                    "axes_lens": [1536, 512, 512],
                },
                "vae": PICTURES,
            },
            gigabytes=12.4,
            guided_by="guidance_scale",
            guidance=4.0,
            off=0.0,
        ),
        Model(
            "flux",
            flux.build,
            "FluxPipeline",
            {
                "transformer": HEADS | {"num_layers": 19, "num_single_layers": 38, "axes_dims_rope": [16, 56, 56]},
                "vae": PICTURES,
            },
            gigabytes=24.0,
            guided_by="true_cfg_scale",
            guidance=4.0,
            off=1.0,
        ),
        Model(
            "wan",
            lambda folder: wan.build(folder, "5B"),
            "WanPipeline",
            {
                "transformer": HEADS
                | {"freq_dim": 256, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48,
                   "rope_max_seq_len": 1024},
                "vae": DEEP
                | {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "latents_mean": [0.0] * 48,
                   "latents_std": [1.0] * 48},
            },
            gigabytes=10.0,
            guided_by="guidance_scale",
            guidance=5.0,
            off=1.0,
            frames=17,
        ),
        Model(
            "qwen_image",
            qwen_image.build,
            "QwenImagePipeline",
            {
                "transformer": HEADS | {"num_layers": 60, "axes_dims_rope": [16, 56, 56]},
                "vae": DEEP | {"base_dim": 96},
            },
            gigabytes=41.0,
            guided_by="true_cfg_scale",
            guidance=4.0,
            off=1.0,
        ),
    )
}  # fmt: skip
