"""What a family's tiny checkpoint comes with: cheap requests, and what the reference implementation makes of them.

Each family's module here declares its own `FAMILIES`, and `families.py` collects them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Recording
from omnimuse.media.clip import clip_of
from omnimuse.media.picture import mask_of, picture_of
from omnimuse.media.recording import recording_of

TOLERANCE = 1e-5
"""How far latents, and what is made of them, may be from the reference's, both in float32."""
OF_SOUND = 5e-5
"""The same of a sound, not of its latents: a decoder of sound with random weights has sines that make errors larger.

It is rounding. Of the same latents the decoder of Stable Audio makes what diffusers' makes, to the bit, and either is
2.3e-6 to 2.5e-6 from what it makes in float64. Latents that are 5e-7 to 2e-6 apart become sounds ten times as far
apart, 5e-6 to 2.1e-5; decoded in float64, 4e-6 to 2.0e-5.
"""


@dataclass(frozen=True)
class Wish:
    """One request to compare: prompts and parameters, `output_type` left open; perhaps a picture, a sound or a video,
    frame by frame, to start from.

    Of a video that picture is the first frame, and `last` may be its last. `others` are further pictures that a model
    is shown. Where `mask` is white, and in the margins `pad`, the picture is drawn anew; `masks` are those of every
    frame of the video.
    """

    prompt: str
    negative: str | None
    params: DiffusionParams
    image: Image.Image | None = None
    last: Image.Image | None = None
    sound: Recording | None = None
    others: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None
    pad: tuple[int, int, int, int] | None = None
    video: tuple[Image.Image, ...] = ()
    masks: tuple[Image.Image, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        """All pictures, in order."""
        return [image for image in (self.image, self.last, *self.others) if image is not None]

    @property
    def asked(self) -> dict[str, object]:
        """The prompt as our engine takes it."""
        images = [picture_of(image) for image in self.images]
        pictures = {"images": images} if images else {}
        sounds = {} if self.sound is None else {"sounds": [self.sound]}
        videos = {"videos": [clip_of(self.video)]} if self.video else {}
        mask: dict[str, object] = {} if self.mask is None else {"mask": mask_of(self.mask)}
        mask = {"mask": clip_of(self.masks)} if self.masks else mask
        pad = {} if self.pad is None else {"pad": list(self.pad)}
        return {"prompt": self.prompt, "negative_prompt": self.negative, **pictures, **videos, **mask, **pad, **sounds}

    @property
    def filled(self) -> dict[str, Image.Image]:
        """The picture and its mask as a reference pipeline takes them, with the margins."""
        if self.image is None or (self.mask is None and self.pad is None):
            return {} if self.image is None else {"image": self.image}
        left, above, right, below = self.pad or (0, 0, 0, 0)
        around = ((above, below), (left, right))
        inside = np.zeros((self.image.height, self.image.width), np.uint8) if self.mask is None else np.array(self.mask)
        mask = Image.fromarray(np.pad(inside, around, constant_values=255))
        return {
            "image": Image.fromarray(np.pad(np.array(self.image), (*around, (0, 0)), mode="edge")),
            "mask_image": mask,
        }


def photo(width: int, height: int) -> Image.Image:
    """A picture in which no two pixels are alike by chance."""
    generator = torch.Generator().manual_seed(width * 1000 + height)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def film(width: int, height: int, frames: int) -> tuple[Image.Image, ...]:
    """A video in which no two frames are alike."""
    return tuple(photo(width, height + number).resize((width, height)) for number in range(frames))


def halves(width: int, height: int) -> Image.Image:
    """A mask: white on the right, black on the left, with a slope between and a hole."""
    row = np.clip((np.arange(width) / width - 0.35) * 600, 0, 255).astype(np.uint8)
    mask = np.tile(row, (height, 1))
    mask[height // 2 :, width // 2 : width * 3 // 4] = 0
    return Image.fromarray(mask)


def chord(rate: int, seconds: float, channels: int) -> Recording:
    """A sound of a few tones, in every channel others."""
    time = np.arange(round(rate * seconds)) / rate
    tones = [np.sin(time * (400 + 150 * index)) + np.sin(time * (70 + 70 * index)) for index in range(channels)]
    return recording_of(0.4 * np.stack(tones).astype(np.float32), rate)


def voice(rate: int, seconds: float) -> Recording:
    """A sound that is heard as somebody who speaks: a low voice with the formants of an open vowel, louder and softer
    four times a second.
    """
    time, pitch = np.arange(round(rate * seconds)) / rate, 120.0
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.05 * np.sin(6 * np.pi * time))) / rate
    sound = np.zeros_like(time)
    for overtone in range(1, 50):
        high = overtone * pitch
        loud = sum(1 / (1 + ((high - peak) / width) ** 2) for peak, width in ((700, 80), (1220, 90), (2600, 120)))
        sound += loud / (1 + high / 1000) * np.sin(overtone * phase)
    sound *= 0.5 + 0.5 * abs(np.sin(8 * np.pi * time))
    return recording_of((0.5 * sound / max(abs(sound).max(), 1e-6))[None].astype(np.float32), rate)


class Reference(Protocol):
    """(checkpoint, wishes, output type) -> what the reference gives for each wish alone, its networks in `dtype`."""

    def __call__(
        self, folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = ...
    ) -> list[Tensor]: ...


Lent = Callable[[Path, Wish], AbstractContextManager[Mapping[str, Any]]]
"""(checkpoint, wish) -> components that stand in for those that need torchvision, while sizes are those of the wish."""


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint and requests, at least three, that differ in prompt, size, steps, seed and guidance.

    `kind` tells the checkpoints of one architecture apart; a schedule needs `least_steps`; `sounds` is set where sound
    comes out; `unable` are schedulers that the reference cannot be given, and why. `long` are parameters with which
    every loop has a middle, where the wishes' own leave one a single step. `apart` is why `omnimuse parity` has nothing
    to compare with, in words of what it says (`tests/parity` gives the reference what it needs). `lent` is what the
    reference is given where it does not start without torchvision, which the tests do without.
    """

    arch: str
    build: Callable[[Path], Path]
    wishes: tuple[Wish, ...]
    reference: Reference
    kind: str = ""
    least_steps: int = 1
    unable: Mapping[str, str] = field(default_factory=dict)
    sounds: bool = False
    long: Mapping[str, int] = field(default_factory=dict)
    apart: str = ""
    lent: Lent | None = None

    @property
    def tolerance(self) -> float:
        """How far what is made may be from the reference's, in float32."""
        return OF_SOUND if self.sounds else TOLERANCE

    def far(self, found: Tensor, expected: Tensor) -> float:
        """How far `found` is from what the reference makes: pixels at most, of sound the norm of all, relatively."""
        apart = found - expected
        return float(apart.norm() / expected.norm() if self.sounds else apart.abs().max())

    @property
    def name(self) -> str:
        """What tests call it."""
        return f"{self.arch}-{self.kind}" if self.kind else self.arch


@dataclass(frozen=True)
class Writer:
    """A tiny checkpoint of a model that writes; `reference(folder, prompt, seed, choices)` gives the tokens expected.

    `prompts` are texts and conversations, at least three, one of them longer than what is read in one step; `choices`
    are fields of `GenerationParams`, the first of them greedy.
    """

    arch: str
    build: Callable[[Path], Path]
    prompts: tuple[Any, ...]
    choices: tuple[Mapping[str, Any], ...]
    reference: Callable[[Path, Any, int, Mapping[str, Any]], list[int]]
    kind: str = ""

    @property
    def name(self) -> str:
        """What tests call it."""
        return f"{self.arch}-{self.kind}" if self.kind else self.arch


@dataclass(frozen=True)
class Answerer:
    """A tiny checkpoint of a model that answers aloud: whether its sound comes `meanwhile`, before all is written."""

    arch: str
    build: Callable[[Path], Path]
    meanwhile: bool = True

    @property
    def name(self) -> str:
        """What tests call it."""
        return self.arch


@dataclass(frozen=True)
class Speaker:
    """A tiny checkpoint of a model that speaks; `wishes` are texts with fields of `SpeechParams` and a seed, one of a
    kind longer than what is read in one step, `sound` is one with whose voice they are said. `kept` gives for each the
    codes [Q, T] and the waveform [n] that the reference implementation makes.
    """

    arch: str
    build: Callable[[Path], Path]
    wishes: tuple[tuple[str, Mapping[str, Any], int], ...]
    kept: Callable[[], list[tuple[Tensor, Tensor]]]
    kind: str = ""
    sound: Recording | None = None

    @property
    def name(self) -> str:
        """What tests call it."""
        return f"{self.arch}-{self.kind}" if self.kind else self.arch


def drawn(pipe: Any, wish: Wish, output_type: str, **besides: Any) -> Tensor:
    """What a reference pipeline makes of a wish: a picture [3, H, W], or latents [C, h, w].

    It is given whatever it has an argument for, of the parameters that are set, and `besides`.
    """
    pipe.set_progress_bar_config(disable=True)
    takes = inspect.signature(pipe.__call__).parameters
    params = asdict(wish.params)
    asked = {"prompt": wish.prompt, "negative_prompt": wish.negative, **wish.filled, **params}
    asked |= wish.params.extra if isinstance(wish.params.extra, Mapping) else {}
    assert wish.params.seed is not None
    given = {name: value for name, value in asked.items() if name in takes and value is not None}
    given |= {"generator": torch.Generator().manual_seed(wish.params.seed), "output_type": output_type, **besides}
    picture = pipe(**given).images[0]
    if picture.ndim > 2:
        return picture
    height, width = wish.params.height, wish.params.width  # packed there, a picture's shape here
    return pipe._unpack_latents(picture[None], height, width, pipe.vae_scale_factor)[0]


def reference_of(
    text: Any, changing: Any = None, keeping: Any = None, absent: Sequence[str] = (), **besides: Any
) -> Reference:
    """By the pipeline class `text`, or of the same components by `changing` where a wish has a picture, by `keeping`
    where a part of that is drawn anew.

    `absent` are components that the checkpoint does not have; `besides` goes to every call.
    """

    def reference(
        folder: Path, wishes: Sequence[Wish], output_type: str, dtype: torch.dtype = torch.float32
    ) -> list[Tensor]:
        pipe = text.from_pretrained(folder, dtype=dtype, **dict.fromkeys(absent))
        kinds = [text if not wish.filled else changing if len(wish.filled) == 1 else keeping for wish in wishes]
        pipes = {kind: pipe if kind in (None, text) else kind.from_pipe(pipe, torch_dtype=dtype) for kind in set(kinds)}
        return [drawn(pipes[kind], wish, output_type, **besides) for kind, wish in zip(kinds, wishes, strict=True)]

    return reference


def of_picture(steps: int, guidance: float, height: int, width: int, seed: int, **extra: float) -> DiffusionParams:
    """Parameters of a picture."""
    return DiffusionParams(
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=height,
        width=width,
        seed=seed,
        extra=extra or None,
    )


def of_true_guidance(scale: float, steps: int, height: int, width: int, seed: int) -> DiffusionParams:
    """Parameters of a family that is guided by `true_cfg_scale` alone."""
    params = of_picture(steps, 0.0, height, width, seed)
    return replace(params, guidance_scale=None, true_cfg_scale=scale, max_sequence_length=64)


BY_SIZE = {"dpm++": "this reference hands over a shift by size, which the scheduler refuses"}
EULER = dict.fromkeys(["unipc", "dpm++"], "this reference hands over levels for Euler's method")
