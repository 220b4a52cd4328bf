"""Tiny random checkpoints of GLM-Image, in the layout that diffusers saves: `build(folder)`.

Transformer of width 32 (2 heads of 16, two blocks, 64 tokens of the prior), T5 of width 24 that reads bytes, 16-channel
VAE with factor 8 and a mean and a deviation per channel. The language model has width 32, two layers and two heads of
16 that share keys, the vision tower two blocks of width 24; what it can write are tokens of the prior, so it never ends
before its time, at which the reference would fail. It and its processor may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
)
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    ByT5Tokenizer,
    GenerationConfig,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageProcessor,
    PreTrainedTokenizerFast,
    T5EncoderModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

from omnimuse.core.params import DiffusionParams
from tests.checkpoints import encoders, parts
from tests.checkpoints.wishes import EULER, Family, Wish, drawn, of_picture, photo

CODES = 64
MARKS = ("<|dit_token_64|>", "<|dit_token_65|>")
"""Where a picture begins and where it ends."""
SPECIALS = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
CHAT = (
    "{%- for message in messages %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '" + MARKS[0] + "<|image|>" + MARKS[1] + "' }}"
    "{%- else %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endfor %}"
)
PIXELS = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
"""Of pictures that are read: a side of at least 32 pixels, and what is read of it of at most 128."""


def transformer() -> GlmImageTransformer2DModel:
    """The network of the reference, small; still to be drawn."""
    return GlmImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=encoders.TEXT_WIDTH,
        time_embed_dim=24,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=CODES,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and words; the first ids are those of the prior's tokens, and of the marks of pictures."""
    vocab, merges = parts.train_bpe([parts.PROMPT_WORDS], parts.QWEN_SPLIT)
    codes = [f"<|dit_token_{number}|>" for number in range(CODES)] + list(MARKS)
    numbered = {token: number for number, token in enumerate([*codes, *vocab, *SPECIALS.values(), "<|endoftext|>"])}
    trained = Tokenizer(models.BPE(vocab=numbered, merges=merges))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.add_special_tokens([*codes, *SPECIALS.values(), "<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token=MARKS[0], pad_token="<|endoftext|>", extra_special_tokens=dict(SPECIALS)
    )


def processor() -> GlmImageProcessor:
    """Patches of 16 pixels, which the vision tower does not join."""
    pictures = GlmImageImageProcessorPil(size=PIXELS, patch_size=16, temporal_patch_size=1, merge_size=1)
    return GlmImageProcessor(pictures, tokenizer(), chat_template=CHAT)


def language_model(
    words: PreTrainedTokenizerFast, writes: int = CODES, keys: int = 1
) -> GlmImageForConditionalGeneration:
    """Half of a head turns; it can write so many tokens, and usually not the one that ends a text."""
    start, end, place = words.convert_tokens_to_ids([*MARKS, SPECIALS["image_token"]])
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    text = {
        "vocab_size": len(words),
        "vision_vocab_size": writes,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": keys,
        "rope_parameters": rope,
        "max_position_embeddings": 2048,
        "eos_token_id": end,
        "pad_token_id": words.pad_token_id,
    }
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 48, "num_heads": 2, "image_size": 64}
    codes = {"embed_dim": 16, "num_embeddings": CODES, "latent_channels": 24}
    marks = {"image_token_id": place, "image_start_token_id": start, "image_end_token_id": end}
    return GlmImageForConditionalGeneration(
        GlmImageConfig(text_config=text, vision_config=vision, vq_config=codes, **marks)
    )


def vae() -> AutoencoderKL:
    """As published: neither factor nor shift, but statistics of every channel."""
    generator = torch.Generator().manual_seed(5)
    made = parts.kl_autoencoder()
    made.register_to_config(
        latents_mean=torch.randn(16, generator=generator).tolist(),
        latents_std=(0.5 + torch.rand(16, generator=generator)).tolist(),
    )
    return made


def build(folder: Path, *, writes: int = CODES, seed: int = 0, keys: int = 1) -> Path:
    """Writes the checkpoint into `folder` and returns it; its language model `writes` so many tokens (0: none), and has
    so many heads of `keys`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ByT5Tokenizer(extra_ids=0)
    words.save_pretrained(folder / "tokenizer")
    parts.save_module(folder, "text_encoder", seed, partial(encoders.t5_encoder, len(words)))
    parts.save_module(folder, "transformer", seed, transformer)
    parts.save_module(folder, "vae", seed, vae)
    shift = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", shift)
    components = {
        "processor": ("transformers", "GlmImageProcessor") if writes else None,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "ByT5Tokenizer"),
        "transformer": ("diffusers", "GlmImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "vision_language_encoder": ("transformers", "GlmImageForConditionalGeneration") if writes else None,
    }
    if writes:
        words = tokenizer()
        processor().save_pretrained(folder / "processor")
        parts.save_module(folder, "vision_language_encoder", seed, partial(language_model, words, writes, keys))
        how = GenerationConfig(
            do_sample=True, temperature=0.9, top_p=0.75, eos_token_id=words.convert_tokens_to_ids(MARKS[1])
        )
        how.save_pretrained(folder / "vision_language_encoder")
    parts.write_index(folder, "GlmImagePipeline", components)
    return folder


class SeesEachPicture(nn.Module):
    """The language model of the reference, which makes tokens of pictures one by one: the reference lays what is seen
    in all of them side by side first, as an older version gave it, which this one's codebook cannot take.
    """

    def __init__(self, model: GlmImageForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.dtype, self.device = model.dtype, model.device

    def get_image_features(self, pixel_values: Tensor, grids: Tensor) -> BaseModelOutputWithPooling:
        """The tokens of every picture, in the place of what is seen in it."""
        seen = self.model.get_image_features(pixel_values, grids).pooler_output
        return BaseModelOutputWithPooling(pooler_output=[self.model.get_image_tokens([each]) for each in seen])

    def get_image_tokens(self, tokens: Tensor, grids: Tensor) -> Tensor:
        """These."""
        return tokens

    def generate(self, **inputs: Any) -> Tensor:
        """As it is."""
        return self.model.generate(**inputs)


def read_by_the_reference(folder: Path, wishes: Sequence[Wish]) -> list[Tensor]:
    """What the reference's language model says of every wish, int64 [patches of the picture]."""
    pipe, found = opened(folder), list[Tensor]()
    for wish in wishes:
        assert wish.params.seed is not None
        with torch.random.fork_rng():
            tokens, _, _ = pipe.generate_prior_tokens(
                wish.prompt,
                wish.params.height,
                wish.params.width,
                [wish.images] if wish.images else None,
                torch.device("cpu"),
                torch.Generator().manual_seed(wish.params.seed),
            )
        found.append(tokens[0])
    return found


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The reference, with what needs no torchvision."""
    return GlmImagePipeline(
        tokenizer=ByT5Tokenizer.from_pretrained(folder / "tokenizer"),
        processor=processor(),
        text_encoder=T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        vision_language_encoder=SeesEachPicture(
            GlmImageForConditionalGeneration.from_pretrained(folder / "vision_language_encoder", dtype=dtype)
        ),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        transformer=GlmImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """What the reference makes of every wish, given what its language model would have said, or by that."""
    pipe, results = opened(folder, dtype), []
    for wish in wishes:
        extra = dict(wish.params.extra or {})  # type: ignore[call-overload]
        given: dict[str, Any] = {}
        if extra:
            given["prior_token_ids"] = torch.tensor([extra["prior_token_ids"]])
        if wish.images:
            given["image"] = wish.images
        if wish.images and extra:
            given["prior_token_image_ids"] = [torch.tensor(extra["prior_token_image_ids"])]
            given["source_image_grid_thw"] = [torch.tensor([_grid(image) for image in wish.images])]
        with torch.random.fork_rng():  # its language model draws from the one generator that all share
            results.append(drawn(pipe, wish, output_type, **given))
    return results


def _grid(image: Image.Image) -> list[int]:
    """Frames, rows and columns of the patches of a picture."""
    return [1, image.height // 16, image.width // 16]


def _asked(params: DiffusionParams, tokens: int, *images: Image.Image) -> DiffusionParams:
    """Drawn as a prior that its seed makes up says, of what is drawn and of pictures that are shown."""
    assert params.height is not None
    assert params.width is not None
    assert params.seed is not None
    generator = torch.Generator().manual_seed(params.seed)
    prior = torch.randint(0, CODES, (params.height * params.width // 256,), generator=generator)
    extra = {"prior_token_ids": prior.tolist()}
    if images:
        patches = sum(math.prod(_grid(image)) for image in images)
        extra["prior_token_image_ids"] = torch.randint(0, CODES, (patches,), generator=generator).tolist()
    return replace(params, max_sequence_length=tokens, extra=extra)


_SHOWN = (photo(70, 100), photo(48, 40))
_READ = (photo(96, 64), photo(32, 64))
"""In sizes that the reference itself needs: whole tokens of its language model."""

SKETCHED = Wish('a "star"', None, of_picture(5, 5.0, 32, 96, 9))
"""One that starts from nothing: a sketch of some 250 tokens is written first, which is too long for every invariant."""

FAMILIES = (
    Family(
        arch="GlmImagePipeline",
        build=build,
        wishes=(
            Wish("a red circle", None, _asked(of_picture(4, 4.0, 64, 64, 7), 64)),
            Wish(
                "\u201ctwo squares\u201d and 'a long story about them', 「更」 \"and so on\"",
                None,
                _asked(of_picture(3, 1.0, 96, 64, 8), 16),
            ),
            Wish(
                "make it 'blue'",
                None,
                _asked(of_picture(4, 3.0, 64, 32, 10), 64, *_SHOWN),
                _SHOWN[0],
                others=_SHOWN[1:],
            ),
            Wish('a yellow "heart" on white', None, of_picture(3, 3.0, 96, 96, 9), _READ[0], others=_READ[1:]),
        ),
        reference=reference,
        unable=EULER,
    ),
)
