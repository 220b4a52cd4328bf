"""What GLM-Image's language model is given to read, pictures, the prompt and the sizes of what it is to say, and how it
writes: what is its own of the stages in `pipeline/picture_codes.py`.

Source: transformers' GlmImageProcessor and `GlmImageModel.get_rope_index`, and the reference pipeline of diffusers.
No torchvision: Pillow does the arithmetic. S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omnimuse.ar.sampling import Sampling
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.core.params import GenerationParams
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import GENERATION, Configs
from omnimuse.models.glm_image.spec import COARSE, LANGUAGE, PROCESSOR, GlmImageParams
from omnimuse.pipeline.picture_codes import Grid, language
from omnimuse.pipeline.reading import Patches
from omnimuse.pipeline.stage import Context

MOST_UNLIKE = 4
"""How many times longer than the other a side of a picture may be."""
SKETCH = 16
"""Rows and columns of a square sketch, which the model writes before a picture that starts from nothing."""


class Pieces(Patches):
    """How a picture becomes patches of the vision tower, of which each stands for four times its pixels."""

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Half of `width` x `height` in whole patches, unless that has too short or too long a side."""
        short, long = min(width, height), max(width, height)
        if short < self.side or long > MOST_UNLIKE * short:
            raise RequestError(
                f"a picture of {width}x{height} cannot be read: both sides must have {self.side} pixels, and neither "
                f"more than {MOST_UNLIKE} times those of the other; give another one, or a part of it",
                "images",
            )
        least, most = (round(math.sqrt(area)) for area in (self.least, self.most))
        scale = least / short if short < least else 1.0
        scale = most / long if long * scale > most else scale
        sides = [max(self.side, round(side // 2 * scale / self.side) * self.side) for side in (width, height)]
        if max(sides) > most:
            shrink = max(sides) / most
            sides = [max(self.side, math.floor(side / shrink / self.side) * self.side) for side in sides]
        return sides[0], sides[1]

    @classmethod
    def told(cls, configs: Configs) -> Pieces:
        """What the checkpoint says; ModelError for what is not done here."""
        found = cls.of(configs[PROCESSOR])
        assert isinstance(found, Pieces)
        if (found.merge, found.frames) != (1, 1):
            raise ModelError(
                f"the processor's configuration has merge_size={found.merge} and temporal_patch_size={found.frames}; "
                "only 1 and 1 are supported"
            )
        return found

    def grid(self, picture: Picture) -> Grid:
        """Rows and columns of its patches."""
        width, height = self.fitted(picture.width, picture.height)
        return height // self.side, width // self.side


def seen_by_the_model(configs: Configs, request: Request) -> bool:
    """Whether the language model says what is in pictures that are shown, and not whoever asks."""
    assert isinstance(request.extra, GlmImageParams)
    return LANGUAGE in configs and not request.extra.prior_token_image_ids


def given(configs: Configs, request: Request) -> bool:
    """Whether whoever asks says what is in the picture; RequestError where somebody has to."""
    assert isinstance(request.extra, GlmImageParams)
    if not (ids := request.extra.prior_token_ids) and LANGUAGE not in configs:
        raise RequestError(
            f"this checkpoint has no language model ({LANGUAGE}), which says what is in the picture; give its "
            "tokens as extra.prior_token_ids, or use a complete checkpoint",
            "extra.prior_token_ids",
        )
    return bool(ids)


def prior_given(ctx: Context, request: Request) -> Tensor:
    """What is in the picture as whoever asks says, int64 [patches of the picture]."""
    assert isinstance(request.extra, GlmImageParams)
    return codes(ctx, "prior_token_ids", request.extra.prior_token_ids)


def brief_text(tokenizer: Any, prompt: str, pictures: Sequence[Grid], wanted: Sequence[Grid]) -> str:
    """The chat of one message, with as many tokens for every picture as it has patches, then the sizes wanted."""
    place, begins, opens, closes = (
        tokenizer.special(name) for name in ("image_token", "bos_token", "grid_bos_token", "grid_eos_token")
    )
    for token in (place, begins):
        if token in prompt:
            raise RequestError(f"the prompt holds {token}, which stands for a picture; take it out", "prompt")
    said = [*({"type": "image"} for _ in pictures), {"type": "text", "text": prompt}]
    parts = tokenizer.apply_chat_template([{"role": "user", "content": said}]).split(place)
    if len(parts) != len(pictures) + 1:
        raise ModelError(
            f"the chat template has {len(parts) - 1} {place} for {len(pictures)} pictures; use another checkpoint"
        )
    counts = [rows * columns for rows, columns in pictures]
    chat = "".join(part + place * count for part, count in zip(parts, [*counts, 0], strict=True))
    return chat + "".join(f"{opens}{rows} {columns}{closes}" for rows, columns in wanted) + begins


def wanted_grids(request: Request, size_multiple: int) -> list[Grid]:
    """The grid of what is drawn and, where it starts from nothing, that of a sketch of it, which is written first."""
    columns, rows = (length // size_multiple for length in request.size)
    if request.images:
        return [(rows, columns)]
    ratio = rows / columns
    return [(rows, columns), (int(math.sqrt(ratio) * SKETCH), int(math.sqrt(1 / ratio) * SKETCH))]


def finer(tokens: Tensor) -> Tensor:
    """Tokens [rows, columns] of a picture -> those of its finer patches, [rows * columns * COARSE**2]."""
    return tokens.repeat_interleave(COARSE, 0).repeat_interleave(COARSE, 1).flatten()


def sampling(configs: Configs) -> Sampling:
    """How tokens are chosen: as the checkpoint's generation_config.json says, but always drawn."""
    told: dict[str, Any] = dict(configs.get(f"{LANGUAGE}/{GENERATION}", {}))
    config = language(configs[LANGUAGE])
    told.setdefault("eos_token_id", config.get("eos_token_id"))
    return Sampling.of(GenerationParams(), {**told, "do_sample": True})


def most_codes(configs: Configs) -> int:
    """How many tokens of a prior there are."""
    most = configs["transformer"]["prior_vq_quantizer_codebook_size"]
    assert isinstance(most, int)
    return most


def codes(ctx: Context, name: str, ids: tuple[int, ...]) -> Tensor:
    """Tokens that were given, int64 [S]; RequestError for one that the checkpoint does not know."""
    most = most_codes(ctx.configs)
    if unknown := [token for token in ids if not 0 <= token < most]:
        raise RequestError(f"extra.{name} has {unknown[0]}; this checkpoint knows 0 to {most - 1}", f"extra.{name}")
    return torch.tensor(ids, dtype=torch.int64, device=ctx.device)
