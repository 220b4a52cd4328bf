"""Facts about LongCat-Image, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. The reference
lets the text encoder rewrite every prompt before it is drawn; here a prompt is drawn as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omnimuse.components.entries import AUTOENCODER_KL, SCHEDULER, SQUARE, own_transformer, patched
from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, Spec, Variant

PATCH = 2  # latent pixels per token side
MAX_TOKENS = 512


@dataclass(frozen=True)
class LongCatImageParams(FamilyParams):
    """Guidance lengthens no token: `enable_cfg_renorm` shortens it to its unguided length, but not to less than
    `cfg_renorm_min` times what guidance made."""

    enable_cfg_renorm: bool = True
    cfg_renorm_min: float = field(default=0.0, metadata={"low": 0.0, "high": 1.0})


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for."""
    return patched(MAX_TOKENS)(configs)


def combination(extra: FamilyParams) -> Combination:
    """Tokens are shortened, if at all."""
    assert isinstance(extra, LongCatImageParams)
    return Combination(match_norm=extra.enable_cfg_renorm, match_within=(extra.cfg_renorm_min, 1.0), patch=PATCH)


DEFAULTS = DiffusionParams(num_inference_steps=50, guidance_scale=4.5, max_sequence_length=MAX_TOKENS).over(SQUARE)

SPEC = Spec(
    arch="LongCatImagePipeline",
    family="longcat_image",
    summary="LongCat-Image: pictures with English and Chinese text in them; prompts are not rewritten",
    tasks=("text-to-image",),
    components={
        "transformer": own_transformer("longcat_image", "LongCatImageTransformer", "LongCatImageTransformer2DModel"),
        "text_encoder": Component(("Qwen2_5_VLForConditionalGeneration",), part="model.language_model"),
        "tokenizer": Component(("Qwen2Tokenizer", "TokenizersBackend", "PreTrainedTokenizerFast")),
        "text_processor": Component((), built=False, optional=True),
        "vae": AUTOENCODER_KL,
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(how=combination),
    extra=LongCatImageParams,
    variants=(Variant("LongCat-Image", ("meituan-longcat/LongCat-Image",), DEFAULTS),),
)
