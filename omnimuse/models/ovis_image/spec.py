"""Facts about Ovis-Image, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from omnimuse.components.entries import QWEN3, latent_model
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

MAX_SIDE = 4096  # the positions know no bound; beyond this the model was never seen to draw


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for. Latents are patched 2 x 2: sides are multiples of twice the VAE's factor."""
    return Limits(size_multiple=2 * factor(configs["vae"]), max_side=MAX_SIDE, max_sequence_length=256)


DEFAULTS = DiffusionParams(
    num_inference_steps=50,
    guidance_scale=5.0,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=256,
    output_type="pil",
)

SPEC = Spec(
    arch="OvisImagePipeline",
    family="ovis_image",
    summary="Ovis-Image: pictures with text in them, separate streams of text and image that become one",
    tasks=("text-to-image",),
    components=latent_model(
        Component(
            ("OvisImageTransformer2DModel",),
            network="omnimuse.models.ovis_image.transformer:OvisImageTransformer",
            rules="omnimuse.models.ovis_image.weights:RULES",
        ),
        QWEN3,
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(),
    variants=(Variant("Ovis-Image-7B", ("AIDC-AI/Ovis-Image-7B",), DEFAULTS),),
)
