"""What many families have in their facts, for their `spec.py` to name: components, limits, defaults. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from omnimuse.core.autoencoder import factor
from omnimuse.core.errors import ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.core.spec import Component, Configs, Limits, SoundLimits, calls
from omnimuse.core.speech import Speech

ONE = DiffusionParams(num_outputs_per_prompt=1, output_type="pil")
"""What every model is asked for by default, besides what its family says."""
SQUARE = DiffusionParams(height=1024, width=1024).over(ONE)
"""The same of a model of pictures."""
MAX_SIDE = 4096
"""For positions that know no bound: beyond this no model was seen to draw."""

MOST_IMAGES, MOST_SOUNDS, MOST_VIDEOS = 8, 4, 2
"""Pictures, sounds and videos that one conversation may show."""
MAX_SIDE_SHOWN = 8192
"""Of a picture that is shown; it is made smaller than the checkpoint's `max_pixels`."""
SPEECH_RATE = 24_000
"""Samples a second of an answer."""


class Reader(NamedTuple):
    """A text encoder, and the tokenizer that it needs."""

    encoder: Component
    tokenizer: Component


SCHEDULER = Component((), built=False)
"""Only its configuration is read: what moves latents is a solver of ours."""

AUTOENCODER_KL = Component(
    ("AutoencoderKL",),
    network="omnimuse.components.autoencoder_kl:AutoencoderKL",
    rules="omnimuse.components.autoencoder_kl:RULES",
)
QWEN_TOKENIZER = Component(("Qwen2Tokenizer", "TokenizersBackend", "PreTrainedTokenizerFast"))

CLIP = Reader(Component(("CLIPTextModel",)), Component(("CLIPTokenizer",)))
CLIP_PROJECTED = Reader(Component(("CLIPTextModelWithProjection",)), CLIP.tokenizer)
T5 = Reader(Component(("T5EncoderModel",)), Component(("T5Tokenizer",)))
GEMMA2 = Reader(Component(("Gemma2Model",)), Component(("GemmaTokenizer",)))
QWEN3 = Reader(
    Component(
        ("Qwen3Model", "Qwen3ForCausalLM"),
        network="omnimuse.components.qwen3:Qwen3Encoder",
        rules="omnimuse.components.qwen3:RULES",
    ),
    QWEN_TOKENIZER,
)


def own_transformer(family: str, network: str, *classes: str, alias: bool = False) -> Component:
    """The entry of a network of ours, in the files that every family has; `alias`: `weights.py` has `ALIASES`, too."""
    package = f"omnimuse.models.{family}"
    names = f"{package}.weights:ALIASES" if alias else ""
    return Component(classes, f"{package}.transformer:{network}", rules=f"{package}.weights:RULES", aliases=names)


def inside_model(
    model: Component,
    network: str,
    rules: str,
    where: Callable[[Mapping[str, object]], bool] | None = None,
    dtype: Literal["", "float32"] = "",
) -> Component:
    """The entry of a network in the files of `model`, whose component has that name: the path `network` in the same
    family's folder, or a whole one, the name of its `rules` and, unless every checkpoint has it, `where` it is there.
    """
    package = model.network.rpartition(".")[0]
    return replace(
        model,
        network=network if network.startswith("omnimuse.") else f"{package}.{network}",
        rules=f"{package}.weights:{rules}",
        aliases="",
        dtype=dtype,
        optional=where is not None,
        inside="model",
        where=where or model.where,
    )


def conversing(model: Component, processors: Sequence[str], speaking: Mapping[str, Component]) -> dict[str, Component]:
    """The components of a model that answers to what it is shown: `model`, which reads and writes, what looks and what
    listens, what is of its `speaking`, and its processor, of one of these classes.
    """
    return {
        "model": model,
        "vision": inside_model(model, "vision:Vision", "VISION"),
        "hearing": inside_model(model, "hearing:Hearing", "HEARING"),
        **speaking,
        "processor": Component(tuple(processors), optional=True, built=False),
        "tokenizer": Component(("Qwen2Tokenizer", "Qwen2TokenizerFast", "TokenizersBackend")),
    }


def patched(tokens: int, images: int = 0) -> Callable[[Configs], Limits]:
    """What a checkpoint can be asked for whose latents are patched 2 x 2, so that sides are multiples of twice the
    VAE's factor: texts of `tokens`, and so many `images` with a prompt.
    """

    def limits(configs: Configs) -> Limits:
        multiple = 2 * factor(configs["vae"])
        return Limits(size_multiple=multiple, max_side=MAX_SIDE, max_images=images, max_sequence_length=tokens)

    return limits


def longest_of(config: Mapping[str, object], where: str = "config.json") -> int:
    """How many tokens a language model of that configuration reads and writes in all; ModelError where none says so."""
    longest = config.get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 2:
        raise ModelError(f"{where}: max_position_embeddings={longest!r} is no number of tokens; use another checkpoint")
    return longest


NO_PICTURE = "what comes out is text"
REFUSES: Mapping[str, str] = MappingProxyType(
    {
        "num_inference_steps": "a text has as many steps as tokens; use max_tokens",
        "height": NO_PICTURE,
        "width": NO_PICTURE,
        "max_sequence_length": "the whole prompt is read; max_tokens bounds what is written",
        "output_type": "a text has one form",
        "cache": "no step of a text can be skipped",
    }
)
"""What no model that writes is asked for, and why."""


def writing(configs: Configs, longest: int) -> Limits:
    """What a checkpoint can be asked for that writes, of so many tokens in all, by its `tokenizer`'s template."""
    able = calls(configs)
    return Limits(size_multiple=1, max_side=1, max_sequence_length=longest, refuses=REFUSES, calls=able)


def answering(
    config: Mapping[str, object], speech: Speech | None, refuses: Mapping[str, str], calls: bool = False
) -> Limits:
    """What a checkpoint can be asked for that answers, perhaps aloud, to a conversation in which things are shown, and
    tools may be asked for if it `calls` any, as the `config` of its language model says. ModelError where that says
    nothing.
    """
    return Limits(
        size_multiple=1,
        max_side=MAX_SIDE_SHOWN,
        max_sequence_length=longest_of(config),
        max_images=MOST_IMAGES,
        max_videos=MOST_VIDEOS,
        sound=SoundLimits(SPEECH_RATE, 1, 0.0, MOST_SOUNDS, speech),
        refuses=refuses,
        calls=calls,
    )


def latent_model(transformer: Component, *readers: Reader, vae: Component = AUTOENCODER_KL) -> dict[str, Component]:
    """The components of a model that draws latents as texts say: its transformer, the readers in order, called
    `text_encoder`, `tokenizer`, `text_encoder_2` and so on, the autoencoder and the scheduler.
    """
    found = {"transformer": transformer}
    for number, reader in enumerate(readers, 1):
        suffix = "" if number == 1 else f"_{number}"
        found |= {f"text_encoder{suffix}": reader.encoder, f"tokenizer{suffix}": reader.tokenizer}
    return {**found, "vae": vae, "scheduler": SCHEDULER}
