"""Facts about Chroma, without torch.

Source: the reference pipelines of diffusers and their documentation. Parts of pictures are drawn anew with the same
defaults; the reference has others for that (28 steps, a scale of 7, a strength of 0.6). Chroma1-HD has those of the
documentation's example. Nothing published that we know says how Chroma1-Base is asked, so it has those of the call.
"""

from __future__ import annotations

from omnimuse.components.entries import SQUARE, T5, latent_model, own_transformer, patched
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Spec, Variant

DEFAULTS = DiffusionParams(num_inference_steps=35, guidance_scale=5.0, max_sequence_length=512, strength=0.9).over(
    SQUARE
)

SPEC = Spec(
    arch="ChromaPipeline",
    family="chroma",
    summary="Chroma: pictures from text, separate streams of text and image that become one, guided by a second text",
    tasks=("text-to-image", "image-to-image"),
    components=latent_model(own_transformer("chroma", "ChromaTransformer", "ChromaTransformer2DModel", alias=True), T5),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "strength"}),
    limits=patched(512, images=1),
    guidance=Guidance(),
    also=("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    variants=(
        Variant(
            "Chroma1-HD",
            ("lodestones/Chroma1-HD",),
            DiffusionParams(num_inference_steps=40, guidance_scale=3.0).over(DEFAULTS),
        ),
        Variant("Chroma1-Base", ("lodestones/Chroma1-Base",), DEFAULTS),
    ),
)
