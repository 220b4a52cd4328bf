"""Random checkpoints for the race, built on the spot: near-empty ones (overhead) and small but real ones.

Both engines load the same folder. Sizes are chosen so that a step of a "small" transformer (100-300 M parameters) is
dominated by its matrix products, as in the published models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SMALL = "small"
EMPTY = "near-empty"
DEMO = "demo"


@dataclass(frozen=True)
class Race:
    """One family in the race: how to build its checkpoints, what to ask, and how the reference is called.

    `guidance` is the scale of guided requests, `off` the one that turns guidance off.
    """

    family: str
    reference: str
    build: Callable[[Path, str], Path]
    sizes: Mapping[str, tuple[int, int]]
    guidance: float
    off: float = 0.0
    guided_by: str = "guidance_scale"
    frames: Mapping[str, int] = field(default_factory=dict)


def build_z_image(folder: Path, kind: str) -> Path:
    """Width 1024 and 14 layers (about 190 M parameters), a text encoder of width 512, a VAE of the published size."""
    from diffusers import ZImageTransformer2DModel

    from tests.checkpoints import parts, z_image

    if kind == EMPTY:
        return z_image.build(folder, layers=1)

    def transformer() -> ZImageTransformer2DModel:
        return ZImageTransformer2DModel(
            dim=1024, n_layers=12, n_refiner_layers=2, n_heads=16, n_kv_heads=16, cap_feat_dim=512,
            axes_dims=[16, 24, 24], axes_lens=[1024, 512, 512],
        )  # fmt: skip

    z_image.build(folder)  # the tokenizer, the scheduler and the index are the same
    vocabulary = len(parts.qwen_tokenizer())
    parts.save_module(folder, "transformer", 0, transformer)
    parts.save_module(folder, "text_encoder", 0, lambda: parts.qwen3_encoder(vocabulary, 512, 8))
    parts.save_module(folder, "vae", 0, published_vae)
    return folder


def published_vae() -> Any:
    """The image VAE of FLUX and Z-Image at its published size: 84 M parameters, factor 8, 16 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, norm_num_groups=32,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def build_flux(folder: Path, kind: str) -> Path:
    """Width 768, 3 double and 6 single blocks (about 110 M parameters), tiny CLIP and T5, the published VAE."""
    from diffusers import FluxTransformer2DModel

    from tests.checkpoints import encoders, flux, parts

    flux.build(folder)
    if kind == EMPTY:
        return folder

    def transformer() -> FluxTransformer2DModel:
        return FluxTransformer2DModel(
            in_channels=64, num_layers=3, num_single_layers=6, attention_head_dim=64, num_attention_heads=12,
            joint_attention_dim=encoders.TEXT_WIDTH, pooled_projection_dim=encoders.POOLED_WIDTH, guidance_embeds=True,
            axes_dims_rope=(16, 24, 24),
        )  # fmt: skip

    parts.save_module(folder, "transformer", 0, transformer)
    parts.save_module(folder, "vae", 0, published_vae)
    return folder


def build_wan(folder: Path, kind: str) -> Path:
    """Width 768 and 10 blocks (about 110 M parameters), the published VAE of Wan 2.1."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from tests.checkpoints import parts, wan

    wan.build(folder, "2.1")
    if kind == EMPTY:
        return folder

    def transformer() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=64, in_channels=16, out_channels=16, text_dim=wan.TEXT_WIDTH,
            freq_dim=256, ffn_dim=3072, num_layers=10,
        )  # fmt: skip

    parts.save_module(folder, "transformer", 0, transformer)
    parts.save_module(folder, "vae", 0, AutoencoderKLWan)
    return folder


def build_demo(folder: Path, kind: str) -> Path:
    """The bundled demo model itself."""
    from importlib.resources import files

    return Path(str(files("omnimuse"))) / "bundled" / "shapes"


RACES = {
    race.family: race
    for race in (
        Race("z_image", "ZImagePipeline", build_z_image, {SMALL: (512, 512), EMPTY: (32, 32)}, guidance=4.0),
        Race("shapes", "ZImagePipeline", build_demo, {DEMO: (128, 128)}, guidance=2.0),
        Race(
            "flux", "FluxPipeline", build_flux, {SMALL: (512, 512), EMPTY: (32, 32)}, guidance=4.0, off=1.0,
            guided_by="true_cfg_scale",
        ),
        Race(
            "wan", "WanPipeline", build_wan, {SMALL: (480, 832), EMPTY: (32, 32)}, guidance=5.0, off=1.0,
            frames={SMALL: 17, EMPTY: 5},
        ),
    )
}  # fmt: skip
