"""Facts about Z-Image and Z-Image-Turbo, without torch.

Source: the published checkpoints' `model_index.json` and the reference pipeline of diffusers. Guidance here means
`c + g (c - u)`, one more than elsewhere: 0 is off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from omnimuse.components.entries import QWEN3, SQUARE, latent_model, own_transformer
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Configs, Limits, Spec, Variant


@dataclass(frozen=True)
class ZImageParams(FamilyParams):
    """`cfg_normalization` caps the norm of the guided prediction at this multiple of the positive one (0: no cap);
    guidance is off while the time (0 at pure noise, 1 at the picture) is above `cfg_truncation`."""

    cfg_normalization: float = field(default=0.0, metadata={"low": 0.0, "high": 100.0})
    cfg_truncation: float = field(default=1.0, metadata={"low": 0.0, "high": 1000.0})


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for. Latents are patched 2 x 2: sides are multiples of twice the VAE's factor."""
    lens = configs["transformer"]["axes_lens"]
    assert isinstance(lens, list | tuple)
    multiple = 2 * factor(configs["vae"])
    return Limits(
        size_multiple=multiple,
        max_side=min(lens[1], lens[2]) * multiple,
        max_images=1,
        max_sequence_length=min(512, lens[0] - 34),
    )


def shifted(shift: float, configs: Configs) -> str:
    """The distilled checkpoint and the other one differ in the shift of their noise levels."""
    return f"its scheduler has shift={shift:g}" if configs["scheduler"].get("shift") == shift else ""


def combination(extra: FamilyParams) -> Combination:
    """The optional norm cap and truncation of a request."""
    assert isinstance(extra, ZImageParams)
    return Combination(norm_cap=extra.cfg_normalization, truncation=extra.cfg_truncation)


DEFAULTS = DiffusionParams(num_inference_steps=50, guidance_scale=5.0, max_sequence_length=512, strength=0.6).over(
    SQUARE
)

SPEC = Spec(
    arch="ZImagePipeline",
    family="z_image",
    summary="Z-Image and Z-Image-Turbo: pictures from text, one stream of image and caption tokens",
    tasks=("text-to-image", "image-to-image"),
    components=latent_model(
        own_transformer("z_image", "ZImageTransformer", "ZImageTransformer2DModel", alias=True), QWEN3
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "strength"}),
    limits=limits,
    guidance=Guidance(neutral=0, how=combination),
    also=("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    extra=ZImageParams,
    variants=(
        Variant("Z-Image", ("Tongyi-MAI/Z-Image",), DEFAULTS, partial(shifted, 6.0)),
        Variant(
            "Z-Image-Turbo",
            ("Tongyi-MAI/Z-Image-Turbo",),
            DiffusionParams(num_inference_steps=9, guidance_scale=0.0).over(DEFAULTS),
            partial(shifted, 3.0),
        ),
    ),
)
