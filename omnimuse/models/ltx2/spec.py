"""Facts about LTX-2, text and perhaps a first frame to video with sound, without torch.

Source: the published checkpoint's `model_index.json` and card, and the reference pipeline of diffusers. Video and sound
are guided by scales of their own, against a negative prompt and against a network in which the two do not know of each
other; the video's scale says whether there is a negative prompt (in the reference either can). The reference may also
evaluate the network with some attention left out (`stg_scale`); networks of this generation are not made for that, and
it changes nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omnimuse.components.entries import MAX_SIDE, ONE, SCHEDULER, own_transformer
from omnimuse.core.autoencoder import factors
from omnimuse.core.guidance import Guidance
from omnimuse.core.params import DiffusionParams, FamilyParams
from omnimuse.core.spec import Component, Configs, Limits, SoundLimits, Spec, Variant

MAX_SEQUENCE_LENGTH = 1024
"""Text tokens; what a prompt leaves of them is filled with tokens that the connectors learned."""
MAX_SECONDS = 20  # what positions are counted in parts of
SPAN = 4  # frames of bands that a latent of the sound stands for
ISOLATED = "isolated"
"""The branch in which video and sound do not know of each other."""
STRENGTH: Mapping[str, float] = {"low": 0.0, "high": 100.0}
SHARE: Mapping[str, float] = {"low": 0.0, "high": 1.0}


@dataclass(frozen=True)
class LTX2Params(FamilyParams):
    """How the sound is guided (`audio_...`; 0: as the video), by how much both are led away from what they would be
    without each other (`modality_scale`; 1: not at all), and how far guidance keeps the spread that there was before.
    A first frame is packed by H.264 at `image_crf` before it is shown, as those were that the network learned from; 0:
    it is not.
    """

    audio_guidance_scale: float = field(default=7.0, metadata=STRENGTH)
    modality_scale: float = field(default=3.0, metadata=STRENGTH)
    audio_modality_scale: float = field(default=3.0, metadata=STRENGTH)
    guidance_rescale: float = field(default=0.7, metadata=SHARE)
    audio_guidance_rescale: float = field(default=0.7, metadata=SHARE)
    image_crf: int = field(default=33, metadata={"low": 0, "high": 51})


def besides(extra: FamilyParams) -> tuple[str, ...]:
    """The branch without each other, where anything is led away from it."""
    assert isinstance(extra, LTX2Params)
    return (ISOLATED,) if max(extra.modality_scale, extra.audio_modality_scale) > 1 else ()


def limits(configs: Configs) -> Limits:
    """What a checkpoint can be asked for."""
    span, side = factors(configs["vae"])
    vocoder = configs["vocoder"]
    return Limits(
        size_multiple=side,
        max_side=MAX_SIDE // side * side,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        max_images=1,
        frame_step=span,
        max_frames=MAX_SECONDS * 60 // span * span + 1,
        sound=SoundLimits(vocoder.get("output_sampling_rate", 24_000), vocoder.get("out_channels", 2)),
    )


DEFAULTS = DiffusionParams(
    30, 3.0, height=512, width=768, num_frames=121, fps=24.0, max_sequence_length=MAX_SEQUENCE_LENGTH
).over(ONE)

SPEC = Spec(
    arch="LTX2Pipeline",
    family="ltx2",
    summary="LTX-2: videos with their sound from text or a first frame; two parts of a network attend to each other",
    tasks=("text-to-video", "image-to-video"),
    components={
        "transformer": own_transformer("ltx2", "LTX2Transformer", "LTX2VideoTransformer3DModel", alias=True),
        "text_encoder": Component(("Gemma3ForConditionalGeneration",), part="model.language_model"),
        "tokenizer": Component(("GemmaTokenizer", "GemmaTokenizerFast")),
        "connectors": Component(
            ("LTX2TextConnectors",),
            network="diffusers.pipelines.ltx2.connectors:LTX2TextConnectors",
            aliases="omnimuse.models.ltx2.weights:ALIASES",
        ),
        "vae": Component(("AutoencoderKLLTX2Video",)),
        "audio_vae": Component(("AutoencoderKLLTX2Audio",)),
        "vocoder": Component(("LTX2Vocoder",), network="diffusers.pipelines.ltx2.vocoder:LTX2Vocoder"),
        "scheduler": SCHEDULER,
    },
    defaults=DEFAULTS,
    supported=frozenset({"guidance_scale", "num_frames", "fps"}),
    limits=limits,
    guidance=Guidance(besides=besides, most=3),
    extra=LTX2Params,
    also=("LTX2ImageToVideoPipeline",),
    variants=(Variant("LTX-2", ("Lightricks/LTX-2",), DEFAULTS),),
)
