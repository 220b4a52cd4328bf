"""Every registered pipeline with what the generated suites need: a tiny checkpoint, cheap requests, the reference.

`tests/invariants` and `tests/parity` run over `FAMILIES`; a test refuses a registered architecture without an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Recording
from omnimuse.media.picture import picture_of
from omnimuse.media.recording import recording_of


@dataclass(frozen=True)
class Wish:
    """One request to compare: prompts and parameters, `output_type` left open; perhaps a picture or a sound to start
    from.

    Of a video that picture is the first frame, and `last` may be its last. `others` are further pictures that a model
    is shown.
    """

    prompt: str
    negative: str | None
    params: DiffusionParams
    image: Image.Image | None = None
    last: Image.Image | None = None
    sound: Recording | None = None
    others: tuple[Image.Image, ...] = ()

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
        return {"prompt": self.prompt, "negative_prompt": self.negative, **pictures, **sounds}

    def started(self) -> dict[str, object]:
        """What a reference pipeline that changes pictures takes besides; empty for one that does not."""
        return {} if self.image is None else {"image": self.image, "strength": self.params.strength}


def photo(width: int, height: int) -> Image.Image:
    """A picture in which no two pixels are alike by chance."""
    generator = torch.Generator().manual_seed(width * 1000 + height)
    small = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def chord(rate: int, seconds: float, channels: int) -> Recording:
    """A sound of a few tones, in every channel others."""
    time = np.arange(round(rate * seconds)) / rate
    tones = [np.sin(time * (400 + 150 * index)) + np.sin(time * (70 + 70 * index)) for index in range(channels)]
    return recording_of(0.4 * np.stack(tones).astype(np.float32), rate)


Reference = Callable[[Path, list[Wish], str], list[Tensor]]
"""(checkpoint, wishes, output type) -> what the reference gives for each wish alone, float32."""


@dataclass(frozen=True)
class Family:
    """A tiny checkpoint and requests, at least three, that differ in prompt, size, steps, seed and guidance.

    `kind` tells the checkpoints of one architecture apart; a schedule needs `least_steps`; `sounds` is set where sound
    comes out; `unable` are schedulers that the reference cannot be given, and why.
    """

    arch: str
    build: Callable[[Path], Path]
    wishes: tuple[Wish, ...]
    reference: Reference
    kind: str = ""
    least_steps: int = 1
    unable: Mapping[str, str] = field(default_factory=dict)
    sounds: bool = False

    def far(self, found: Tensor, expected: Tensor) -> float:
        """How far `found` is from what the reference makes: pixels at most, of sound the norm of all, relatively."""
        apart = found - expected
        return float(apart.norm() / expected.norm() if self.sounds else apart.abs().max())

    @property
    def name(self) -> str:
        """What tests call it."""
        return f"{self.arch}-{self.kind}" if self.kind else self.arch


def _z_image(folder: Path) -> Path:
    from tests.checkpoints import z_image

    return z_image.build(folder)


def _z_image_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from diffusers import ZImageImg2ImgPipeline, ZImagePipeline

    text = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    changing = ZImageImg2ImgPipeline(**text.components)
    results = []
    for wish in wishes:
        pipe = text if wish.image is None else changing
        pipe.set_progress_bar_config(disable=True)
        p, extra = wish.params, dict(wish.params.extra or {})  # type: ignore[call-overload]
        assert p.seed is not None
        picture = pipe(
            wish.prompt,
            negative_prompt=wish.negative,
            height=p.height,
            width=p.width,
            num_inference_steps=p.num_inference_steps,
            guidance_scale=p.guidance_scale,
            generator=torch.Generator().manual_seed(p.seed),
            output_type=output_type,
            **extra,
            **wish.started(),
        ).images[0]
        results.append(picture)
    return results


def _flux(folder: Path) -> Path:
    from tests.checkpoints import flux

    return flux.build(folder)


def _flux_schnell(folder: Path) -> Path:
    from tests.checkpoints import flux

    return flux.build(folder, schnell=True)


FLUX_PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")


def _flux_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from diffusers import FluxImg2ImgPipeline, FluxPipeline

    text = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    changing = FluxImg2ImgPipeline(**{name: text.components[name] for name in FLUX_PARTS})
    results = []
    for wish in wishes:
        pipe = text if wish.image is None else changing
        pipe.set_progress_bar_config(disable=True)
        p = wish.params
        assert p.seed is not None
        picture = pipe(
            wish.prompt,
            negative_prompt=wish.negative,
            true_cfg_scale=1.0 if p.true_cfg_scale is None else p.true_cfg_scale,
            height=p.height,
            width=p.width,
            num_inference_steps=p.num_inference_steps,
            guidance_scale=3.5 if p.guidance_scale is None else p.guidance_scale,
            generator=torch.Generator().manual_seed(p.seed),
            output_type=output_type,
            max_sequence_length=p.max_sequence_length,
            **wish.started(),
        ).images[0]
        if output_type == "latent":  # packed there, a picture's shape here
            picture = pipe._unpack_latents(picture[None], p.height, p.width, pipe.vae_scale_factor)[0]  # [C, h, w]
        results.append(picture)
    return results


def _ovis_image(folder: Path) -> Path:
    from tests.checkpoints import ovis_image

    return ovis_image.build(folder)


def _ovis_image_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from diffusers import OvisImagePipeline

    pipe = OvisImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    results = []
    for wish in wishes:
        p = wish.params
        assert p.seed is not None
        picture = pipe(
            wish.prompt,
            negative_prompt=wish.negative or "",
            height=p.height,
            width=p.width,
            num_inference_steps=p.num_inference_steps,
            guidance_scale=p.guidance_scale,
            generator=torch.Generator().manual_seed(p.seed),
            output_type=output_type,
            max_sequence_length=p.max_sequence_length,
        ).images[0]
        if output_type == "latent":  # packed there, a picture's shape here
            picture = pipe._unpack_latents(picture[None], p.height, p.width, pipe.vae_scale_factor)[0]  # [C, h, w]
        results.append(picture)
    return results


def _qwen_image(folder: Path) -> Path:
    from tests.checkpoints import qwen_image

    return qwen_image.build(folder)


def _qwen_image_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from tests.checkpoints import qwen_image

    return qwen_image.reference(folder, wishes, output_type)


def _true(scale: float, steps: int, height: int, width: int, seed: int) -> DiffusionParams:
    """Parameters of a family that is guided by `true_cfg_scale` alone."""
    params = _params(steps, 0.0, height, width, seed)
    return replace(params, guidance_scale=None, true_cfg_scale=scale, max_sequence_length=64)


def _longcat_image(folder: Path) -> Path:
    from tests.checkpoints import longcat_image

    return longcat_image.build(folder)


def _longcat_image_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from diffusers import LongCatImagePipeline

    pipe = LongCatImagePipeline.from_pretrained(folder, text_processor=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    results = []
    for wish in wishes:
        p = wish.params
        assert p.seed is not None
        picture = pipe(
            wish.prompt,
            negative_prompt=wish.negative,
            height=p.height,
            width=p.width,
            num_inference_steps=p.num_inference_steps,
            guidance_scale=p.guidance_scale,
            generator=torch.Generator().manual_seed(p.seed),
            output_type=output_type,
            enable_prompt_rewrite=False,
            **dict(p.extra or {}),  # type: ignore[call-overload]
        ).images[0]
        if output_type == "latent":  # packed there, a picture's shape here
            picture = pipe._unpack_latents(picture[None], p.height, p.width, pipe.vae_scale_factor)[0]  # [C, h, w]
        results.append(picture)
    return results


def _flux_kontext(folder: Path) -> Path:
    from tests.checkpoints import flux

    return flux.build(folder, arch="FluxKontextPipeline")


def flux_kontext_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    """What FluxKontextPipeline makes of every wish, in exactly the size that was asked for."""
    from diffusers import FluxKontextPipeline

    pipe = FluxKontextPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    results = []
    for wish in wishes:
        p = wish.params
        assert p.seed is not None and p.height and p.width
        picture = pipe(
            image=wish.image,
            prompt=wish.prompt,
            negative_prompt=wish.negative,
            true_cfg_scale=1.0 if p.true_cfg_scale is None else p.true_cfg_scale,
            height=p.height,
            width=p.width,
            max_area=p.height * p.width,
            num_inference_steps=p.num_inference_steps,
            guidance_scale=p.guidance_scale,
            generator=torch.Generator().manual_seed(p.seed),
            output_type=output_type,
            max_sequence_length=p.max_sequence_length,
            _auto_resize=bool(dict(p.extra or {}).get("auto_resize", True)),  # type: ignore[call-overload]
        ).images[0]
        if output_type == "latent":  # packed there, a picture's shape here
            picture = pipe._unpack_latents(picture[None], p.height, p.width, pipe.vae_scale_factor)[0]  # [C, h, w]
        results.append(picture)
    return results


def _flux2(folder: Path, **kind: bool) -> Path:
    from tests.checkpoints import flux2

    return flux2.build(folder, **kind)


def _flux2_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from tests.checkpoints import flux2

    return flux2.reference(folder, wishes, output_type)


def _flux2_dev(folder: Path) -> Path:
    from tests.checkpoints import flux2

    return flux2.build_dev(folder)


def _flux2_dev_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from tests.checkpoints import flux2

    return flux2.reference_dev(folder, wishes, output_type)


def _wan(kind: str, folder: Path) -> Path:
    from tests.checkpoints import wan

    return wan.build(folder, kind)


def _wan_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from tests.checkpoints import wan

    return wan.reference(folder, wishes, output_type)


def _stable_audio(folder: Path) -> Path:
    from tests.checkpoints import stable_audio

    return stable_audio.build(folder)


def _stable_audio_reference(folder: Path, wishes: list[Wish], output_type: str) -> list[Tensor]:
    from tests.checkpoints import stable_audio

    return stable_audio.reference(folder, wishes, output_type)


def _sound(steps: int, guidance: float, seconds: float, seed: int, **extra: float) -> DiffusionParams:
    return DiffusionParams(
        num_inference_steps=steps, guidance_scale=guidance, seconds=seconds, seed=seed, extra=extra or None
    )


def _wan_family(kind: str, side: int, second: float | None = None) -> Family:
    """Videos of 5, 1 and 9 frames; sides are multiples of `side`; `second` is the scale of the second expert."""
    clips = (
        _clip(4, 4.0, 5, side * 2, side * 2),
        _clip(3, 1.0, 1, side * 2, side * 3),
        _clip(5, 6.0, 9, side, side * 2),
    )
    first = Wish("a star", "grey", replace(_clip(4, 3.0, 9, side * 2, side), seed=10), photo(50, 70))
    return Family(
        arch="WanPipeline",
        kind=kind,
        build=partial(_wan, kind),
        wishes=(
            Wish(
                "a red circle &amp; two   green stars",
                "blurry, grey",
                replace(clips[0], seed=7, guidance_scale_2=second),
            ),
            Wish("a story about Them: it goes on and on " * 8, None, replace(clips[1], seed=8, max_sequence_length=24)),
            Wish("a star", None, replace(clips[2], seed=9)),
            *([first] if kind == "5B" else []),
        ),
        reference=_wan_reference,
    )


def wan_pictures(kind: str, tokens: int, second: float | None = None, *, both: bool = False) -> Family:
    """Videos of 5 and 9 frames that begin with a picture, `both`: and may end with another. `tokens` of text."""
    clips = [
        replace(_clip(steps, guidance, frames, height, width), max_sequence_length=tokens)
        for steps, guidance, frames, height, width in ((4, 4.0, 5, 32, 48), (3, 1.0, 9, 32, 32), (5, 6.0, 5, 48, 32))
    ]
    last = photo(40, 40) if both else None
    return Family(
        arch="WanPipeline",
        kind=kind,
        build=partial(_wan, kind),
        wishes=(
            Wish("two green stars", "grey", replace(clips[0], seed=7, guidance_scale_2=second), photo(70, 50), last),
            Wish("a story about Them: it goes on " * 8, None, replace(clips[1], seed=8), photo(31, 64), last),
            Wish("a star", None, replace(clips[2], seed=9), photo(33, 33), last if kind == "2.1-FLF2V" else None),
        ),
        reference=_wan_reference,
    )


def _clip(steps: int, guidance: float, frames: int, height: int, width: int) -> DiffusionParams:
    params = _params(steps, guidance, height, width, 0)
    return replace(params, num_frames=frames, max_sequence_length=32)


def _params(steps: int, guidance: float, height: int, width: int, seed: int, **extra: float) -> DiffusionParams:
    return DiffusionParams(
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=height,
        width=width,
        seed=seed,
        extra=extra or None,
    )


BY_SIZE = {"dpm++": "this reference hands over a shift by size, which the scheduler refuses"}
EULER = dict.fromkeys(["unipc", "dpm++"], "this reference hands over levels for Euler's method")
_KONTEXT = replace(_params(4, 3.5, 64, 64, 0), max_sequence_length=24, extra={"auto_resize": False})

_KLEIN = DiffusionParams(num_inference_steps=4, height=64, width=64, max_sequence_length=24)

_SCHNELL = DiffusionParams(num_inference_steps=3, height=64, width=64, max_sequence_length=24)

FAMILIES = (
    Family(
        arch="ZImagePipeline",
        build=_z_image,
        wishes=(
            Wish("a red circle", "blurry, grey", _params(4, 4.0, 64, 64, 7)),
            Wish("two squares and a long story about them " * 6, None, _params(3, 0.0, 96, 64, 8)),
            Wish("a star", None, _params(5, 5.0, 32, 48, 9, cfg_normalization=0.9, cfg_truncation=0.6)),
            Wish("a cross", "grey", replace(_params(5, 2.0, 48, 64, 10), strength=0.7), photo(64, 48)),
        ),
        reference=_z_image_reference,
        unable=EULER,
    ),
    Family(
        arch="FluxPipeline",
        kind="dev",
        build=_flux,
        wishes=(
            Wish("a red circle", None, replace(_params(4, 3.5, 64, 64, 7), max_sequence_length=24)),
            Wish(
                "Two squares, and a long story about them. " * 12,
                "blurry, grey",
                replace(_params(3, 2.0, 96, 64, 8), true_cfg_scale=3.0, max_sequence_length=32),
            ),
            Wish("a star", "", replace(_params(5, 5.0, 32, 48, 9), true_cfg_scale=1.5, max_sequence_length=24)),
            Wish(
                "a cross",
                "grey",
                replace(_params(6, 3.0, 48, 64, 10), true_cfg_scale=2.0, strength=0.5, max_sequence_length=24),
                photo(50, 70),
            ),
        ),
        reference=_flux_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="FluxPipeline",
        kind="schnell",
        build=_flux_schnell,
        wishes=(
            Wish("a red circle", "grey", replace(_SCHNELL, true_cfg_scale=4.0, seed=7)),
            Wish("two squares and a star", None, replace(_SCHNELL, num_inference_steps=4, height=96, seed=8)),
            Wish("a star", None, replace(_SCHNELL, width=32, true_cfg_scale=1.0, guidance_scale=0.0, seed=9)),
        ),
        reference=_flux_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="OvisImagePipeline",
        build=_ovis_image,
        wishes=(
            Wish("a red circle", "blurry, grey", replace(_params(4, 4.0, 64, 64, 7), max_sequence_length=24)),
            Wish(
                "two squares and a long story " * 9, None, replace(_params(3, 1.0, 96, 64, 8), max_sequence_length=32)
            ),
            Wish("a star", None, replace(_params(5, 5.0, 32, 48, 9), max_sequence_length=24)),
        ),
        reference=_ovis_image_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="QwenImagePipeline",
        build=_qwen_image,
        wishes=(
            Wish("a red circle", "blurry, grey", _true(4.0, 4, 64, 64, 7)),
            Wish("Two squares, and a long story about them. " * 9, None, _true(2.5, 3, 96, 64, 8)),
            Wish("a star", None, replace(_true(1.0, 5, 32, 48, 9), max_sequence_length=1024)),
            Wish("a cross", "", replace(_true(3.0, 6, 48, 64, 10), strength=0.5), photo(50, 70)),
        ),
        reference=_qwen_image_reference,
        least_steps=2,
        unable=EULER,
    ),
    Family(
        arch="LongCatImagePipeline",
        build=_longcat_image,
        wishes=(
            Wish("a red 'star' that isn't blue", "blurry, grey", _params(4, 4.0, 64, 64, 7)),
            Wish("two squares and a long story " * 99, None, _params(3, 1.0, 96, 64, 8)),
            Wish("a star", None, _params(5, 5.0, 32, 48, 9, cfg_renorm_min=0.9)),
            Wish('a “cross”, "and a heart"', "grey", _params(4, 3.0, 48, 32, 10, enable_cfg_renorm=False)),
        ),
        reference=_longcat_image_reference,
        unable=EULER,
    ),
    Family(
        arch="FluxKontextPipeline",
        build=_flux_kontext,
        wishes=(
            Wish("make it red", None, replace(_KONTEXT, seed=7), photo(70, 50)),
            Wish(
                "Two squares, and a long story about them. " * 12,
                "blurry, grey",
                replace(_KONTEXT, num_inference_steps=3, height=96, true_cfg_scale=3.0, guidance_scale=2.0, seed=8),
                photo(40, 100),
            ),
            Wish("a star", "", replace(_KONTEXT, num_inference_steps=5, width=48, true_cfg_scale=1.5, seed=9)),
        ),
        reference=flux_kontext_reference,
        unable=EULER,
    ),
    Family(
        arch="Flux2KleinPipeline",
        kind="distilled",
        build=partial(_flux2, distilled=True),
        wishes=(
            Wish("a red circle", None, replace(_KLEIN, seed=7)),
            Wish("a star", None, replace(_KLEIN, num_inference_steps=3, width=80, seed=8), photo(70, 100)),
            Wish(
                "two squares and a long story about them " * 6,
                None,
                replace(_KLEIN, height=96, max_sequence_length=40, guidance_scale=1.0, seed=9),
                photo(64, 90),
                others=(photo(1200, 1000), photo(130, 65)),
            ),
        ),
        reference=_flux2_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="Flux2KleinPipeline",
        kind="base",
        build=_flux2,
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
        ),
        reference=_flux2_reference,
        unable=BY_SIZE,
    ),
    Family(
        arch="Flux2Pipeline",
        build=_flux2_dev,
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
        reference=_flux2_dev_reference,
        unable=BY_SIZE,
    ),
    _wan_family("2.1", 16),
    _wan_family("A14B", 16, second=2.0),
    _wan_family("5B", 32),
    wan_pictures("2.1-I2V", 512),
    wan_pictures("A14B-I2V", 32, second=2.0, both=True),
    Family(
        arch="StableAudioPipeline",
        build=_stable_audio,
        wishes=(
            Wish("a red circle", "blurry, grey", _sound(4, 4.0, 2.4, 7)),
            Wish("two green stars above the heart", None, _sound(3, 7.0, 1.0, 8, start=0.2643)),
            Wish("a story about Them: it goes on and on " * 4, None, _sound(5, 1.0, 3.12, 9)),
            Wish("a star", "", replace(_sound(6, 3.0, 0.16, 10, start=2.4), max_sequence_length=20)),
            Wish("a cross", "grey", replace(_sound(4, 2.0, 0.4, 11), strength=1.0), sound=chord(1000, 1.6, 2)),
        ),
        reference=_stable_audio_reference,
        sounds=True,
    ),
)
