"""Facts about Bria 3.2, without torch.

Source: the checkpoint's card and the reference pipeline of diffusers. Its `normalize` and `clip_value` are refused: the
deviations that they go by are those of all pictures of a call together.
"""

from __future__ import annotations

from dataclasses import replace

from omnimuse.components.entries import AUTOENCODER_KL, T5, latent_model
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

MAX_SIDE = 4096  # the positions know no bound; beyond this the model was never seen to draw


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for. Latents are patched 2 x 2: sides are multiples of twice the VAE's factor."""
    return Limits(size_multiple=2 * factor(configs["vae"]), max_side=MAX_SIDE, max_sequence_length=512)


DEFAULTS = DiffusionParams(
    num_inference_steps=30,
    guidance_scale=5.0,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=128,
    output_type="pil",
)

SPEC = Spec(
    arch="BriaPipeline",
    family="bria",
    summary="Bria 3.2: pictures from text, separate streams of text and image that become one",
    tasks=("text-to-image",),
    components=latent_model(
        Component(
            ("BriaTransformer2DModel",),
            network="omnimuse.models.bria.transformer:BriaTransformer",
            rules="omnimuse.models.bria.weights:RULES",
        ),
        T5,
        vae=replace(AUTOENCODER_KL, dtype="float32"),  # as the reference computes it for the published one,
    ),
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(),
    variants=(Variant("BRIA-3.2", ("briaai/BRIA-3.2",), DEFAULTS),),
)
