"""A library's pipeline as one of ours: two loops that are two parts of one call, its steps and what comes after them.

C channels, h w sides, f F frames, n samples of sound.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.compat.diffusers.call import Call, park
from omnimuse.compat.diffusers.load import listening, make_pipeline, pipeline_class
from omnimuse.compat.diffusers.params import MANY, core_parameters, extra_parameters, picture_parameters
from omnimuse.compat.diffusers.source import PipelineSource, read_source
from omnimuse.compat.diffusers.stepcache import apart, chosen, put_on
from omnimuse.core.caches import OFF, CacheConfig
from omnimuse.core.errors import RequestError
from omnimuse.core.request import Request
from omnimuse.core.spec import Spec
from omnimuse.pipeline.decode import PREVIEW_CELLS, shrunk
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.scaling import unscaled
from omnimuse.pipeline.stage import Context, Loop, Row, Step
from omnimuse.pipeline.state import State

log = logging.getLogger(__name__)

TOKEN = 16 * 16 * 4
"""Pixels, over frames, that count as one token: networks of the library tell nobody how many they compute."""


@dataclass(frozen=True)
class CallSteps(Loop):
    """Starts the call and takes its steps; the first is taken where the plan is made, since only then is it known."""

    source: PipelineSource
    uses: tuple[str, ...] = ()
    cache: CacheConfig = OFF
    name: str = "denoise"
    reads: tuple[str, ...] = ("prompt", "negative_prompt", "images")
    writes: tuple[str, ...] = ("call",)

    def tokens(self, ctx: Context, request: Request) -> int:
        p = request.params
        pixels = (p.height or 512) * (p.width or 512) * (p.num_frames or 4)
        branches = 2 if (p.guidance_scale or 0.0) > 1 else 1
        return max(1, pixels // TOKEN) * branches

    def begin(self, ctx: Context, state: State) -> list[Step]:
        request = state.request
        pipe = self._pipeline(ctx, chosen(request.params.cache, self.cache, request.evaluations))
        given = arguments(self.source, state)
        call = state["call"] = Call(lambda: pipe(**given))
        try:
            go_on(call, state)
        except (ValueError, TypeError, AssertionError) as problem:
            raise RequestError(f"{self.source.arch} refuses this request: {problem}") from problem
        return [Step(index) for index in range(max(1, call.total))]

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        call: Call = state["call"]
        if step.index and not call.dead:
            go_on(call, state)
        if call.dead:
            del state.plan[step.index + 1 :]  # it took fewer steps than it had said

    def peek(self, ctx: Context, state: State) -> Tensor | None:
        latents, vae = state["call"].latents, ctx.components.get("vae")
        return None if latents is None or vae is None else preview(vae, latents)

    def _pipeline(self, ctx: Context, cache: CacheConfig) -> Any:
        if cache.off:
            return make_pipeline(self._class, ctx.components, ctx.configs)
        cls, components = apart(self._class, ctx.components)
        pipe = make_pipeline(cls, components, ctx.configs)
        put_on(pipe, cache)
        return pipe

    @cached_property
    def _class(self) -> Any:
        return pipeline_class(self.source.arch)


@dataclass(frozen=True)
class CallEnd(Loop):
    """Lets the call run to its end, decoding included; steps that it had not announced are taken one by one.

    `media` says what comes out, each in the slot of its name, and in which field of the library's output it lies.
    """

    media: tuple[tuple[str, int], ...]
    uses: tuple[str, ...] = ()
    name: str = "decode"
    reads: tuple[str, ...] = ("call",)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(medium for medium, _ in self.media)

    def begin(self, ctx: Context, state: State) -> list[Step]:
        return [Step(0)]

    def rows(self, ctx: Context, state: State, step: Step) -> list[Row]:
        return []

    def apply(self, ctx: Context, state: State, step: Step, predictions: Mapping[str, Tensor]) -> None:
        call: Call = state["call"]
        if not call.dead:
            go_on(call, state)
        if not call.dead:
            state.plan.append(Step(step.index + 1))

    def finish(self, ctx: Context, state: State) -> None:
        made, latent = state["call"].result, state.request.params.output_type == "latent"
        for medium, field in self.media:
            there = field < len(made) and made[field] is not None and (medium != "audio" or ctx.limits.sound)
            state[medium] = to_tensor(made[field], medium, latent=latent) if there else None


def pipeline_of(spec: Spec, cache: CacheConfig = OFF) -> type[Pipeline]:
    """The pipeline of a spec that `spec_of` made, and the step cache of requests that choose none."""
    source, uses = read_source(spec.arch), tuple(spec.components)
    stages = (CallSteps(source, uses, cache), CallEnd(tuple(source.media.items()), uses))
    results = {medium: medium for medium in source.media}
    return type(spec.arch, (Pipeline,), {"spec": spec, "stages": stages, "results": results})


def go_on(call: Call, state: State) -> None:
    """Let `call` run to its next park; what the library warns of goes with the result, and to our log."""
    with listening() as said:
        call.go_on()
    for words in said:
        state.said.append(words)
        log.warning("output %s: %s", state.id, words)


def arguments(source: PipelineSource, state: State) -> dict[str, Any]:
    """What the library's pipeline is called with for the output that `state` makes."""
    request = state.request
    found: dict[str, Any] = {"generator": state.generator}
    if "prompt" in source.parameters:
        found["prompt"] = request.prompt
    if request.negative_prompt is not None:
        found["negative_prompt"] = request.negative_prompt
    for theirs, ours in core_parameters(source).items():
        value = getattr(request.params, ours)
        if value is not None:
            whole = isinstance(source.parameters[theirs].default, int) and float(value).is_integer()
            found[theirs] = int(value) if whole else value
    for parameter in extra_parameters(source):
        value = getattr(request.extra, parameter.name)
        if value is not None and value != parameter.default:
            found[parameter.name] = value
    found.update(_pictures(source, request))
    if "output_type" in source.parameters:
        found["output_type"] = "latent" if request.params.output_type == "latent" else "pt"
    return {**found, **_hook(source)}


def to_tensor(made: Any, medium: str, *, latent: bool = False) -> Tensor:
    """The only item of what the library made, in our form: float32, values in [0, 1], channels before sides.

    A picture [C, h, w], a video [F, C, h, w], a sound [channels, n]; latents as they are.
    """
    item = made[0]
    if latent:
        return torch.as_tensor(item).float()
    if medium == "audio":
        sound = torch.as_tensor(item).float()
        return sound if sound.ndim == 2 else sound.reshape(1, -1)
    frames = [_picture(frame) for frame in item] if isinstance(item, list | tuple) else [_picture(item)]
    return torch.stack(frames) if isinstance(item, list | tuple) else frames[0]


def _picture(value: Any) -> Tensor:
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("RGB"), dtype=np.float32) / 255  # [h, w, C]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value).movedim(-1, -3).float()  # [..., C, h, w]
    assert isinstance(value, Tensor)
    return value.float()


def preview(vae: Any, latents: Tensor) -> Tensor | None:
    """A small picture of unfinished latents: [1, C, h, w], or the middle frame of [1, C, f, h, w] -> [3, H, W].

    None where the autoencoder does not take latents of this form, such as packed ones, or decodes whole videos only.
    """
    config = vae.config
    if "num_frames" in signature(vae.decode).parameters:
        return None
    if latents.ndim not in (4, 5) or config.get("latent_channels") != latents.shape[1]:
        return None
    picture = latents[0, :, latents.shape[2] // 2] if latents.ndim == 5 else latents[0]  # [C, h, w]
    plain = unscaled(vae, {"scaling_factor": 1.0, **config}, shrunk(picture, PREVIEW_CELLS))[None]
    decoded = vae.decode(plain[:, :, None] if latents.ndim == 5 else plain, return_dict=False)[0]
    pixels = decoded[0, :, 0] if decoded.ndim == 5 else decoded[0]  # [3, H, W]
    return (pixels.float() * 0.5 + 0.5).clamp(0, 1)


def _pictures(source: PipelineSource, request: Request) -> dict[str, Any]:
    """The pictures of the request under the names of the parameters that take them, in order."""
    opened = [Image.open(io.BytesIO(picture.png), formats=("PNG",)) for picture in request.images]
    names = [parameter.name for parameter in picture_parameters(source)]
    for name in names:
        if name in MANY and opened:
            return {name: opened}
    return dict(zip(names, opened, strict=False))


def _hook(source: PipelineSource) -> dict[str, Any]:
    """The arguments by which the library hands out control after each step."""
    if source.hook == "callback_on_step_end":
        shown = {"callback_on_step_end_tensor_inputs": ["latents"]} if source.shows_latents else {}
        return {"callback_on_step_end": _on_step_end, **shown}
    return {"callback": _on_step, "callback_steps": 1} if source.hook == "callback" else {}


def _on_step_end(pipe: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
    park(shown.get("latents"), pipe.num_timesteps if hasattr(pipe, "num_timesteps") else 0)
    return shown


def _on_step(step: int, timestep: Any, latents: Tensor) -> None:
    park(latents, 0)
