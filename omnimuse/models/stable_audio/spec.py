"""Facts about Stable Audio, without torch.

Source: the published checkpoint's `model_index.json` and the reference pipeline of diffusers. The network always makes
its whole length of latents; a request asks for a window of that waveform, and the network is told which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from omnimuse.components.entries import ONE, SCHEDULER, own_transformer
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, SoundParams
from omnimuse.core.spec import Component, Configs, Limits, SoundLimits, Spec, Variant

MAX_SEQUENCE_LENGTH = 512
"""Text tokens that are read at most where the tokenizer says nothing; the published one says 128."""
NO_SIDES = "a sound has no sides; choose its length in seconds"


@dataclass(frozen=True)
class StableAudioParams(SoundParams):
    """`start`: where in the waveform the sound begins, in seconds; the model is told, so it may be in mid-piece."""

    start: float = field(default=0.0, metadata={"low": 0.0, "high": 512.0})


def hop(configs: Configs) -> int:
    """Samples of one latent."""
    return prod(configs["vae"].get("downsampling_ratios") or (2, 4, 4, 8, 8))


def sample_rate(configs: Configs) -> int:
    """Samples a second."""
    return int(configs["vae"].get("sampling_rate") or 44_100)


def latent_length(configs: Configs) -> int:
    """Latents of the whole waveform."""
    return int(configs["transformer"].get("sample_size") or 1024)


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for: as many seconds as its latents are, as much text as its tokenizer says."""
    vae, tokenizer = (configs[name] for name in ("vae", "tokenizer"))
    said = tokenizer.get("model_max_length")
    longest = latent_length(configs) * hop(configs) / sample_rate(configs)
    return Limits(
        size_multiple=1,
        max_side=1,
        max_sequence_length=int(min(said or MAX_SEQUENCE_LENGTH, MAX_SEQUENCE_LENGTH)),
        refuses={"height": NO_SIDES, "width": NO_SIDES},
        sound=SoundLimits(sample_rate(configs), int(vae.get("audio_channels") or 2), longest, max_inputs=1),
    )


def published(configs: Configs) -> str:
    """One checkpoint of this size was published."""
    transformer = configs["transformer"]
    size = (latent_length(configs), transformer.get("num_layers", 24), transformer.get("num_attention_heads", 24))
    return "it has the size of the one that is published" if size == (1024, 24, 24) else ""


DEFAULTS = DiffusionParams(
    num_inference_steps=100,
    guidance_scale=7.0,
    seconds=3600.0,  # lowered to what the checkpoint can make
    strength=0.5,
    max_sequence_length=MAX_SEQUENCE_LENGTH,
).over(ONE)

SPEC = Spec(
    arch="StableAudioPipeline",
    family="stable_audio",
    summary="Stable Audio Open: sound effects and music from text, or from a sound, up to 47 seconds in stereo",
    tasks=("text-to-audio", "audio-to-audio"),
    components={
        "transformer": own_transformer("stable_audio", "StableAudioTransformer", "StableAudioDiTModel"),
        "projection_model": Component(
            ("StableAudioProjectionModel",), network="omnimuse.models.stable_audio.projection:Projection"
        ),
        "text_encoder": Component(("T5EncoderModel",)),
        "tokenizer": Component(("T5Tokenizer", "T5TokenizerFast")),
        "vae": Component(("AutoencoderOobleck",), network="omnimuse.components.oobleck:Oobleck"),
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "seconds", "strength"}),
    limits=limits,
    guidance=Guidance(),
    variants=(Variant("Stable-Audio-Open-1.0", ("stabilityai/stable-audio-open-1.0",), DEFAULTS, published),),
    extra=StableAudioParams,
)
