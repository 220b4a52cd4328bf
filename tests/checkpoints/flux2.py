"""Tiny random checkpoints of the FLUX.2 kind, in the layout that diffusers saves, and what the reference makes of them.

Transformer of width 32 (2 heads of 16, two double and two single blocks), a Qwen3 text encoder of width 32 with 29
layers, of which the 9th, 18th and 27th are read, and a VAE with 8 channels, factor 8 and statistics of patches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import parts
from tests.checkpoints.wishes import BY_SIZE, Family, Wish, halves, photo

TEXT_WIDTH = 32
CHANNELS = 8
SIDE = 16  # pixels of one token


def transformer(guidance: bool = False) -> Flux2Transformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return Flux2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=64,
        axes_dims_rope=(2, 4, 4, 6),
        guidance_embeds=guidance,
    )


def text_encoder(vocabulary: int, layers: int = 29) -> Qwen3ForCausalLM:
    """A language model with its head: 4 query and 2 key heads of 8."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def vae(widths: Sequence[int] = (16, 32, 32, 32)) -> AutoencoderKLFlux2:
    """The VAE of the reference, small; its decoder is wider than its encoder."""
    levels = len(widths)
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(widths),
        decoder_block_out_channels=(24, *widths[1:]),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=64,
    )


def save_shared(folder: Path, seed: int, *, guidance: bool) -> dict[str, tuple[str, str]]:
    """Writes what every kind has, and returns their entries of the index."""
    parts.save_module(folder, "transformer", seed, lambda: transformer(guidance))
    parts.save_module(folder, "vae", seed, vae)
    shift = {"shift": 3.0, "use_dynamic_shifting": True}
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", shift)
    return {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "transformer": ("diffusers", "Flux2Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLFlux2"),
    }


def build(folder: Path, *, distilled: bool = False, seed: int = 0) -> Path:
    """Writes a checkpoint of the Klein kind into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = parts.qwen_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "text_encoder", seed, lambda: text_encoder(len(tokenizer)))
    components = {
        **save_shared(folder, seed, guidance=False),
        "text_encoder": ("transformers", "Qwen3ForCausalLM"),
        "tokenizer": ("transformers", "Qwen2TokenizerFast"),
    }
    parts.write_index(folder, "Flux2KleinPipeline", components, {"is_distilled": distilled})
    return folder


MISTRAL_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
MISTRAL_SPECIALS += ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
MISTRAL_CHAT = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- set name = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "{{- '[' + name + ']' + message.content[0].text + '[/' + name + ']' }}"
    "{%- endfor %}"
)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the prompts and of the system message as tokens, other words as bytes; a begin token, pads before it."""
    from omnimuse.models.flux2_dev.pipeline import SYSTEM

    vocab, merges = parts.train_bpe([parts.PROMPT_WORDS, SYSTEM], parts.QWEN_SPLIT)
    shifted = {token: number + len(MISTRAL_SPECIALS) for token, number in vocab.items()}
    ids = {token: number for number, token in enumerate(MISTRAL_SPECIALS)}
    backend = Tokenizer(models.BPE(vocab=ids | shifted, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(MISTRAL_SPECIALS[4:]),
        padding_side="left",
        model_max_length=1024,
    )
    tokenizer.chat_template = MISTRAL_CHAT
    return tokenizer


class TextsOnly:
    """What PixtralProcessor does with conversations that have no pictures; the class itself needs torchvision."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(
        self, messages: Any, *, add_generation_prompt: bool, tokenize: bool, return_dict: bool, **how: Any
    ) -> Any:
        assert tokenize and return_dict
        texts = [
            self.tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=add_generation_prompt)
            for each in messages
        ]
        assert all(text.startswith("<s>") for text in texts), "else the processor adds one"
        return self.tokenizer(texts, add_special_tokens=False, **how)


def mistral(vocabulary: int, layers: int = 31) -> Mistral3ForConditionalGeneration:
    """A language model that reads pictures, too: 4 query and 2 key heads of 8; one layer that looks at pictures."""
    text = {
        "model_type": "mistral",
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_window": None,
        "max_position_embeddings": 2048,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "patch_size": 14,
        "image_size": 56,
    }
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))


def build_dev(folder: Path, *, seed: int = 0) -> Path:
    """Writes a checkpoint of the dev kind into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = mistral_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    PixtralImageProcessorPil().save_pretrained(folder / "tokenizer")
    processor = {"processor_class": "PixtralProcessor", "patch_size": 14, "spatial_merge_size": 2}
    (folder / "tokenizer" / "processor_config.json").write_text(json.dumps(processor))
    parts.save_module(folder, "text_encoder", seed, lambda: mistral(len(tokenizer)))
    components = {
        **save_shared(folder, seed, guidance=True),
        "text_encoder": ("transformers", "Mistral3ForConditionalGeneration"),
        "tokenizer": ("transformers", "PixtralProcessor"),
    }
    parts.write_index(folder, "Flux2Pipeline", components)
    return folder


def reference_dev(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The same by the reference for the dev kind, which gives latents as the loop left them, packed."""
    from diffusers import Flux2Pipeline

    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    pipe = Flux2Pipeline(
        getattr(diffusers, scheduler).from_pretrained(folder / "scheduler"),
        AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=dtype),
        Mistral3ForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=dtype),
        TextsOnly(PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")),
        Flux2Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
    )
    pipe.set_progress_bar_config(disable=True)
    return [call(pipe, wish, output_type, {}) for wish in wishes]


@contextmanager
def lent(folder: Path, wish: Wish) -> Iterator[dict[str, Any]]:
    """As `wishes.Lent`."""
    yield {"tokenizer": TextsOnly(PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))}


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish, latents as the network has them."""
    from diffusers import Flux2KleinPipeline

    pipe = Flux2KleinPipeline.from_pretrained(folder, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    results = []
    for wish in wishes:
        if "mask_image" in wish.filled:
            results.append(call_keeping(pipe, wish, output_type))
            continue
        # The reference takes another negative prompt than an empty one as features only.
        against = {} if wish.negative is None else {"negative_prompt_embeds": features(pipe, wish)}
        results.append(call(pipe, wish, output_type, against))
    return results


def call_keeping(pipe: Any, wish: Wish, output_type: str) -> Tensor:
    """The same where a part of the first picture is kept."""
    from diffusers import Flux2KleinInpaintPipeline

    p, given = wish.params, wish.filled
    keeping = Flux2KleinInpaintPipeline.from_pipe(pipe, torch_dtype=pipe.dtype)
    keeping.set_progress_bar_config(disable=True)
    picture = keeping(
        **given,
        image_reference=list(wish.others) or None,
        prompt=wish.prompt,
        strength=1.0 if p.strength is None else p.strength,
        num_inference_steps=p.num_inference_steps,
        guidance_scale=1.0 if p.guidance_scale is None else p.guidance_scale,
        generator=torch.Generator().manual_seed(p.seed or 0),
        output_type=output_type,
        max_sequence_length=p.max_sequence_length,
    ).images[0]
    return as_denoised(pipe.vae, picture) if output_type == "latent" else picture


def features(pipe: Any, wish: Wish) -> Tensor:
    """The features of a wish's negative prompt."""
    return pipe.encode_prompt(wish.negative, max_sequence_length=wish.params.max_sequence_length)[0]


def call(pipe: Any, wish: Wish, output_type: str, besides: dict[str, Any]) -> Tensor:
    """A picture [3, H, W], or latents [C, h, w]."""
    p = wish.params
    assert p.seed is not None
    picture = pipe(
        image=wish.images or None,
        prompt=wish.prompt,
        height=p.height,
        width=p.width,
        num_inference_steps=p.num_inference_steps,
        guidance_scale=1.0 if p.guidance_scale is None else p.guidance_scale,
        generator=torch.Generator().manual_seed(p.seed),
        output_type=output_type,
        max_sequence_length=p.max_sequence_length,
        **besides,
    ).images[0]
    if output_type != "latent":
        return picture
    if picture.ndim == 2:  # packed
        assert p.width and p.height
        return picture.T.unflatten(1, (p.height // SIDE, p.width // SIDE))
    return as_denoised(pipe.vae, picture)


def as_denoised(vae: nn.Module, latents: Tensor) -> Tensor:
    """Latents [c, h, w] of the autoencoder -> patched and normed, as the loop left them."""
    patched = torch.nn.functional.pixel_unshuffle(latents[None], 2)
    return torch.nn.functional.batch_norm(
        patched, vae.bn.running_mean, vae.bn.running_var, eps=vae.config.batch_norm_eps
    )[0]


_KLEIN = DiffusionParams(num_inference_steps=4, height=64, width=64, max_sequence_length=24)

FAMILIES = (
    Family(
        arch="Flux2KleinPipeline",
        kind="distilled",
        build=partial(build, distilled=True),
        wishes=(
            Wish("a red circle", None, replace(_KLEIN, seed=7)),
            Wish("a star", None, replace(_KLEIN, num_inference_steps=3, width=80, seed=8), photo(70, 100)),
            Wish(
                "two squares and a long story about them " * 6,
                None,
                replace(_KLEIN, height=96, max_sequence_length=40, guidance_scale=1.0, seed=9),
                photo(64, 90),
                others=(photo(120, 100), photo(130, 65)),
            ),
            Wish(
                "a wide star",
                None,
                replace(_KLEIN, num_inference_steps=5, width=96, strength=0.7, seed=10),
                photo(64, 48),
                mask=halves(64, 48),
                pad=(0, 16, 32, 0),
            ),
        ),
        reference=reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="Flux2KleinPipeline",
        kind="base",
        build=build,
        wishes=(
            Wish("a red circle", None, replace(_KLEIN, guidance_scale=4.0, seed=7)),
            Wish("two squares", "blurry, grey", replace(_KLEIN, width=96, guidance_scale=2.5, seed=8)),
            Wish(
                "two squares and a long story about them " * 6,
                None,
                replace(_KLEIN, num_inference_steps=5, height=48, max_sequence_length=40, guidance_scale=1.0, seed=9),
            ),
            Wish(
                "the star of the first beside the second",
                None,
                replace(_KLEIN, num_inference_steps=6, width=80, guidance_scale=3.0, seed=10),
                photo(70, 100),
                others=(photo(96, 64),),
            ),
            Wish(
                "a star",
                None,
                replace(_KLEIN, num_inference_steps=5, width=96, guidance_scale=3.0, strength=0.7, seed=11),
                photo(96, 64),
                others=(photo(64, 80),),
                mask=halves(96, 64),
            ),
            Wish(
                "a wide star",
                None,
                replace(_KLEIN, width=96, guidance_scale=2.0, seed=12),
                photo(64, 48),
                pad=(0, 16, 32, 0),
            ),
        ),
        reference=reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="Flux2Pipeline",
        build=build_dev,
        wishes=(
            Wish("a red circle [IMG]", None, replace(_KLEIN, guidance_scale=4.0, max_sequence_length=64, seed=7)),
            Wish(
                "two squares and a long story about them " * 8,
                None,
                replace(_KLEIN, num_inference_steps=3, width=96, guidance_scale=2.5, max_sequence_length=70, seed=8),
            ),
            Wish(
                "the star of the first beside the second",
                None,
                replace(_KLEIN, num_inference_steps=5, height=80, guidance_scale=1.0, max_sequence_length=80, seed=9),
                photo(70, 100),
                others=(photo(96, 64),),
            ),
        ),
        reference=reference_dev,
        unable=BY_SIZE,
        lent=lent,
    ),
)
