"""Tiny random checkpoints of the Qwen-Image-Edit kinds, as diffusers saves them, and what the reference makes of them.

The networks are those of `qwen_image.py`; the text encoder is one that sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as inpainting
from torch import Tensor
from transformers import Qwen2Tokenizer

from omnimuse.core.params import DiffusionParams
from omnimuse.models.qwen_image.pipeline import AFTER
from omnimuse.models.qwen_image_edit.pipeline import BEFORE
from tests.checkpoints import parts, qwen_image, seeing
from tests.checkpoints.wishes import EULER, Family, Wish, drawn, halves, of_true_guidance, photo

PLUS = "QwenImageEditPlusPipeline"
AREAS = {"shown_area": 1024 * 1024, "read_area": 384 * 384}
"""The areas that the reference has as constants, by what a request calls them."""


def tokenizer() -> Qwen2Tokenizer:
    """One token per word of the chat around a prompt, and those that stand around a picture and for its pieces."""
    return seeing.tokenizer([BEFORE, AFTER, "Picture 1:"])


def build(folder: Path, *, arch: str = "QwenImageEditPipeline", still: bool = False, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` and returns it; with `still` pictures stand still in time."""
    folder.mkdir(parents=True, exist_ok=True)
    seeing_parts = seeing.save(folder, seed, tokenizer(), qwen_image.TEXT_WIDTH, "processor")
    parts.save_module(folder, "transformer", seed, lambda: qwen_image.transformer(zero_cond_t=still))
    parts.save_module(folder, "vae", seed, qwen_image.vae)
    parts.write_scheduler(folder, "FlowMatchEulerDiscreteScheduler", qwen_image.SHIFT)
    components = {
        **seeing_parts,
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "transformer": ("diffusers", "QwenImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLQwenImage"),
    }
    parts.write_index(folder, arch, components)
    return folder


def parts_of(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The reference's components in `folder`, corrected."""
    return {
        **seeing.corrected(folder, "processor", dtype),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        "vae": AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=dtype),
        "transformer": QwenImageTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
    }


def in_other_areas(sized: Any, areas: Mapping[int, int], area: int, ratio: float) -> Any:
    """The reference's rule for sizes, with another area in the place of its constant."""
    return sized(areas[area], ratio)


def sizes_of(module: Any, wish: Wish) -> Any:
    """The same with the areas that a wish names."""
    chosen = dict(wish.params.extra or {})  # type: ignore[call-overload]
    areas = {area: chosen.get(name, area) for name, area in AREAS.items()}
    return partial(in_other_areas, module.calculate_dimensions, areas)


@contextmanager
def lent(folder: Path, wish: Wish, *, plus: bool = False) -> Iterator[dict[str, Any]]:
    """As `wishes.Lent`."""
    module: Any = pipeline_qwenimage_edit_plus if plus else pipeline_qwenimage_edit
    with mock.patch.object(module, "calculate_dimensions", sizes_of(module, wish)):
        yield seeing.corrected(folder, "processor")


def reference(
    folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32, *, plus: bool = False
) -> list[Tensor]:
    """What the reference makes of every wish, in the areas that it names: a picture [3, H, W], or latents [C, h, w].

    With `plus` that is the reference that takes several pictures. A blank stands for a negative prompt that nobody
    gave: the reference would leave guidance out. Its inpainting is corrected: it would show, and keep, a
    sample of what its editing shows the means of.
    """
    module: Any = pipeline_qwenimage_edit_plus if plus else pipeline_qwenimage_edit
    held = parts_of(folder, dtype)
    pipe = (module.QwenImageEditPlusPipeline if plus else module.QwenImageEditPipeline)(**held)
    keeping = inpainting.QwenImageEditInpaintPipeline(**held)
    results = []
    for wish in qwen_image.guided(wishes):
        sized = sizes_of(module, wish)
        if len(wish.filled) > 1:
            means = partial(inpainting.retrieve_latents, sample_mode="argmax")
            with mock.patch.multiple(inpainting, calculate_dimensions=sized, retrieve_latents=means):
                picture = drawn(keeping, wish, output_type, strength=wish.params.strength or 1.0)
        else:
            with mock.patch.object(module, "calculate_dimensions", sized):
                picture = drawn(pipe, wish, output_type, image=wish.images if plus else wish.image)
        results.append(picture[:, 0] if picture.ndim == 4 else picture)
    return results


def edited(scale: float, steps: int, height: int, width: int, seed: int, **areas: int) -> DiffusionParams:
    """Parameters with pictures shown and read in other areas than the published ones."""
    return replace(of_true_guidance(scale, steps, height, width, seed), max_sequence_length=None, extra=areas)


def several(kind: str, *, still: bool) -> Family:
    """One of the checkpoints that take several pictures."""
    return Family(
        arch=PLUS,
        kind=kind,
        build=partial(build, arch=PLUS, still=still),
        wishes=(
            Wish(
                "the star of the first beside the second",
                "blurry, grey",
                edited(4.0, 4, 64, 64, 7, shown_area=64 * 64, read_area=48 * 48),
                photo(70, 50),
                others=(photo(40, 100),),
            ),
            Wish(
                "Two squares, and a long story about them. " * 9,
                None,
                edited(2.5, 3, 96, 64, 8, shown_area=80 * 80, read_area=96 * 96),
                photo(130, 65),
            ),
            Wish(
                "a star",
                None,
                edited(1.0, 5, 32, 48, 9, shown_area=48 * 48, read_area=64 * 64),
                photo(33, 33),
                others=(photo(90, 50), photo(64, 64)),
            ),
        ),
        reference=partial(reference, plus=True),
        least_steps=2,
        unable=EULER,
        lent=partial(lent, plus=True),
    )


FAMILIES = (
    Family(
        arch="QwenImageEditPipeline",
        build=build,
        wishes=(
            Wish("make it red", "blurry, grey", edited(4.0, 4, 64, 64, 7, shown_area=64 * 64), photo(70, 50)),
            Wish(
                "Two squares, and a long story about them. " * 9,
                None,
                edited(2.5, 3, 96, 64, 8, shown_area=80 * 80),
                photo(40, 100),
            ),
            Wish("a star", None, edited(1.0, 5, 32, 48, 9, shown_area=48 * 48), photo(130, 65)),
            Wish("a cross", "", edited(3.0, 2, 48, 64, 10, shown_area=100 * 100), photo(64, 64)),
            Wish(
                "a heart",
                "grey",
                replace(edited(3.0, 5, 64, 64, 11, shown_area=64 * 64), strength=0.8),
                photo(70, 50),
                mask=halves(70, 50),
            ),
            Wish("a ring", None, edited(1.0, 3, 96, 64, 12, shown_area=80 * 80), photo(64, 64), pad=(0, 0, 0, 40)),
        ),
        reference=reference,
        least_steps=2,
        unable=EULER,
        lent=lent,
    ),
    several("2509", still=False),
    several("2511", still=True),
)
