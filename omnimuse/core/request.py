"""A request: what a person asked for, checked and completed before any work.

`make_request` is the only door: it refuses what the model cannot honour and fills in the model's defaults. The Python
API, the command line and the server all come through it. No torch here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omnimuse.core.amounts import told_bytes
from omnimuse.core.ask import MAX_STEPS
from omnimuse.core.ask import Ask as Ask
from omnimuse.core.bounds import is_text, real, whole
from omnimuse.core.caches import OFF, CacheConfig, Fits, asked_for
from omnimuse.core.calls import begun_of, tools_of
from omnimuse.core.deadlines import Within, classes
from omnimuse.core.errors import RequestError
from omnimuse.core.evaluations import evaluations_beyond
from omnimuse.core.flow import MAX_SHIFT, SCHEDULERS, is_flow, scheduler_named
from omnimuse.core.given import Given, given_of
from omnimuse.core.guidance import ONLY_POSITIVE
from omnimuse.core.loras import Lora, loras_of
from omnimuse.core.machine import memory as machine_memory
from omnimuse.core.messages import (
    MAX_WRITTEN,
    SAID,
    Talk,
    check_begun,
    check_length,
    check_shown,
    messages_of,
    tokens_of,
)
from omnimuse.core.names import meant
from omnimuse.core.params import (
    WORK,
    DiffusionParams,
    FamilyParams,
    SoundParams,
    check_family_params,
    family_params,
    objected,
)
from omnimuse.core.sources import Clip as Clip
from omnimuse.core.sources import Picture as Picture
from omnimuse.core.sources import Recording as Recording
from omnimuse.core.sources import Region as Region
from omnimuse.core.spec import Configs, Limits, Size, Spec, Variant
from omnimuse.core.speech import check_speech

MAX_SEED = 2**64 - 1
MAX_OUTPUTS = 64
MAX_PROMPT = 32_000
PIXEL_BYTES = 24
"""What a pixel of a result takes at the least: three float32 numbers, twice, while it is handed over."""
SAMPLE_BYTES = 12
"""What a sample of sound takes at the least: a float32 number, twice, and a whole one in a file."""
MAX_SECONDS = 24 * 3600.0
"""Of a sound, for a model that knows no bound of its own."""
ALWAYS = frozenset(
    {"num_inference_steps", "height", "width", "seed", "num_outputs_per_prompt", "max_sequence_length", "output_type"}
)
"""Parameters that every family honours."""
SCHEDULE = frozenset({"flow_shift", "scheduler"})
"""Parameters that every model of flow matching honours."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """How a request is made: in tiles of `tile` pixels (0: as usual), `tried` to see what it takes, and the bytes that
    one output `needs` beside the weights, as small ones foretold it before it began (0: none did)."""

    tile: int = 0
    tried: bool = False
    needs: int = 0


@dataclass(frozen=True)
class Request(Talk, Given, Drawn):
    """What a person asked for; every parameter is resolved. `deadline` is seconds on the engine's clock.

    `times`: it is wanted within so many times what it takes alone, unknown when it came. `branches`: those that some
    step evaluates; a scheduler may want `more`.
    """

    id: str
    prompt: str
    negative_prompt: str | None
    params: DiffusionParams
    extra: FamilyParams
    priority: int = 0
    deadline: float | None = None
    tenant: str = ""
    previews: int = 0
    chunks: bool = False
    blocks: bool = False
    branches: tuple[str, ...] = ONLY_POSITIVE
    more: int = 0
    times: float | None = None

    @property
    def size(self) -> Size:
        """Width and height of what is made, if that can be seen."""
        assert self.params.width is not None and self.params.height is not None
        return self.params.width, self.params.height

    @property
    def outputs(self) -> int:
        """How many outputs (states) this request makes."""
        return int(self.params.num_outputs_per_prompt or 1)

    @property
    def steps(self) -> int:
        """The denoising steps that each output takes."""
        return (self.params.num_inference_steps or 1) - self.skipped_steps

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for each branch of an output; so many steps are told of while it works."""
        return self.steps + self.more

    @property
    def skipped_steps(self) -> int:
        """How many of the first steps are left out, because what came stands in for what they would draw.

        The reference rounds them down for pictures and sounds; for a video, those that it draws.
        """
        steps, strength = self.params.num_inference_steps or 0, self.params.strength
        if strength is None:
            return 0
        return steps - int(steps * strength) if self.videos else int(max(steps - min(steps * strength, steps), 0))

    def promised(self, alone: float | None, now: float) -> Request:
        """This request with its deadline, if that depends on the seconds that it takes `alone` and they are known."""
        if self.times is None or alone is None:
            return self
        return replace(self, deadline=now + self.times * alone, times=None)

    def seed(self, output: int) -> int:
        """The seed of output number `output`."""
        assert self.params.seed is not None
        return self.params.seed + output


@dataclass(frozen=True)
class Door:
    """What a loaded model lets in: its spec, its limits, its defaults, the bytes of memory there are, what the
    checkpoint's scheduler is configured to, and what step caches know of it. `adapters` are the files
    of those that may be worn, by name; None: any. `worn` are those of requests that do not say what they wear.
    `deadlines` are the classes that a request may name as its deadline. `cache` is the step cache of those that choose
    none.
    """

    spec: Spec
    limits: Limits
    defaults: DiffusionParams
    memory: int = field(default_factory=machine_memory)
    scheduler: Mapping[str, object] = field(default_factory=dict)
    fits: Fits = Fits()
    adapters: Mapping[str, str] | None = None
    worn: Sequence[Lora] = ()
    deadlines: Mapping[str, Within] = field(default_factory=lambda: classes({}))
    cache: CacheConfig = OFF

    @staticmethod
    def of(spec: Spec, configs: Configs, variant: str | Variant) -> Door:
        """The door of one checkpoint: the defaults are those of its variant, or of an id's, where its configurations
        name no others, and are lowered to what it can do.
        """
        limits = spec.limits(configs)
        flow = is_flow(scheduler := configs.get("scheduler", {})) and not spec.library
        limits = replace(limits, min_steps=max(limits.min_steps, _least_steps(configs)), flow=flow)
        own = (spec.variant(variant) if isinstance(variant, str) else variant).defaults
        defaults = spec.told(configs).over(own)
        side = limits.max_side - limits.max_side % limits.size_multiple
        frames, tokens = defaults.num_frames, defaults.max_sequence_length
        fitted = DiffusionParams(
            height=None if defaults.height is None else min(defaults.height, side),
            width=None if defaults.width is None else min(defaults.width, side),
            num_frames=None if frames is None else min(frames, limits.max_frames),
            max_sequence_length=None if tokens is None else min(tokens, limits.max_sequence_length),
            seconds=_least(defaults.seconds, limits.sound.seconds if limits.sound else 0.0),
        )
        return Door(spec, limits, limits.fixed.over(fitted.over(defaults)), scheduler=scheduler, fits=spec.fits)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What this checkpoint does of what its family does, by what it must and may be given."""
        limits, needs = self.limits, self.limits.min_images + self.limits.min_videos > 0
        undone = {"text": needs, "image": not limits.max_images, "video": not limits.max_videos}
        return tuple(task for task in self.spec.tasks if not undone.get(task.partition("-")[0], False))

    @property
    def masks(self) -> bool:
        """Whether a part of a picture can be drawn anew and the rest kept: so of flow matching that starts from one."""
        starts = "strength" in self.spec.supported - self.limits.refuses.keys() and self.limits.max_images > 0
        return self.spec.fills or (starts and self.limits.flow)

    @property
    def honoured(self) -> frozenset[str]:
        """The parameters that mean something to this model: every model's, its family's, of its schedule and work."""
        work = frozenset() if self.spec.library else WORK
        return ALWAYS | self.spec.supported | work | (SCHEDULE if self.limits.flow else frozenset())

    def adjusted(self, p: DiffusionParams) -> tuple[DiffusionParams, list[str]]:
        """`p` with the sides and the number of frames nearest to those chosen that this model makes; told in words.

        For those who prefer that to a refusal. What is no whole number is left to be refused.
        """
        limits = self.limits
        most = limits.max_side - limits.max_side % limits.size_multiple
        steps = {"width": (limits.size_multiple, 0, most), "height": (limits.size_multiple, 0, most)}
        if limits.max_frames > 1:
            steps["num_frames"] = (limits.frame_step, 1, limits.max_frames)
        changed, told = dict[str, Any](), list[str]()
        for name, (step, base, top) in steps.items():
            value = getattr(p, name)
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            least = base + step if base == 0 else limits.min_frames
            near = min(max(base + step * round((value - base) / step), least), top)
            if near != value:
                changed[name] = near
                told.append(f"{name}={value} became {near}, the nearest that this model makes")
        return replace(p, **changed), told

    def make_request(self, ask: Ask, now: float, fresh_seed: int) -> Request:
        """`ask`, checked and completed; RequestError says what is wrong, what is allowed and what to do.

        `now` is the engine's clock in seconds; `fresh_seed` is used when no seed was chosen.
        """
        given = {"prompt": ask.prompt} if isinstance(ask.prompt, str) else ask.prompt
        prompt, negative = self._prompt(given)
        messages = messages_of(given, self.spec.family, self.spec.converses, self.limits.calls)
        tools = tools_of(given, self.limits.calls)
        tokens = tokens_of(given, self.spec.family, self.spec.reads_tokens, self.limits.max_sequence_length)
        came = given_of(given, self.spec, self.limits, masks=self.masks)
        check_shown(messages, came.counts)
        chosen = ask.params
        if not isinstance(chosen, DiffusionParams):
            raise RequestError(f"params must be DiffusionParams, got {type(chosen).__name__}", "params")
        self._refuse_unsupported(chosen)
        params = self._suited(chosen, came)
        if params.seed is None:
            params = replace(params, seed=fresh_seed)
        self._check(params)
        self._check_lasting(params, came)
        loras = list(self.worn) if params.loras is None else params.loras
        params = replace(params, scheduler=scheduler_named(params.scheduler), loras=loras_of(loras, self.adapters))
        if (why := self.spec.refusal(negative, params)) is not None:
            raise RequestError(why, "negative_prompt")
        wanted = ask.within(self.deadlines)
        extra = family_params(self.spec.extra, chosen.extra)
        check_family_params(extra)
        self._check_memory(params, extra)
        if (why := extra.objection(params, self.limits.size_multiple)) is not None:
            raise objected(extra, why)
        check_length(extra, self.limits.max_sequence_length)
        check_begun(extra, begun := begun_of(given, tools))
        check_speech(extra, self.limits.speech, len(came.sounds))
        if isinstance(extra, SoundParams) and params.seconds is not None:
            self._check_window(extra.start, params.seconds)
        made = Request(
            id=os.urandom(16).hex(),
            messages=messages,
            tools=tools,
            begun=begun,
            tokens=tokens,
            prompt=messages[-1].content if messages else prompt,
            negative_prompt=negative,
            params=params,
            extra=extra,
            images=came.images,
            region=came.region,
            sounds=came.sounds,
            videos=came.videos,
            priority=ask.priority,
            deadline=None if wanted.seconds is None else now + wanted.seconds,
            times=wanted.times,
            tenant=ask.tenant,
            previews=ask.previews,
            chunks=bool(ask.chunks),
            blocks=bool(ask.blocks),
            branches=ONLY_POSITIVE if self.spec.guidance is None else self.spec.guidance.needed(negative, params),
        )
        return self.with_cache(replace(made, more=evaluations_beyond(self.scheduler, params, made.steps)))

    def with_cache(self, request: Request) -> Request:
        """`request` with its step cache written out in full, for this model; RequestError for one that cannot be."""
        text = asked_for(request.params.cache, self.fits, request.evaluations, self.cache)
        return request if text == request.params.cache else replace(request, params=replace(request.params, cache=text))

    def _suited(self, chosen: DiffusionParams, came: Given) -> DiffusionParams:
        """`chosen` over the defaults: with pictures in their proportions, without one with nothing that needs one."""
        if came.images or came.sounds or came.videos:
            suited = self._sized(came.sizes, chosen) if came.sizes else self.defaults
            suited = self._lasting(suited, came)
            # What lies in the margins of a picture has nothing to start from.
            whole = came.region is not None and came.region.padded and suited.strength is not None
            return chosen.over(replace(suited, strength=1.0) if whole else suited)
        if chosen.strength is not None:
            what = "sound" if self.spec.medium == "audio" else "video" if self.limits.max_videos else "picture"
            name = "images" if what == "picture" else f"{what}s"
            why = f"strength says how much of a {what} is drawn anew, and there is no {what}"
            raise RequestError(f"{why}; give one (`{name}`), or leave strength out", "strength")
        return chosen.over(self.defaults if self.defaults.strength is None else replace(self.defaults, strength=None))

    def _sized(self, sizes: Sequence[Size], chosen: DiffusionParams) -> DiffusionParams:
        """The defaults in the size that suits pictures of `sizes`, by the model's rule if it has one.

        Else with the area they have and the proportions of the first picture; a side that was chosen decides.
        """
        if self.limits.sized is not None:
            suited = self.limits.sized(sizes)
            return replace(self.defaults, width=suited[0], height=suited[1])
        if self.defaults.height is None or self.defaults.width is None:
            return self.defaults  # this model decides by itself what a picture's size means
        ratio, area = sizes[0][0] / sizes[0][1], self.defaults.height * self.defaults.width
        width, height = chosen.width, chosen.height
        wide = (area * ratio) ** 0.5 if height is None else height * ratio
        high = (area / ratio) ** 0.5 if width is None else width / ratio
        return replace(self.defaults, width=self._legal(wide), height=self._legal(high))

    def _lasting(self, suited: DiffusionParams, came: Given) -> DiffusionParams:
        """`suited` for what is made of a video: as fast as that and, up to the model's own length, as long."""
        if not came.videos or suited.num_frames is None:
            return suited
        [video, *_], step = came.videos, self.limits.frame_step
        count = min(suited.num_frames, (len(video.frames) - 1) // step * step + 1)
        return replace(suited, num_frames=max(count, self.limits.min_frames), fps=video.fps or suited.fps)

    def _check_lasting(self, p: DiffusionParams, came: Given) -> None:
        """What starts from a video has no more frames than that, and draws a step at the least."""
        for video in came.videos:
            if (count := len(video.frames)) < (p.num_frames or 1):
                raise RequestError(
                    f"num_frames={p.num_frames} is more than the {count} frames of the video; use fewer, or a longer "
                    "video",
                    "num_frames",
                )
        steps = p.num_inference_steps or 1
        if came.videos and p.strength is not None and int(steps * p.strength) < 1:
            least = math.ceil(100 / steps) / 100
            raise RequestError(
                f"strength={p.strength:g} of {steps} steps leaves none to draw; use at least {least:g}", "strength"
            )

    def _legal(self, side: float) -> int:
        """The legal side for `side`: the nearest, or the one below or above it, as this model rounds."""
        step = self.limits.size_multiple
        exact = round(side / step, 6)  # what a root missed by its last digits is no step more
        counts = {"nearest": round(side / step), "down": round(side) // step, "up": math.ceil(exact)}
        count = counts[self.limits.rounding]
        return min(max(count, 1), self.limits.max_side // step) * step

    def _prompt(self, given: Mapping[str, Any]) -> tuple[str, str | None]:
        if not isinstance(given, Mapping):
            raise RequestError(f"a prompt is a string or a dict, got {type(given).__name__}", "prompt")
        allowed = ["prompt", *SAID, "negative_prompt", "images", "mask", "pad", "sounds", "videos"]
        for name in given:
            if name not in allowed:
                raise RequestError(
                    f"a prompt has no field {name!r}; it knows {', '.join(allowed)}{_near(name, allowed)}", str(name)
                )
        prompt, negative = given.get("prompt"), given.get("negative_prompt")
        if not self.spec.prompted:
            if prompt:
                why = "makes what it does of pictures alone; leave it out, or empty"
                raise RequestError(f"prompt means nothing to {self.spec.family}, which {why}", "prompt")
            prompt = ""
        if prompt is None and any(given.get(name) is not None for name in ("messages", "tokens")):
            prompt = ""
        if not isinstance(prompt, str):
            raise RequestError(f"prompt must be a string, got {type(prompt).__name__}", "prompt")
        if negative is not None and not isinstance(negative, str):
            raise RequestError(f"negative_prompt must be a string, got {type(negative).__name__}", "negative_prompt")
        for name, text in (("prompt", prompt), ("negative_prompt", negative or "")):
            most = MAX_WRITTEN if self.spec.converses else MAX_PROMPT
            if len(text) > most:
                raise RequestError(f"{name} has {len(text)} characters; at most {most} are allowed", name)
            if not is_text(text):
                raise RequestError(
                    f"{name} holds half a surrogate pair, or bytes that are not UTF-8; take them out", name
                )
        return prompt, negative

    def _refuse_unsupported(self, chosen: DiffusionParams) -> None:
        honoured = self.honoured | {"extra"}
        for name, value in vars(chosen).items():
            if value is None or (name == "loras" and not value):  # nobody needs to be told to wear nothing
                continue
            if name in self.limits.refuses:
                raise RequestError(f"{name} cannot be chosen here: {self.limits.refuses[name]}", name)
            if name not in honoured:
                known = ", ".join(sorted(honoured - {"extra", "output_type"}))
                raise RequestError(f"{name} means nothing to {self.spec.family}; it honours {known}", name)
            if (only := getattr(self.limits.fixed, name)) is not None and value != only:
                raise RequestError(f"{name}={value!r} does not fit this checkpoint; use {only!r} or leave it out", name)

    def _check(self, p: DiffusionParams) -> None:
        if p.num_inference_steps is not None:
            whole("num_inference_steps", p.num_inference_steps, self.limits.min_steps, MAX_STEPS)
        whole("num_outputs_per_prompt", p.num_outputs_per_prompt, 1, MAX_OUTPUTS)
        whole("seed", p.seed, 0, MAX_SEED - (p.num_outputs_per_prompt or 1) + 1)
        for name in ("height", "width"):
            if getattr(p, name) is not None:
                self._side(name, getattr(p, name))
        if p.num_frames is not None:
            self._frames(p.num_frames)
        if p.max_sequence_length is not None:
            whole("max_sequence_length", p.max_sequence_length, 1, self.limits.max_sequence_length)
        for name in ("guidance_scale", "guidance_scale_2", "true_cfg_scale"):
            real(name, getattr(p, name), 0.0, 1000.0)
        real("strength", p.strength, 0.01, 1.0)
        real("fps", p.fps, 0.01, 1000.0)
        if p.seconds is not None:
            self._seconds(p.seconds, p.num_outputs_per_prompt or 1)
        real("flow_shift", p.flow_shift, 0.01, MAX_SHIFT)
        real("boundary_ratio", p.boundary_ratio, 0.0, 1.0)
        if p.scheduler is not None and scheduler_named(p.scheduler) is None:
            message = f"scheduler={p.scheduler!r:.80} is not known; use one of {', '.join(SCHEDULERS)}"
            raise RequestError(f"{message}, or leave it out for the checkpoint's own", "scheduler")
        if p.output_type not in ("pil", "pt", "latent"):
            raise RequestError(
                f"output_type={p.output_type!r} is not known; use 'pil', 'pt' or 'latent'", "output_type"
            )

    def _check_memory(self, p: DiffusionParams, extra: FamilyParams) -> None:
        """Refuse what cannot even be handed over: a bound on the product, whatever the network itself would take."""
        height, width, outputs = p.height or 1, p.width or 1, p.num_outputs_per_prompt or 1
        frames = (p.num_frames or 1) * extra.pictures
        if (needed := height * width * frames * outputs * PIXEL_BYTES) <= self.memory:
            return
        what = f"{frames} {'frames' if extra.pictures == 1 else 'pictures'}"
        asked = [f"{width}x{height}", *([what] if frames > 1 else []), f"{outputs} outputs"]
        smaller = (self.memory / needed) ** 0.5
        step = self.limits.size_multiple
        near = [max(1, int(side * smaller) // step) * step for side in (width, height)]
        raise RequestError(
            f"{', '.join(asked)} need at least {told_bytes(needed)} of memory, of which there are "
            f"{told_bytes(self.memory)}; ask for fewer, or for at most {near[0]}x{near[1]}",
            "height",
        )

    def _check_window(self, start: float, seconds: float) -> None:
        """A window must lie within the whole."""
        assert self.limits.sound is not None
        most = self.limits.sound.seconds
        if not most or start + seconds <= most + 1 / self.limits.sound.rate:
            return
        if start >= most:
            raise RequestError(f"extra.start={start:g} is behind the end; this model makes {most:g} s", "extra.start")
        raise RequestError(
            f"{seconds:g} s from second {start:g} on end behind the {most:g} s that this model makes; use at most "
            f"{math.floor((most - start) * 1000) / 1000:g} seconds, or an earlier start",
            "seconds",
        )

    def _seconds(self, value: Any, outputs: int) -> None:
        """The length of a sound: at least one sample, and no more of them than can be handed over."""
        sound = self.limits.sound
        assert sound is not None, "a family that honours seconds says how it samples"
        each = sound.rate * sound.channels * SAMPLE_BYTES * outputs  # bytes a second
        real("seconds", value, 1 / sound.rate, min(sound.seconds or MAX_SECONDS, self.memory / each))

    def _side(self, name: str, value: Any) -> None:
        step = self.limits.size_multiple
        whole(name, value, step, self.limits.max_side)
        if value % step:
            low, high = value - value % step, value - value % step + step
            legal = f"{low} or {high}" if low and high <= self.limits.max_side else f"{low or high}"
            raise RequestError(f"{name}={value} is not a multiple of {step}; use {legal}", name)

    def _frames(self, value: Any) -> None:
        step, least, most = self.limits.frame_step, self.limits.min_frames, self.limits.max_frames
        whole("num_frames", value, least, most)
        if (value - 1) % step:
            low = value - (value - 1) % step
            legal = f"{low} or {low + step}" if low + step <= most else f"{low}"
            raise RequestError(f"num_frames={value} is not {step}k + 1; use {legal}", "num_frames")


def _least(value: float | None, most: float) -> float | None:
    """`value`, lowered to `most` where there is such a bound (0: there is none)."""
    return min(value, most) if value is not None and most else value


def _least_steps(configs: Configs) -> int:
    """A schedule that is stretched to end above 0 has no first level to stretch if it has one level only."""
    return 2 if any(config.get("shift_terminal") for config in configs.values()) else 1


def _near(name: object, allowed: Sequence[str]) -> str:
    near = meant(str(name), allowed)
    return f"; did you mean {near!r}?" if near else ""
