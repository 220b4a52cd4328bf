"""Facts about Lumina-Image 2.0, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. Guidance may
end after a share of the steps, and every line of latents may keep the norm that it has without guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omnimuse.components.entries import GEMMA2, SQUARE, latent_model, own_transformer
from omnimuse.core.autoencoder import factor
from omnimuse.core.caches import Fits, TeaFit
from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Configs, Limits, Spec, Variant

SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts."
)


@dataclass(frozen=True)
class LuminaParams(FamilyParams):
    """The text encoder reads `system_prompt` before the prompt. Steps after the share `cfg_trunc_ratio` of all are not
    guided; with `cfg_normalization` every line of latents keeps the norm that it has without guidance."""

    system_prompt: str = field(default=SYSTEM, metadata={"sizing": False})
    cfg_trunc_ratio: float = field(default=1.0, metadata={"low": 0.0, "high": 1.0})
    cfg_normalization: bool = True


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: the image stands behind the caption on the axis of the caption's tokens."""
    lens = configs["transformer"]["axes_lens"]
    assert isinstance(lens, list | tuple)
    multiple = 2 * factor(configs["vae"])
    return Limits(
        size_multiple=multiple,
        max_side=min(lens[1], lens[2]) * multiple,
        max_sequence_length=min(512, lens[0] - 1),
    )


def combination(extra: FamilyParams) -> Combination:
    """The norm and the end of the guidance of a request."""
    assert isinstance(extra, LuminaParams)
    return Combination(match_norm=extra.cfg_normalization, per="line", until=extra.cfg_trunc_ratio)


DEFAULTS = DiffusionParams(num_inference_steps=30, guidance_scale=4.0, max_sequence_length=256).over(SQUARE)

# Fitted to Lumina-Image 2.0 by the method's authors (github.com/ali-vilab/TeaCache, TeaCache4Lumina2, version 2).
FITS = Fits(
    tea=TeaFit(
        (225.7042019806413, -608.8453716535591, 304.1869942338369, 124.21267720116742, -1.4089066892956552),
        threshold=0.3,
    )
)

SPEC = Spec(
    arch="Lumina2Pipeline",
    family="lumina2",
    summary="Lumina-Image 2.0: pictures from text, one stream of caption and image tokens",
    tasks=("text-to-image",),
    components=latent_model(
        own_transformer("lumina2", "LuminaTransformer", "Lumina2Transformer2DModel", alias=True), GEMMA2
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(how=combination),
    also=("Lumina2Text2ImgPipeline",),
    extra=LuminaParams,
    fits=FITS,
    variants=(Variant("Lumina-Image-2.0", ("Alpha-VLLM/Lumina-Image-2.0",), DEFAULTS),),
)
