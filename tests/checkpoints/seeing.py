"""Text encoders that see pictures, with their tokenizers and processors, small, for the checkpoints that have them.

`save` writes the three; the other parts stand in for what the reference needs torchvision for, or does wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnimuse.pipeline.reading import PLACE
from tests.checkpoints import parts
from tests.checkpoints.wishes import Wish

MEDIA = ("<|vision_start|>", "<|vision_end|>", PLACE, "<|video_pad|>")
PIXELS = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 12}
"""Of pictures that are read: up to 12 pieces each."""


def tokenizer(texts: Sequence[str] = ()) -> Qwen2Tokenizer:
    """One token per word of `texts`, and those that stand around a picture and for its pieces."""
    words = parts.qwen_tokenizer(texts=texts)
    words.add_tokens(list(MEDIA), special_tokens=True)
    return words


def save(folder: Path, seed: int, words: Qwen2Tokenizer, width: int, processor: str) -> dict[str, tuple[str, str]]:
    """Writes the text encoder, the tokenizer and the component `processor`; returns their entries of the index."""
    for name in ("tokenizer", processor):
        words.save_pretrained(folder / name)
    Qwen2VLImageProcessorPil(**PIXELS).save_pretrained(folder / processor)
    media = words.convert_tokens_to_ids(list(MEDIA))
    parts.save_module(folder, "text_encoder", seed, lambda: parts.qwen25_vl(len(words), width, media=media))
    return {
        processor: ("transformers", "Qwen2VLProcessor"),
        "text_encoder": ("transformers", "Qwen2_5_VLForConditionalGeneration"),
        "tokenizer": ("transformers", "Qwen2Tokenizer"),
    }


class Processor:
    """What Qwen2VLProcessor does with one text and its pictures; the class itself needs torchvision."""

    def __init__(self, tokenizer: Qwen2Tokenizer, image_processor: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    def __call__(self, text: list[str], images: Any, *, padding: bool, return_tensors: str) -> BatchFeature:
        seen = self.image_processor(images, return_tensors=return_tensors)
        pieces = (PLACE * (int(grid.prod()) // 4) for grid in seen.image_grid_thw)
        [begins, *rest] = text[0].split(PLACE)
        whole = begins + "".join(piece + part for piece, part in zip(pieces, rest, strict=True))
        return BatchFeature({**self.tokenizer([whole], padding=padding, return_tensors=return_tensors), **seen})


class ToldWherePicturesAre(nn.Module):
    """The reference's text encoder, told which tokens are pictures: newer versions need that for right positions, and
    the reference does not say it.
    """

    def __init__(self, encoder: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype, self.device = encoder.dtype, encoder.device

    def forward(self, input_ids: Tensor, **given: Any) -> Any:
        kinds = (input_ids == self.encoder.config.image_token_id).int()
        return self.encoder(input_ids, mm_token_type_ids=kinds, **given)


def corrected(folder: Path, processor: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What `save` wrote, as the reference is given it."""
    words = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=dtype)
    return {
        "text_encoder": ToldWherePicturesAre(encoder),
        "tokenizer": words,
        processor: Processor(words, Qwen2VLImageProcessorPil.from_pretrained(folder / processor)),
    }


def sized(module: Any, wish: Wish) -> AbstractContextManager[Any]:
    """The reference in `module` draws in the size that was asked for, whatever that of the picture."""
    size = wish.params.width, wish.params.height
    return mock.patch.object(module, "calculate_dimensions", return_value=size)


@contextmanager
def lent(folder: Path, wish: Wish, *, module: Any, processor: str) -> Iterator[dict[str, Any]]:
    """As `wishes.Lent`, for a reference in `module` that is `sized`."""
    with sized(module, wish):
        yield corrected(folder, processor)
