"""What many families have in their table of components, for their `spec.py` to name. No torch."""

from __future__ import annotations

from typing import NamedTuple

from omnimuse.core.spec import Component


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


def latent_model(transformer: Component, *readers: Reader, vae: Component = AUTOENCODER_KL) -> dict[str, Component]:
    """The components of a model that draws latents as texts say: its transformer, the readers in order, called
    `text_encoder`, `tokenizer`, `text_encoder_2` and so on, the autoencoder and the scheduler.
    """
    found = {"transformer": transformer}
    for number, reader in enumerate(readers, 1):
        suffix = "" if number == 1 else f"_{number}"
        found |= {f"text_encoder{suffix}": reader.encoder, f"tokenizer{suffix}": reader.tokenizer}
    return {**found, "vae": vae, "scheduler": SCHEDULER}
