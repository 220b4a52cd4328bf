"""Facts about FLUX.2 dev, without torch: a kind of FLUX.2 that is told the guidance scale, at the cost of one branch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers.
"""

from __future__ import annotations

from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant
from omnimuse.models.flux2.spec import DEFAULTS, TRANSFORMER, VAE, limits_of

LAYERS = (10, 20, 30)
"""The hidden states of the text encoder that the network is told."""


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for."""
    return limits_of(configs, DiffusionParams())


SPEC = Spec(
    arch="Flux2Pipeline",
    family="flux2_dev",
    summary="FLUX.2 dev: pictures from text and from pictures, which it is shown in order",
    tasks=("text-to-image", "image-to-image"),
    components={
        "transformer": TRANSFORMER,
        "text_encoder": Component(
            ("Mistral3ForConditionalGeneration",),
            network="omnimuse.models.flux2_dev.text_encoder:DevTextEncoder",
            rules="omnimuse.models.flux2_dev.text_encoder:RULES",
        ),
        "tokenizer": Component(("PixtralProcessor",), part="tokenizer"),
        "vae": VAE,
        "scheduler": Component((), built=False),
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    variants=(Variant("FLUX.2-dev", ("black-forest-labs/FLUX.2-dev",), DEFAULTS),),
)
