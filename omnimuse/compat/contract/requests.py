"""One of our requests in the contract's words, and what its pipelines make in ours.

C channels, h w sides, F frames, n samples of sound.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnimuse.compat.contract.spec import THEIRS, ContractParams
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput
from omnimuse.compat.vllm_omni.diffusion.profiler import DiffusionPipelineProfilerMixin
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams, OmniTextPrompt
from omnimuse.core.errors import ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.media.recording import samples_of
from omnimuse.observe.labels import apart
from omnimuse.pipeline.state import State


def request_of(state: State) -> OmniDiffusionRequest:
    """What the pipeline is asked for the output that `state` makes: one prompt, one output, its own generator."""
    sampling = sampling_of(state)
    return OmniDiffusionRequest([prompt_of(state)], sampling, [state.id], state.id)


def prompt_of(state: State) -> OmniTextPrompt:
    """The prompt with all that came with it; one picture lies there as itself, several in a list.

    A sound is (samples [channels, n], samples a second).
    """
    request = state.request
    pictures = [Image.open(io.BytesIO(each.png), formats=("PNG",)) for each in request.images]
    sounds = [(samples_of(each, each.rate, each.channels), each.rate) for each in request.sounds]
    found = OmniTextPrompt(prompt=request.prompt)
    if request.negative_prompt is not None:
        found["negative_prompt"] = request.negative_prompt
    came: dict[str, Any] = {"image": pictures[0] if len(pictures) == 1 else pictures} if pictures else {}
    if sounds:
        came["audio"] = sounds[0]
    if came:
        found["multi_modal_data"] = came
    return found


def sampling_of(state: State) -> OmniDiffusionSamplingParams:
    """What was chosen; what nobody chose is left at the contract's default, which its pipelines take for their own."""
    request = state.request
    known = {each.name for each in fields(OmniDiffusionSamplingParams)}
    chosen: dict[str, Any] = {}
    for part in fields(DiffusionParams):
        value = getattr(request.params, part.name)
        for name in THEIRS.get(part.name, (part.name,)):
            if value is not None and name in known:
                chosen[name] = value
    chosen |= {"seed": request.seed(state.output), "generator": state.generator, "num_outputs_per_prompt": 1}
    if isinstance(request.extra, ContractParams):
        chosen["extra_args"] = _lengths(request.params.seconds) | dict(request.extra.extra_args)
    sampling = OmniDiffusionSamplingParams(**chosen)
    sampling.guidance_scale_provided = bool(sampling.guidance_scale)
    return sampling


def _lengths(seconds: float | None) -> dict[str, float]:
    """How long a sound is to be, where newer pipelines look for it: among their own choices."""
    return {} if seconds is None else {name: seconds for name in THEIRS["seconds"] if name != "seconds"}


def note_times(state: State, made: Any, pipe: object = None, loops: Collection[str] = ()) -> None:
    """How long parts of a pipeline took goes with the times of its stages: what it has measured since the last
    `clear_profiler_records`, where it inherits the profiler, and what it says beside what it `made`. `loops` are ours.
    """
    told = made if isinstance(made, list) else [made]
    if isinstance(pipe, DiffusionPipelineProfilerMixin):
        told = [DiffusionOutput(stage_durations=pipe.stage_durations), *told]
    for each in told:
        if isinstance(each, DiffusionOutput):
            note_parts(state, each.stage_durations or {}, loops)


def note_parts(state: State, seconds: Mapping[str, float], loops: Collection[str]) -> None:
    """The same of seconds by names that the pipeline gave."""
    state.timed |= {name: seconds[theirs] for theirs, name in apart(seconds, loops).items()}


def finished(made: Any, after: Callable[..., Any] | None, medium: str) -> Tensor:
    """What a pipeline made for one output, in our form; `after` is its post-process function."""
    if isinstance(made, list) and len(made) == 1 and isinstance(made[0], DiffusionOutput):
        made = made[0]
    if not isinstance(made, DiffusionOutput):
        raise ModelError(f"the pipeline returned a {type(made).__name__}; the contract wants a DiffusionOutput")
    if made.error:
        raise ModelError(f"the pipeline says: {made.error}")
    output = made.output
    if after is not None:
        exact = medium in ("image", "video") and "output_type" in signature(after).parameters
        output = after(output, output_type="pt") if exact else after(output)
    return to_tensor(output, medium)


def to_tensor(made: Any, medium: str) -> Tensor:
    """The only output in `made`: float32, values in [0, 1], channels before sides.

    A picture [C, h, w], a video [F, C, h, w], a sound [channels, n].
    """
    if isinstance(made, Mapping):
        named = [name for name in (medium, "audio" if medium == "audio" else "frames") if name in made]
        if not named:
            raise ModelError(f"the pipeline made {sorted(made)}, and nothing called {medium!r}")
        made = made[named[0]]
    if medium == "audio":
        sound = torch.as_tensor(made[0] if isinstance(made, list | tuple) else made).float()
        sound = sound[0] if sound.ndim == 3 else sound
        return sound if sound.ndim == 2 else sound.reshape(1, -1)
    item = made[0] if isinstance(made, list | tuple) or _deep(made, medium) else made
    frames = [_picture(frame) for frame in item] if isinstance(item, list | tuple) else [_picture(item)]
    found = torch.stack(frames) if isinstance(item, list | tuple) else frames[0]
    wanted = 4 if medium == "video" else 3
    if found.ndim != wanted:
        raise ModelError(f"the pipeline made a tensor of shape {tuple(found.shape)}, which is no {medium}")
    return found


def _deep(made: Any, medium: str) -> bool:
    """Whether it still has the dimension of a batch."""
    return isinstance(made, Tensor | np.ndarray) and made.ndim == (5 if medium == "video" else 4)


def _picture(value: Any) -> Tensor:
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("RGB"), dtype=np.float32) / 255  # [h, w, C]
    if isinstance(value, np.ndarray):
        value = value.astype(np.float32) / 255 if value.dtype == np.uint8 else value
        return torch.from_numpy(value).movedim(-1, -3).float()  # [..., C, h, w]
    if not isinstance(value, Tensor):
        raise ModelError(f"the pipeline made a {type(value).__name__}, which is no picture")
    return value.float()
