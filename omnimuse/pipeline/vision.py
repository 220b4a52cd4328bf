"""Stock stage: what an image encoder sees in the pictures that came with the prompt.

Families declare it with what they take from the encoder. The preparation of a picture is that of transformers'
CLIPImageProcessor and SiglipImageProcessor, without torchvision: Pillow's bicubic filter on 8 bits, the middle of the
picture or all of it, means and deviations.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.errors import ModelError
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Configs
from omnimuse.media.picture import pixels_of
from omnimuse.pipeline.stage import Context, Stage
from omnimuse.pipeline.state import State

WHERE = "preprocessor_config.json"
STEPS = ("do_resize", "do_rescale", "do_normalize")
"""What is done to every picture; a configuration that leaves one out is refused."""

Fit = Callable[[Configs, Request, Picture], Image.Image]
"""A picture as it is before an encoder's own preparation."""


def as_it_is(configs: Configs, request: Request, picture: Picture) -> Image.Image:
    """The picture as it was given."""
    return Image.fromarray(pixels_of(picture))


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the input of an image encoder; the defaults are CLIP's. A `short_side` of 0 brings all of
    the picture to the size `crop`, whatever its proportions.
    """

    short_side: int = 224
    crop: tuple[int, int] = (224, 224)
    resample: int = Image.Resampling.BICUBIC
    factor: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Preparation:
        """What `config`, the contents of a processor's file, says; ModelError for what is not done here."""
        for name in STEPS:
            if not config.get(name, True):
                raise ModelError(f"{WHERE}: {name}={config[name]!r} is not supported; only true is")
        size, crop = config.get("size", cls.short_side), config.get("crop_size", cls.crop[0])
        if isinstance(size, Mapping) and isinstance(size.get("height"), int) and not config.get("do_center_crop"):
            return cls(0, (size["height"], size["width"]), *cls._values(config))
        if not config.get("do_center_crop", True):
            raise ModelError(f"{WHERE}: do_center_crop=False needs a size with height and width, and has {size!r}")
        short = size.get("shortest_edge") if isinstance(size, Mapping) else size
        high, wide = (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else (crop, crop)
        if not (
            isinstance(short, int) and isinstance(high, int) and isinstance(wide, int) and max(high, wide) <= short
        ):
            raise ModelError(
                f"{WHERE}: size={size!r} and crop_size={crop!r} are not supported; only a length of the shorter side "
                "is, and a part of it that is no longer"
            )
        return cls(short, (high, wide), *cls._values(config))

    @classmethod
    def _values(cls, config: Mapping[str, Any]) -> tuple[int, float, tuple[float, ...], tuple[float, ...]]:
        """The filter, and what becomes of the values."""
        return (
            config.get("resample", cls.resample),
            config.get("rescale_factor", cls.factor),
            tuple(config.get("image_mean") or cls.mean),
            tuple(config.get("image_std") or cls.deviation),
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """`image` as the encoder wants it: float32 [3, height, width]."""
        values = (
            torch.from_numpy(np.array(self._resized(image))).double().mul(self.factor).float()
        )  # [height, width, 3]
        return ((values - torch.tensor(self.mean)) / torch.tensor(self.deviation)).permute(2, 0, 1)

    def _resized(self, image: Image.Image) -> Image.Image:
        (width, height), way = image.size, Image.Resampling(self.resample)
        if not self.short_side:
            return image.resize((self.crop[1], self.crop[0]), way)
        long = int(self.short_side * max(width, height) / min(width, height))
        sides = (self.short_side, long) if width <= height else (long, self.short_side)
        left, top = (sides[0] - self.crop[1]) // 2, (sides[1] - self.crop[0]) // 2
        return image.resize(sides, way).crop((left, top, left + self.crop[1], top + self.crop[0]))


@dataclass(frozen=True)
class SeePictures(Stage):
    """Writes `seen`: the hidden state number `layer` of all pictures, one after the other, [I, D] in float32.

    Without a number it is the last one, after the final norm. A picture is looked at as `fit` makes it. None for a
    prompt without pictures, and where a checkpoint has no such encoder. Equal pictures are looked at once.
    """

    layer: int | None = None
    fit: Fit = as_it_is
    processor: str = "image_processor"
    name: str = "see pictures"
    reads: tuple[str, ...] = ("images",)
    writes: tuple[str, ...] = ("seen",)

    @property
    def uses(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("image_encoder", self.processor)

    def key(self, ctx: Context, state: State) -> Hashable | None:
        params = state.request.params
        return (self, params.width, params.height, *(picture.digest for picture in state["images"]))

    def run(self, ctx: Context, states: Sequence[State]) -> None:
        for state in states:
            images = state["images"]
            state["seen"] = self._see(ctx, state.request) if images and "image_encoder" in ctx.configs else None

    def _see(self, ctx: Context, request: Request) -> Tensor:
        prepare, network = Preparation.of(ctx.configs.get(self.processor, {})), ctx.network("image_encoder")
        fitted = [self.fit(ctx.configs, request, picture) for picture in request.images]
        pixels = torch.stack([prepare(image) for image in fitted])  # [n, 3, height, width]
        output = network(pixels.to(ctx.device, next(network.parameters()).dtype), output_hidden_states=True)
        state = output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        return state.flatten(0, 1).float()
