"""Facts about HunyuanVideo-1.5, text or a picture to video, without torch.

Source: the published checkpoints' configurations, and the reference pipelines of diffusers. A checkpoint says itself
how it is guided (its `guider`), for which size it was trained (`target_size`), and whether it begins with a picture (an
image encoder). The reference takes no scale and, with a picture, no size; here both can be chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from omnimuse.components.entries import ONE, SCHEDULER, own_transformer
from omnimuse.core.autoencoder import factors
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, Size, Spec, Variant
from omnimuse.loader.facts import read_facts

MAX_SEQUENCE_LENGTH = 1000
"""Text tokens that are read; the words in quotes are read once more, as far as `MAX_GLYPHS` bytes of them."""
MAX_GLYPHS = 256
MAX_SIDE = 2048  # the positions know no bound; beyond this the model was never seen to draw
MAX_FRAMES = 241
STEEPEST = 4.0
"""How many times longer than the other a side of the sizes is that the network learned from."""
WIDE = (16, 9)
TARGET_SIZE = 640


@dataclass(frozen=True)
class Guider:
    """What a checkpoint's guider says; its other options are supported at one value only."""

    guidance_scale: float = 7.5
    enabled: bool = True


def guider(configs: Configs) -> Guider:
    """The checkpoint's guider; ModelError for one that guides in another way."""
    usual = {"guidance_rescale": (0.0,), "use_original_formulation": (False,), "start": (0.0,), "stop": (1.0,)}
    return read_facts(Guider, configs["guider"], "guider/guider_config.json", usual)


def target_size(configs: Configs) -> int:
    """The side of a square with as many pixels as a frame should have."""
    return int(configs["transformer"].get("target_size") or TARGET_SIZE)


def begins_with_picture(configs: Configs) -> bool:
    """Whether the network is told of a first frame."""
    return "image_encoder" in configs


def learned_sizes(target: int, step: int) -> list[Size]:
    """The sizes that the network learned from, of about `target` pixels squared, in whole latents of `step` pixels."""
    patches = round((target / step) ** 2)
    sizes, high, wide = [], patches, 1
    while high > 0:
        if max(wide, high) / min(wide, high) <= STEEPEST:
            sizes.append((wide * step, high * step))
        if (wide + 1) * high <= patches:
            wide += 1
        else:
            high -= 1
    return sizes


def learned_size(target: int, step: int, pictures: Sequence[Size]) -> Size:
    """Of those, the one whose proportions are nearest to the first picture's, and no steeper."""
    width, height = pictures[0]
    wanted, sizes = height / width, learned_sizes(target, step)
    ratios = [(round(high / wide, 5), (wide, high)) for wide, high in sizes]
    fitting = [(ratio, size) for ratio, size in ratios if (ratio <= wanted if wanted >= 1 else ratio >= wanted)]
    return min(fitting, key=lambda pair: abs(pair[0] - wanted))[1]


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: a frame of any number of latents."""
    span, step = factors(configs["vae"])
    guider(configs)
    pictures = int(begins_with_picture(configs))
    return Limits(
        size_multiple=step,
        max_side=MAX_SIDE // step * step,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        min_images=pictures,
        max_images=pictures,
        fixed=DiffusionParams(max_sequence_length=MAX_SEQUENCE_LENGTH),
        frame_step=span,
        max_frames=MAX_FRAMES // span * span + 1,
        sized=partial(learned_size, target_size(configs), step),
    )


def guided_scale(configs: Configs) -> DiffusionParams:
    """The scale that the checkpoint's guider has."""
    own = guider(configs)
    return DiffusionParams(guidance_scale=own.guidance_scale if own.enabled else 1.0)


def wide_size(configs: Configs) -> DiffusionParams:
    """A wide frame of the size that the network was trained for."""
    width, height = learned_size(target_size(configs), factors(configs["vae"])[1], [WIDE])
    return DiffusionParams(width=width, height=height)


def is_kind(target: int, pictures: bool, guided: bool, few: bool) -> Callable[[Configs], str]:
    """A reason for a checkpoint of that size, that begins with a picture or not, guided or not, of few steps or not."""

    def reason(configs: Configs) -> str:
        own, flow = guider(configs), bool(configs["transformer"].get("use_meanflow"))
        found = target_size(configs), begins_with_picture(configs), own.enabled and own.guidance_scale > 1, flow
        if found != (target, pictures, guided, few):
            return ""
        source, scale = ("a picture" if pictures else "text"), "is" if guided else "is not"
        steps = ", and is told where a step ends" if few else ""
        return f"it makes videos from {source} at {target} pixels squared, and {scale} guided{steps}"

    return reason


DEFAULTS = DiffusionParams(
    num_inference_steps=50,
    guidance_scale=6.0,
    height=480,
    width=848,
    num_frames=121,
    fps=24.0,
    max_sequence_length=MAX_SEQUENCE_LENGTH,
).over(ONE)
LARGE, PLAIN = DiffusionParams(height=720, width=1280), DiffusionParams(guidance_scale=1.0)
HOME = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-"


def _variant(name: str, defaults: DiffusionParams, *, distilled: bool = False) -> Variant:
    """The checkpoint `name`, `480p_t2v` for instance."""
    target, pictures = (640 if name.startswith("480p") else 960), "i2v" in name
    chosen = PLAIN.over(defaults) if distilled else defaults
    kind = is_kind(target, pictures, not distilled, "step" in name)
    return Variant(f"HunyuanVideo-1.5-{name}", (f"{HOME}{name}",), chosen, kind)


TRANSFORMER = own_transformer(
    "hunyuan_video15", "HunyuanVideoTransformer", "HunyuanVideo15Transformer3DModel", alias=True
)

SPEC = Spec(
    arch="HunyuanVideo15Pipeline",
    family="hunyuan_video15",
    summary="HunyuanVideo-1.5: videos from text or a picture, with words in them; two streams, 8.3 billion",
    tasks=("text-to-video", "image-to-video"),
    components={
        "transformer": replace(TRANSFORMER, tells=wide_size),
        "text_encoder": Component(("Qwen2_5_VLTextModel",)),
        "tokenizer": Component(("Qwen2Tokenizer",)),
        "text_encoder_2": Component(("T5EncoderModel",)),
        "tokenizer_2": Component(("ByT5Tokenizer",)),
        "image_encoder": Component(("SiglipVisionModel",), optional=True),
        "feature_extractor": Component(("SiglipImageProcessor",), optional=True, built=False),
        "vae": Component(("AutoencoderKLHunyuanVideo15",)),
        "guider": Component(("ClassifierFreeGuidance",), built=False, tells=guided_scale),
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "num_frames", "fps"}),
    limits=limits,
    guidance=Guidance(),
    also=("HunyuanVideo15ImageToVideoPipeline",),
    variants=(
        _variant("480p_t2v", DEFAULTS),
        _variant("720p_t2v", LARGE.over(DEFAULTS)),
        _variant("480p_t2v_distilled", DEFAULTS, distilled=True),
        _variant("480p_i2v", DEFAULTS),
        _variant("720p_i2v", LARGE.over(DEFAULTS)),
        _variant("480p_i2v_distilled", DEFAULTS, distilled=True),
        _variant("720p_i2v_distilled", LARGE.over(DEFAULTS), distilled=True),
        _variant("480p_i2v_step_distilled", DiffusionParams(num_inference_steps=8).over(DEFAULTS), distilled=True),
    ),
)
