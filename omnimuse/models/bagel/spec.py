"""Facts about BAGEL, without torch. Source: the published checkpoint's files and code (arXiv 2505.14683)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from omnimuse.components.entries import SCHEDULER, SQUARE, inside_model, longest_of, own_transformer
from omnimuse.core import scripts
from omnimuse.core.autoencoder import factor
from omnimuse.core.guidance import Combination, Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams, GenerationParams
from omnimuse.core.spec import Component, Configs, Limits, Size, Spec, Variant

KIND = "BagelForConditionalGeneration"
BLIND = "blind"
"""The branch that has read everything but the pictures (and what the model thought)."""
PATCH = 2  # latents a side of what is drawn as one token
MAX_PICTURES = 8
MAX_PIXELS = 14 * 14 * 9 * 1024
MADE = (("image",), ("text",), ("text", "image"))
JUST_ABOVE = 1e-6
"""Steps at the bound itself are not guided."""
REFUSES = {"max_sequence_length": "the whole prompt is read; max_tokens bounds what is written"}


@dataclass(frozen=True)
class BagelParams(GenerationParams):
    """What is made is told by `modalities`: a picture; a text, which answers; or both: the model thinks in words, and
    draws by them. With `think` an answer, too, has the thoughts before it.

    `picture_scale` leads away from what would be drawn without the pictures that are shown (1: nowhere), as
    `guidance_scale` does from what would be drawn without the last text. Both do so while more than `guided_above` of
    the noise is left. What comes of them is no longer than the plain prediction: as a whole (`renorm` "global"), or,
    before the pictures' part, token by token ("text_channel", which suits changes to a picture).
    """

    modalities: tuple[str, ...] = field(default=("image",), metadata={"sizing": True})
    think: bool = field(default=False, metadata={"sizing": True})
    picture_scale: float = field(default=1.5, metadata={"low": 0, "high": 1000})
    guided_above: float = field(default=0.4, metadata={"low": 0, "high": 1})
    renorm: Literal["global", "text_channel"] = "global"

    @property
    def draws(self) -> bool:
        """Whether a picture is made."""
        return "image" in self.modalities

    @property
    def writes(self) -> bool:
        """Whether a text is."""
        return "text" in self.modalities

    @property
    def thinks(self) -> bool:
        """Whether it is told to think first."""
        return self.think or (self.draws and self.writes)

    def made(self, usual: str) -> str:
        return usual if self.draws else "text"

    def objection(self, params: DiffusionParams, size_multiple: int) -> str | None:
        if self.modalities not in MADE:
            return f'modalities={list(self.modalities)} cannot be; use ["image"], ["text"] or ["text", "image"]'
        if self.think and not self.writes:
            return 'think=True writes, and no text is wanted; use modalities ["text", "image"]'
        return super().objection(params, size_multiple)

    @classmethod
    def understood(cls, prompt: dict[str, Any], params: DiffusionParams) -> tuple[dict[str, Any], DiffusionParams]:
        return scripts.understood(prompt, params)

    def brief(self, params: DiffusionParams, pictures: Sequence[Size], size_multiple: int) -> FamilyParams:
        return replace(self, max_tokens=1, min_tokens=0)

    @classmethod
    def made_up(cls, params: DiffusionParams, size_multiple: int) -> FamilyParams | None:
        return None


def combination(extra: FamilyParams) -> Combination:
    """How predictions combine."""
    assert isinstance(extra, BagelParams)
    whole = extra.renorm == "global"
    return Combination(
        norm_cap=1.0 if whole else 0.0,
        match_norm=not whole,
        match_within=(0.0, 1.0),
        patch=PATCH,
        truncation=1.0 - extra.guided_above - JUST_ABOVE,
        aside=BLIND if extra.picture_scale > 1 else "",
        over=extra.picture_scale,
        while_done=(-1.0, 1.0),
    )


def fitted(how: Mapping[str, Any], size: Size) -> Size:
    """The size in which a picture of `size` is seen: whole strides, and sides between the least and the most."""
    least, most, stride = (int(how[name]) for name in ("min_image_size", "max_image_size", "image_stride"))

    def scaled(sides: Size, scale: float) -> Size:
        wide, high = (max(stride, round(round(side * scale) / stride) * stride) for side in sides)
        return wide, high

    found = scaled(size, max(min(most / max(size), 1.0), least / min(size)))
    if found[0] * found[1] > MAX_PIXELS:
        found = scaled(found, MAX_PIXELS / (found[0] * found[1]))
    return scaled(found, most / max(found)) if max(found) > most else found


def _drawn(how: Mapping[str, Any], sizes: Sequence[Size]) -> Size:
    """What is made of pictures is as large as the last one is seen."""
    return fitted(how, sizes[-1])


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: places of patches are learnt, so there is a longest side."""
    config = configs["model"]
    multiple = PATCH * factor(configs["vae"])
    how = configs["processor"]["vae_transform"]
    return Limits(
        size_multiple=multiple,
        max_side=multiple * int(config.get("max_latent_size") or 64),
        max_images=MAX_PICTURES,
        max_sequence_length=longest_of(config["llm_config"], "llm_config.json"),
        sized=partial(_drawn, how),
        refuses=REFUSES,
    )


DEFAULTS = DiffusionParams(num_inference_steps=49, guidance_scale=4.0).over(SQUARE)
"""The published code calls for 50 levels of noise from 1 to 0; there is a step from each to the next."""

MODEL = own_transformer("bagel", "Bagel", KIND)

SPEC = Spec(
    arch=KIND,
    family="bagel",
    summary="BAGEL: pictures from a text, others changed by one, and text about pictures, with thoughts in words",
    tasks=("text-to-image", "image-to-image", "text-to-text", "image-to-text"),
    components={
        "model": MODEL,
        "vision": inside_model(MODEL, "vision:BagelVision", "VISION"),
        "vae": Component(
            ("AutoEncoder",),
            network="omnimuse.models.bagel.vision:BagelAutoencoder",
            rules="omnimuse.models.bagel.weights:AUTOENCODER",
        ),
        "processor": Component(("ImageTransform",), built=False),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale"}),
    limits=limits,
    guidance=Guidance(given=False, how=combination, most=3),
    extra=BagelParams,
    variants=(Variant("BAGEL", ("ByteDance-Seed/BAGEL-7B-MoT",), DEFAULTS),),
)
