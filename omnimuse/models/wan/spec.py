"""Facts about Wan 2.1 and 2.2, text, pictures and videos to video, without torch.

Source: the published checkpoints' `model_index.json` and cards, and the reference pipelines of diffusers. Checkpoints
differ in what they say of themselves: `boundary_ratio` (two experts: `transformer` above that share of the noise,
`transformer_2` below), `expand_timesteps` (a time for every token), and what their networks take besides noisy latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import lcm

from omnimuse.components.entries import ONE, SCHEDULER, own_transformer
from omnimuse.core import autoencoder
from omnimuse.core.errors import ModelError
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import OPTIONS, Component, Configs, Limits, Spec, Variant
from omnimuse.models.wan.weights import FLOAT32

MAX_SEQUENCE_LENGTH = 512
"""Text tokens the transformers were trained with; prompts are padded to the length asked for, and the pads are read."""

EXPERTS = frozenset({"guidance_scale_2", "boundary_ratio"})
"""Parameters for checkpoints with two experts only."""


def factors(configs: Configs) -> tuple[int, int]:
    """How many frames, and how many pixels a side, one latent stands for."""
    return autoencoder.factors(configs["vae"])


def patch_size(configs: Configs) -> tuple[int, int, int]:
    """Latent frames, rows and columns of one token."""
    frames, height, width = configs["transformer"].get("patch_size") or (1, 2, 2)
    return int(frames), int(height), int(width)


def boundary_ratio(configs: Configs) -> float | None:
    """The share of the training timesteps from which on the first expert evaluates; None for a single network.

    ModelError if the checkpoint has one of boundary and second network without the other.
    """
    ratio, second = configs[OPTIONS].get("boundary_ratio"), "transformer_2" in configs
    if (ratio is not None) != second:
        raise ModelError(
            f"model_index.json has boundary_ratio={ratio!r} and {'a' if second else 'no'} transformer_2; two experts "
            "need both and one network neither: use the model_index.json that was published with this checkpoint"
        )
    return None if ratio is None else float(ratio)


def is_timed(configs: Configs) -> bool:
    """Whether the network is told a time for every token."""
    return bool(configs[OPTIONS].get("expand_timesteps"))


def latent_channels(configs: Configs) -> int:
    """Channels of the latents that are drawn: those that come out of the network."""
    transformer = configs["transformer"]
    return int(transformer.get("out_channels") or transformer.get("in_channels") or 16)


def pictures(configs: Configs) -> tuple[int, int]:
    """How many pictures a prompt must and may come with: the first frame, then the last.

    A network with a time for every token may be shown the first frame. Others need channels for frames that are given;
    one that sees pictures by an image encoder has places for one or for two. ModelError for other channels.
    """
    if is_timed(configs):
        return 0, 1
    transformer, drawn = configs["transformer"], latent_channels(configs)
    taken = int(transformer.get("in_channels") or drawn)
    if taken == drawn:
        return 0, 0
    if taken != (needed := 2 * drawn + factors(configs)[0]):
        raise ModelError(
            f"transformer/config.json: in_channels={taken} with out_channels={drawn} is not supported; a network of "
            f"{drawn} (text to video) or {needed} (from given frames) is"
        )
    if transformer.get("image_dim") is None:
        return 1, 2
    return (1, 1) if transformer.get("pos_embed_seq_len") is None else (2, 2)


def videos(configs: Configs) -> int:
    """From how many videos it may start: where the network is told of no given frames, as the reference."""
    return 1 if pictures(configs) == (0, 0) else 0


def strength(configs: Configs) -> DiffusionParams:
    """How much of a video is drawn anew, where it can start from one."""
    return DiffusionParams(strength=0.8 if videos(configs) else None)


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: a video with a last frame has others before it."""
    images = pictures(configs)
    found = bounds(configs, images=images, videos=(0, videos(configs)))
    return replace(found, min_frames=found.frame_step + 1) if images[1] > 1 else found


def bounds(configs: Configs, *, images: tuple[int, int], videos: tuple[int, int]) -> Limits:
    """The same of a network that must and may be given so many of each: whole patches, and no more of them along a side
    than it has positions.
    """
    (temporal, spatial), (_, height, width) = factors(configs), patch_size(configs)
    positions = int(configs["transformer"].get("rope_max_seq_len") or 1024)
    multiple = spatial * lcm(height, width)
    (least, most), (least_videos, most_videos) = images, videos
    alone = "this checkpoint has one network for all noise levels; leave it out"
    refuses = {} if boundary_ratio(configs) is not None else dict.fromkeys(EXPERTS, alone)
    if not most_videos:
        refuses["strength"] = "this checkpoint starts from no video, of which it would say how much changes"
    return Limits(
        size_multiple=multiple,
        max_side=positions * spatial * min(height, width),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        min_images=least,
        max_images=most,
        rounding="down",
        refuses=refuses,
        frame_step=temporal,
        max_frames=temporal * (positions - 1) + 1,
        min_videos=least_videos,
        max_videos=most_videos,
    )


def is_kind(experts: bool, timed: bool, images: tuple[int, int]) -> Callable[[Configs], str]:
    """A reason for a checkpoint with two experts or one, a time for every token or for all, and so many pictures."""

    def reason(configs: Configs) -> str:
        found = (boundary_ratio(configs) is not None, is_timed(configs), pictures(configs))
        if found != (experts, timed, images):
            return ""
        networks, times = "two experts" if experts else "one network", "each token" if timed else "all tokens"
        least, most = (("no", "one", "two")[count] for count in images)
        taken = most if least == most else f"{least} or {most}"
        return f"it has {networks}, a time for {times}, and takes {taken} picture{'s' * (images[1] != 1)}"

    return reason


DEFAULTS = DiffusionParams(
    num_inference_steps=50,
    guidance_scale=5.0,
    height=480,
    width=832,
    num_frames=81,
    fps=16.0,
    max_sequence_length=MAX_SEQUENCE_LENGTH,
).over(ONE)
LARGE = DiffusionParams(height=720, width=1280).over(DEFAULTS)

TRANSFORMER = replace(
    own_transformer("wan", "WanTransformer", "WanTransformer3DModel", alias=True), keep_float32=FLOAT32, tells=strength
)

SPEC = Spec(
    arch="WanPipeline",
    family="wan",
    summary="Wan 2.1 and 2.2: videos from text, pictures or videos; one network, two (A14B) or a deeper VAE (5B)",
    tasks=("text-to-video", "image-to-video", "video-to-video"),
    components={
        "transformer": TRANSFORMER,
        "transformer_2": replace(TRANSFORMER, optional=True),
        "text_encoder": Component(("UMT5EncoderModel",)),
        "tokenizer": Component(("T5Tokenizer", "T5TokenizerFast")),
        "vae": Component(
            ("AutoencoderKLWan",), network="omnimuse.models.wan.autoencoder:WanAutoencoder", dtype="float32"
        ),
        "image_encoder": Component(("CLIPVisionModel",), dtype="float32", optional=True),  # the reference loads both so
        "image_processor": Component(("CLIPImageProcessor",), optional=True, built=False),
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "num_frames", "fps", "strength"}) | EXPERTS,
    limits=limits,
    guidance=Guidance(("guidance_scale", "guidance_scale_2")),
    also=("WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
    variants=(
        Variant(
            "Wan2.1-T2V",
            ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
            DEFAULTS,
            is_kind(False, False, (0, 0)),
        ),
        Variant(
            "Wan2.2-T2V-A14B",
            ("Wan-AI/Wan2.2-T2V-A14B-Diffusers",),
            DiffusionParams(num_inference_steps=40, guidance_scale=4.0, guidance_scale_2=3.0).over(DEFAULTS),
            is_kind(True, False, (0, 0)),
        ),
        Variant(
            "Wan2.2-TI2V-5B",
            ("Wan-AI/Wan2.2-TI2V-5B-Diffusers",),
            DiffusionParams(height=704, width=1280, num_frames=121, fps=24.0).over(DEFAULTS),
            is_kind(False, True, (0, 1)),
        ),
        Variant("Wan2.1-I2V-480P", ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",), DEFAULTS, is_kind(False, False, (1, 1))),
        Variant("Wan2.1-I2V-720P", ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",), LARGE),
        Variant(
            "Wan2.1-FLF2V",
            ("Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",),
            DiffusionParams(guidance_scale=5.5).over(LARGE),
            is_kind(False, False, (2, 2)),
        ),
        Variant(
            "Wan2.2-I2V-A14B",
            ("Wan-AI/Wan2.2-I2V-A14B-Diffusers",),
            DiffusionParams(num_inference_steps=40, guidance_scale=3.5).over(DEFAULTS),
            is_kind(True, False, (1, 2)),
        ),
    ),
)
