"""Facts about FLUX.2 Klein, distilled and base, without torch.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipeline of diffusers. A distilled
checkpoint says so in its `model_index.json`, and takes no guidance; a base one is guided proper, against an empty text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import sqrt

from omnimuse.core.autoencoder import factor
from omnimuse.core.errors import RequestError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import OPTIONS, Component, Configs, Limits, Size, Spec, Variant

PATCH = 2  # latents of the autoencoder a side of one token
MAX_SIDE = 4096  # the positions know no bound; beyond this the model was never seen to draw
MAX_SEQUENCE_LENGTH = 512
MAX_IMAGES = 10
"""Pictures that the authors' own service takes; the positions know no bound."""
AREA = 1024 * 1024
"""Pictures that are shown are shrunk to so many pixels."""
LEAST_SIDE, STEEPEST = 64, 8
LAYERS = (9, 18, 27)
"""The hidden states of the text encoder that the network is told."""


def multiple(configs: Configs) -> int:
    """Pixels a side of one token."""
    return PATCH * factor(configs["vae"])


def shrunk(size: Size) -> Size:
    """The size of a picture that has at most `AREA` pixels."""
    width, height = size
    if width * height <= AREA:
        return size
    scale = sqrt(AREA / (width * height))
    return int(width * scale), int(height * scale)


def sized(step: int, sizes: Sequence[Size]) -> Size:
    """The size of what is drawn: that in which the first picture is shown, whole tokens of `step` pixels a side.

    RequestError for a picture that the model is not shown.
    """
    for number, (width, height) in enumerate(sizes, 1):
        which = f"picture {number} has {width} x {height} pixels"
        if min(width, height) < LEAST_SIDE:
            raise RequestError(f"{which}; a side must have at least {LEAST_SIDE}: make it larger", "images")
        if max(width, height) > STEEPEST * min(width, height):
            raise RequestError(
                f"{which}; the longer side may be {STEEPEST} times the shorter: cut it to what matters", "images"
            )
    width, height = shrunk(sizes[0])
    return width // step * step, height // step * step


def limits_of(configs: Configs, fixed: DiffusionParams) -> Limits:
    """What a checkpoint of FLUX.2 can be asked for."""
    step = multiple(configs)
    return Limits(
        size_multiple=step,
        max_side=MAX_SIDE,
        max_images=MAX_IMAGES,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        fixed=fixed,
        rounding="down",
        sized=partial(sized, step),
    )


def distilled(configs: Configs) -> bool:
    """Whether the network learned to draw in few steps, without guidance."""
    return bool(configs[OPTIONS].get("is_distilled"))


def limits(configs: Configs) -> Limits:
    """What a Klein checkpoint can be asked for: a distilled one has no guidance."""
    return limits_of(configs, DiffusionParams(guidance_scale=1.0) if distilled(configs) else DiffusionParams())


def is_base(configs: Configs) -> str:
    """The checkpoint that was not distilled says nothing, or that."""
    return "" if distilled(configs) else "its model_index.json does not say that it is distilled"


def is_distilled(configs: Configs) -> str:
    """The distilled checkpoint says so."""
    return "its model_index.json says is_distilled" if distilled(configs) else ""


TRANSFORMER = Component(
    ("Flux2Transformer2DModel",),
    network="omnimuse.models.flux2.transformer:Flux2Transformer",
    rules="omnimuse.models.flux2.weights:RULES",
    aliases="omnimuse.models.flux2.weights:ALIASES",
)
VAE = Component(
    ("AutoencoderKLFlux2",),
    network="omnimuse.components.autoencoder_kl:AutoencoderKL",
    rules="omnimuse.components.autoencoder_kl:RULES",
)

DEFAULTS = DiffusionParams(
    num_inference_steps=50,
    guidance_scale=4.0,
    height=1024,
    width=1024,
    num_outputs_per_prompt=1,
    max_sequence_length=MAX_SEQUENCE_LENGTH,
    output_type="pil",
)

KLEIN = replace(DEFAULTS, strength=1.0)

SPEC = Spec(
    arch="Flux2KleinPipeline",
    family="flux2",
    summary="FLUX.2 Klein, distilled and base: pictures from text and from pictures, which it is shown in order",
    tasks=("text-to-image", "image-to-image"),
    components={
        "transformer": TRANSFORMER,
        "text_encoder": Component(
            ("Qwen3ForCausalLM", "Qwen3Model"),
            network="omnimuse.models.flux2.text_encoder:KleinTextEncoder",
            rules="omnimuse.models.flux2.text_encoder:RULES",
        ),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
        "vae": VAE,
        "scheduler": Component((), built=False),
    },
    defaults=KLEIN,
    supported=frozenset({"guidance_scale", "strength"}),
    limits=limits,
    guidance=Guidance(),
    also=("Flux2KleinInpaintPipeline", "Flux2KleinKVPipeline"),
    variants=(
        Variant(
            "FLUX.2-klein",
            ("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-9B"),
            DiffusionParams(num_inference_steps=4, guidance_scale=1.0).over(KLEIN),
            is_distilled,
        ),
        Variant(
            "FLUX.2-klein-base",
            ("black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-base-9B"),
            KLEIN,
            is_base,
        ),
    ),
)
