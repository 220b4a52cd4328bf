"""Facts about Ovis-Image, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from omnimuse.components.entries import QWEN3, SQUARE, latent_model, own_transformer, patched
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Spec, Variant

DEFAULTS = DiffusionParams(num_inference_steps=50, guidance_scale=5.0, max_sequence_length=256).over(SQUARE)

SPEC = Spec(
    arch="OvisImagePipeline",
    family="ovis_image",
    summary="Ovis-Image: pictures with text in them, separate streams of text and image that become one",
    tasks=("text-to-image",),
    components=latent_model(
        own_transformer("ovis_image", "OvisImageTransformer", "OvisImageTransformer2DModel"), QWEN3
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=patched(256),
    guidance=Guidance(),
    variants=(Variant("Ovis-Image-7B", ("AIDC-AI/Ovis-Image-7B",), DEFAULTS),),
)
