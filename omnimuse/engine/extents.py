"""Along what a request may be smaller, so that two small ones of its kind can be tried (`foretelling.py`).

What is drawn has sides, a sound has seconds, and what speaks says frames. An extent tells how large a request is in
these, which two smaller ones are tried for it, and what a request that does not fit is told to ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from math import ceil, prod
from typing import NamedTuple

from omnimuse.core.caches import OFF, CacheConfig, cache_named
from omnimuse.core.params import AnswerParams, DiffusionParams, SpeechParams, TokenParams
from omnimuse.core.request import Request
from omnimuse.core.spec import Limits, Size
from omnimuse.engine.needs import NOTHING, Need
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.worker.room import nearest_size

SIDES = (256, 512)
"""Of what is drawn small, about; as legal sides go."""
PIXEL, FRAME = 8192, 512
"""Bytes that a pixel which is decoded takes, and one of each frame that is denoised and kept, both guessed high:
published decoders of pictures take 4000 to 5000 in float32, networks of videos 250 in bfloat16."""
SOUND, SAMPLE, SAID = 4 * 2**30, 64, 2**20
"""Bytes that decoding a piece of a sound takes, each sample of it, and each frame that is said, guessed high."""
SECONDS = 64.0
"""The longest sound of a model that does not say."""
SPOKEN = (32, 64)
"""Frames of what is spoken small: more than are decoded at once."""

Fits = Callable[[Request], bool]


class Nearest(NamedTuple):
    """What to ask for instead, by which parameter, and how large that is, 0 if there is nothing."""

    hint: str
    param: str | None
    size: int = 0


class Extent:
    """One that nothing is smaller along: nothing is tried. What `limits` allow of a `pipeline` is known to all, and the
    step cache of those that choose none, which is `usual`.
    """

    def __init__(self, limits: Limits, pipeline: Pipeline, usual: CacheConfig = OFF) -> None:
        self.limits, self.pipeline, self.usual = limits, pipeline, usual
        loops = (stage for stage in pipeline.stages if isinstance(stage, Denoise))
        self._networks = max((len(loop.networks) for loop in loops), default=1)

    def of(self, request: Request) -> int:
        """How large `request` is."""
        return 0

    def smaller(self, request: Request) -> tuple[Request, Request] | None:
        """The two that are tried for it, the smaller one first; None where it is not larger than they would be."""
        return None

    def guess(self, request: Request) -> Need:
        """What one output of it needs, guessed far too high."""
        return NOTHING

    def tile(self, request: Request) -> Size | None:
        """The pixels of a side of the tiles in which it is decoded, and from one to the next; None: as a whole."""
        return None

    def cache(self, request: Request) -> CacheConfig:
        """Its step cache; that of what is evaluated once is none."""
        asked = request.params.cache
        return OFF if request.evaluations == 1 else self.usual if asked is None else cache_named(asked)

    def cached(self, request: Request) -> Hashable:
        """What of its step cache says how much is remembered."""
        choice = self.cache(request)
        return (choice.kind, choice.order, min(self.filling(choice), request.evaluations)) if choice.filling else None

    def filling(self, choice: CacheConfig) -> int:
        """The steps in which one of the networks, whoever takes which, has that cache remember what it will."""
        return self._networks * (choice.filling - 1) + 1 if choice.filling else 1

    def ways(self, request: Request) -> list[Request]:
        """It as it can be made, what takes most first."""
        return [request]

    def told(self, request: Request) -> str:
        """What it asks for, in words."""
        return "this request"

    def nearest(self, request: Request, fits: Fits) -> Nearest:
        """What to ask for instead."""
        return Nearest("ask for less", None)

    def _few_steps(self, request: Request, params: DiffusionParams) -> Request:
        """`request` with these parameters, in as few steps as there can be and as have its step cache remember what it
        will, and nothing told of it meanwhile. It wears nothing: what is worn is counted by itself, and may be damaged.
        """
        choice = self.cache(request)
        least = max(self.limits.fixed.num_inference_steps or self.limits.min_steps, self.filling(choice))
        steps = min(params.num_inference_steps or 1, int(-(-least // (params.strength or 1.0))))
        cache = str(choice.computed(steps)) if self.usual.filling or choice.filling else None
        params = replace(params, num_inference_steps=steps, num_outputs_per_prompt=1, cache=cache, loras=None)
        pictures = [(picture.width, picture.height) for picture in request.images]
        extra = request.extra.brief(params, pictures, self.limits.size_multiple)
        return replace(request, params=params, extra=extra, previews=0, chunks=False, blocks=False, tried=True)

    def _with_cache(self, bytes_: int, request: Request) -> int:
        """Of what is guessed that all steps take, as much with what its step cache remembers, guessed high, too."""
        return bytes_ * (2 + self.cache(request).filling) // 2


class Area(Extent):
    """Pixels. Where frames are decoded in tiles, small ones are, too, whose tiles are as large."""

    def __init__(self, limits: Limits, pipeline: Pipeline, usual: CacheConfig = OFF) -> None:
        super().__init__(limits, pipeline, usual)
        self._free = limits.fixed.width is None and not {"width", "height"} & set(limits.refuses)

    def of(self, request: Request) -> int:
        p = request.params
        return (p.width or 0) * (p.height or 0)

    def tile(self, request: Request) -> Size | None:
        found = (stage.tiled(self.pipeline.ctx, request) for stage in self.pipeline.stages)
        return next((tile for tile in found if tile), None)

    def smaller(self, request: Request) -> tuple[Request, Request] | None:
        step, tile = self.limits.size_multiple, self.tile(request)
        low, high = (max(1, round(side / step)) * step for side in SIDES)
        sizes = (low, low), (high, high)
        if tile:
            one = tile[0] // step * step + step
            two = one + -(-tile[1] // step) * step
            if frames(request) > 1:  # hardly more than one, and beside it one more: both are cut to the same sizes
                sizes = self._cut_alike(request, tile) or ((one, one), (two, one))
            else:
                # As those that are decoded as a whole, but that the larger one has several, so that all else is on one
                # line; and two whole ones above each other, as the first waits for the other.
                high = max(high, one)
                most = (self.of(request) - 1) // high // step * step
                sizes = (low, low), (high, max(high, min(two, most)))
        fewer, more = (prod(size) for size in sizes)
        if not (self._free and max(sizes[1]) <= self.limits.max_side and fewer < more < self.of(request)):
            return None
        params = [replace(request.params, width=width, height=height) for width, height in sizes]
        tiled = replace(request, tile=tile[0] if tile else 0)
        return self._few_steps(tiled, params[0]), self._few_steps(tiled, params[1])

    def _cut_alike(self, request: Request, tile: Size) -> tuple[Size, Size] | None:
        """Two sizes whose last tiles are as narrow as those of `request`, where there are some that are smaller: a
        narrow piece of frames may be convolved in another way, and then takes more than a wide one. Pictures are
        convolved in two dimensions, in one way.
        """
        side, stride = tile
        width, height = (each if each <= side else side + (each - side - 1) % stride + 1 for each in request.size)
        more = (width + stride, height) if request.size[0] > side else (width, height + stride)
        legal = all(each % self.limits.size_multiple == 0 for each in (width, height, *more))
        return ((width, height), more) if legal and prod(more) < self.of(request) else None

    def ways(self, request: Request) -> list[Request]:
        if not self.of(request) or request.params.output_type == "latent":
            return [request]
        side, _ = self.tile(request) or (max(request.size), 0)
        tiles = [tiling.pixels for tiling in self.pipeline.ctx.tilings if tiling.pixels < side]
        smaller = [replace(request, tile=pixels) for pixels in tiles]
        return [request, *(each for each in smaller if self.tile(each))]

    def guess(self, request: Request) -> Need:
        pixels, many, (tile, _) = self.of(request), frames(request), self.tile(request) or (0, 0)
        together = many if any(stage.whole_clips for stage in self.pipeline.stages) else 1
        beside = self._with_cache(pixels * many * FRAME, request)
        return Need(beside, min(pixels, tile**2 or pixels) * together * PIXEL)

    def told(self, request: Request) -> str:
        p = request.params
        if not self.of(request):
            return super().told(request)
        return f"{p.width}x{p.height}" + (f" with {p.num_frames} frames" if (p.num_frames or 1) > 1 else "")

    def nearest(self, request: Request, fits: Fits) -> Nearest:
        def with_size(size: tuple[int, int]) -> bool:
            return fits(replace(request, params=replace(request.params, width=size[0], height=size[1])))

        if not self.of(request):
            return super().nearest(request, fits)
        if near := nearest_size(request.size, self.limits.size_multiple, with_size):
            return Nearest(f"the nearest size that may fit is {near[0]}x{near[1]}", "height", prod(near))
        if frames(request) > 1:
            return Nearest("ask for fewer frames", "num_frames")
        return Nearest("no size of it fits", "height")


class Length(Extent):
    """Samples of a sound that is drawn."""

    def of(self, request: Request) -> int:
        assert self.limits.sound is not None
        return round((request.params.seconds or 0.0) * self.limits.sound.rate)

    def smaller(self, request: Request) -> tuple[Request, Request] | None:
        assert self.limits.sound is not None
        most = self.limits.sound.seconds or SECONDS
        params = [replace(request.params, seconds=most / part) for part in (8, 4)]
        small, large = (self._few_steps(request, each) for each in params)
        return (small, large) if self.of(request) > self.of(large) else None

    def guess(self, request: Request) -> Need:
        return Need(self._with_cache(self.of(request) * SAMPLE, request), SOUND)

    def told(self, request: Request) -> str:
        return f"a sound of {request.params.seconds:g} seconds"

    def nearest(self, request: Request, fits: Fits) -> Nearest:
        def with_length(tenths: int) -> bool:
            return fits(replace(request, params=replace(request.params, seconds=tenths / 10)))

        tenths = _most(ceil((request.params.seconds or 0.0) * 10), with_length)
        near = f"the nearest length that may fit is {tenths / 10:g} seconds" if tenths else "no length of it fits"
        return Nearest(near, "seconds", tenths)


class Written(Extent):
    """Tokens that are written, as many as are asked for. Nothing is tried: what is remembered of them is known."""

    nothing = "ask for less"
    """What is told where no number of them fits."""

    def of(self, request: Request) -> int:
        extra = request.extra
        assert isinstance(extra, TokenParams)
        return extra.max_tokens or extra.min_tokens

    def nearest(self, request: Request, fits: Fits) -> Nearest:
        most = _most(self.of(request), lambda count: fits(_saying(request, count)))
        hint = f"the most tokens that may fit are {most}" if most else self.nothing
        return Nearest(hint, "max_tokens", most)


class Spoken(Written):
    """Frames of what is spoken: those that are asked for, or have to be made. Of an answer in text alone nothing is
    tried, as of all that is written.
    """

    nothing = "no length of it fits"

    def smaller(self, request: Request) -> tuple[Request, Request] | None:
        if _is_text(request) or self.of(request) <= SPOKEN[1]:
            return None
        small, large = (self._few_steps(_saying(request, count), request.params) for count in SPOKEN)
        return small, large

    def guess(self, request: Request) -> Need:
        return NOTHING if _is_text(request) else Need(self.of(request) * SAID, SOUND)


def frames(request: Request) -> int:
    """Those of a video; one of a picture."""
    return request.params.num_frames or 1


def extent_of(limits: Limits, pipeline: Pipeline, usual: CacheConfig) -> Extent:
    """That of the requests which a pipeline takes."""
    spec = pipeline.spec
    if issubclass(spec.extra, SpeechParams | AnswerParams):
        return Spoken(limits, pipeline, usual)
    if spec.medium == "text" and not limits.draws:
        return Written(limits, pipeline, usual)
    if limits.draws:
        return Extent(limits, pipeline, usual)  # whether it does, nobody knows before
    return Length(limits, pipeline, usual) if spec.medium == "audio" and limits.sound else Area(limits, pipeline, usual)


def _is_text(request: Request) -> bool:
    """Whether it is answered in text alone."""
    return isinstance(request.extra, AnswerParams) and not request.extra.aloud


def _saying(request: Request, frames: int) -> Request:
    """`request` for so many frames, neither more nor fewer where it can say so."""
    extra = request.extra
    assert isinstance(extra, TokenParams)
    extra = replace(extra, max_tokens=frames, min_tokens=frames)
    if isinstance(extra, AnswerParams):
        extra = replace(extra, voice_tokens=frames)
    return replace(request, extra=extra)


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The most, of less than `count`, that fits; 0 if nothing does. What is less takes less."""
    low = 0
    while low + 1 < count:
        middle = (low + count) // 2
        low, count = (middle, count) if fits(middle) else (low, middle)
    return low
