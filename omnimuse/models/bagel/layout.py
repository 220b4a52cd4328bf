"""The files of a published BAGEL folder, which is in no library's layout. No torch."""

from __future__ import annotations

from omnimuse.core.layouts import Files, Piece

LEVELS = 4
"""Of the autoencoder."""
WHOLE = {"config.json": "", "llm_config.json": "llm_config", "vit_config.json": "vit_config"}
AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
"""That of the published checkpoint, which no file describes."""
PREPARING = {
    "vae_transform": {"max_image_size": 1024, "min_image_size": 512, "image_stride": 16},
    "vit_transform": {"max_image_size": 980, "min_image_size": 224, "image_stride": 14},
}
"""How pictures are prepared, likewise: the sides that they may have."""

LAYOUT = Files(
    arch="BagelForConditionalGeneration",
    marks=("llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"),
    pieces={
        "model": Piece("BagelForConditionalGeneration", "ema.safetensors", files=WHOLE),
        "vae": Piece("AutoEncoder", "ae.safetensors", AUTOENCODER, {"ae_config.json": ""}),
        "processor": Piece("ImageTransform", known=PREPARING, files={"preprocessor_config.json": ""}),
        "scheduler": Piece(
            "FlowMatchEulerDiscreteScheduler",
            known={"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        ),
    },
)
