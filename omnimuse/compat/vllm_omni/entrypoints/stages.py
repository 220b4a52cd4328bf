"""What scripts of the contract say of stages, in our words: one set of sampling parameters for each, and prompts of
models that write or speak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from omnimuse.compat.contract.names import TABLE
from omnimuse.compat.vllm_omni.entrypoints.choosing import (
    Given,
    Sampled,
    Theirs,
    chosen_of,
    stages_of,
    usual_of,
)
from omnimuse.compat.vllm_omni.entrypoints.options import prompt_of
from omnimuse.compat.vllm_omni.entrypoints.telling import SoFar
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.config import Config
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Result
from omnimuse.core.params import AnswerParams, DiffusionParams, GenerationParams, SpeechParams, TokenParams, make_params
from omnimuse.core.request import Door
from omnimuse.media.recording import recording_of
from omnimuse.worker.find import find, pipeline_for

SPEECH = {"text": "prompt", "speaker": "voice", "language": "language", "instruct": "instructions"}
"""What `additional_information` says of speech, by our names."""
IN_PROMPTS = ("height", "width", "seed", "num_inference_steps", "guidance_scale")
"""What a prompt may say of what is drawn."""
TARGETS = {"target_h": "height", "target_w": "width"}
"""What `mm_processor_kwargs` say of it."""


@dataclass(frozen=True)
class Stages:
    """What a model's stages are to a script, by `theirs`; `usual` are their sampling parameters where a script gives
    none, which are `told` where a file says some of them. `made` is the number of the stage that makes each medium.
    """

    door: Door
    theirs: tuple[Theirs, ...]
    usual: tuple[Sampled, ...]
    made: Mapping[str, int]
    told: bool = False

    @staticmethod
    def of(config: Config) -> Stages:
        """Those of the model that `config` names; of a library's pipeline, all is one stage."""
        found = find(config)
        door = found.door
        if door.spec.library:
            return Stages(door, (Theirs("draws", frozenset()),), (OmniDiffusionSamplingParams(),), {})
        pipeline = pipeline_for(door.spec)
        theirs = stages_of(pipeline, found.checkpoint.configs, door.limits.speech is not None)
        made = {
            medium: at
            for medium, slot in pipeline.results.items()
            for at, stage in enumerate(theirs)
            if slot in stage.slots
        }
        deploy = config.deploy
        return Stages(door, tuple(theirs), tuple(usual_of(theirs, deploy)), made, any(deploy.sampling))

    @property
    def several(self) -> bool:
        """Whether outputs are told apart by the stages that made them."""
        return issubclass(self.door.spec.extra, TokenParams)

    def asked(
        self, given: Any, sampling: Given, negative: str | None = None, wanted: Sequence[str] | None = None
    ) -> tuple[Any, DiffusionParams]:
        """A prompt and what was chosen for it, in our words; `wanted` are the media that it is to be answered in."""
        if sampling is None:
            sampling = list(self.usual) if self.told else []
        chosen = chosen_of(self.door, self.theirs, sampling if isinstance(sampling, list | tuple) else [sampling])
        prompt: dict[str, Any] = {"prompt": given} if isinstance(given, str) else dict(given)
        if wanted is not None and list(prompt.setdefault("modalities", wanted)) != list(wanted):
            why = f"the prompt wants modalities={prompt['modalities']}; leave one of them out"
            raise RequestError(f"output_modalities={list(wanted)} cannot be: {why}", "modalities")
        prompt, chosen = self.door.spec.extra.understood(prompt, chosen)
        chosen = self._in_prompt(prompt, chosen)
        if not self.several:
            if (media := prompt.pop("modalities", None)) is not None and set(media) != {self.door.spec.medium}:
                raise RequestError(f"modalities={list(media)} cannot be; use {[self.door.spec.medium]}", "modalities")
            return prompt_of(prompt, negative), chosen
        besides = self._besides(prompt)
        for theirs, name, read in (("audio", "sounds", _sound), ("video", "videos", lambda video: video)):
            media = dict(prompt.get("multi_modal_data") or {})
            if (value := media.pop(theirs, None)) is not None:
                prompt[name] = [read(each) for each in (value if isinstance(value, list) else [value])]
                prompt["multi_modal_data"] = media
        if besides.get("modalities") == ("text",) and isinstance(chosen.extra, Mapping):  # its talker has nothing to do
            chosen = replace(chosen, extra={k: v for k, v in chosen.extra.items() if not k.startswith("voice_")})
        return prompt_of(prompt, negative), make_params(chosen, _open_modalities(chosen, besides))

    def outputs(self, result: Result) -> list[OmniRequestOutput]:
        """What a script gets for a result: one output for each stage that made something."""
        if result.error is not None:
            return [OmniRequestOutput(result)]
        if not self.several:
            return [OmniRequestOutput(result, next(iter(self.made.values()), 0))]
        media = list(dict.fromkeys(part.medium for parts in result.parts for part in parts))
        media.sort(key=list(self.made).index)
        return [OmniRequestOutput(result, self.made[medium], medium) for medium in media]

    def so_far(self, request_id: str, prompt: Any, params: DiffusionParams) -> SoFar:
        """What collects the pieces of a request, as they come."""
        said = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
        empty, sound = Result(request_id, said if isinstance(said, str) else "", params), self.door.limits.sound
        return SoFar(empty, self.made.__getitem__, 0 if sound is None else sound.rate)

    # -- prompts -----------------------------------------------------------------------------------------------------

    def _in_prompt(self, prompt: dict[str, Any], chosen: DiffusionParams) -> DiffusionParams:
        """What was chosen with what a prompt says of what is drawn, which is taken out of it."""
        said = {name: prompt.pop(name) for name in IN_PROMPTS if prompt.get(name) is not None}
        if self.theirs[0].kind == "codes":
            for name, value in (prompt.pop("mm_processor_kwargs", None) or {}).items():
                if name not in TARGETS or said.setdefault(TARGETS[name], value) != value:
                    raise RequestError(f"mm_processor_kwargs has {name}={value}, which cannot be ({TABLE})", "prompt")
        for name, value in said.items():
            if getattr(chosen, name) not in (None, value):
                why = f"its sampling parameters have {getattr(chosen, name)!r}; name one"
                raise RequestError(f"the prompt has {name}={value!r}, and {why}", name)
        return replace(chosen, **said)

    def _besides(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """What a prompt says that is a choice here, taken out of it."""
        kind, found = self.door.spec.extra, dict[str, Any]()
        if issubclass(kind, SpeechParams):
            found |= _spoken(prompt)
        ids = prompt.pop("prompt_token_ids", None)
        if ids is not None and not (issubclass(kind, SpeechParams) and "prompt" in prompt):  # there they are made up
            prompt.pop("prompt", None)  # what they spell
            prompt["tokens"] = [int(token) for token in ids]
        wanted = prompt.pop("modalities", None)
        if issubclass(kind, AnswerParams):
            aloud = self.door.limits.speech is not None if wanted is None else "audio" in wanted
            if unknown := sorted(set(wanted or ()) - {"text", "audio"}):
                raise RequestError(f"modalities have {unknown}; use text and audio", "modalities")
            found["modalities"] = ("text", "audio") if aloud else ("text",)
        elif wanted is not None and not set(wanted) <= self.made.keys():
            raise RequestError(f"modalities={list(wanted)} cannot be; use {list(self.made)}", "modalities")
        elif wanted is not None and "modalities" in {part.name for part in fields(kind)}:
            found["modalities"] = tuple(sorted(wanted, reverse=True))  # a text comes before its picture
        for name, value in (prompt.pop("mm_processor_kwargs", None) or {}).items():
            if name not in {part.name for part in fields(kind)} - {part.name for part in fields(GenerationParams)}:
                raise RequestError(f"mm_processor_kwargs has {name!r}, which means nothing here ({TABLE})", "prompt")
            found[name] = value
        return found


def _spoken(prompt: dict[str, Any]) -> dict[str, Any]:
    """What is said, and how, of a prompt that has it in `additional_information`; its token ids are made up."""
    told = {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in (prompt.pop("additional_information", None) or {}).items()
    }
    if not told:
        return {}
    prompt.pop("prompt_token_ids", None)
    told.pop("task_type", None)  # the checkpoint does one of them
    told.pop("non_streaming_mode", None)  # all text is read first
    found = dict[str, Any]()
    if (sound := told.pop("ref_audio", None)) is not None:
        prompt["sounds"] = [_sound(sound)]
        words, alone = told.pop("ref_text", None), told.pop("x_vector_only_mode", False)
        if not alone and not words:
            why = "say what is said in the sound, or take its voice alone: x_vector_only_mode=True"
            raise RequestError(f"ref_text is missing: {why} ({TABLE})", "prompt")
        found |= {} if alone else {"ref_text": words}
    found |= {"max_tokens": told.pop("max_new_tokens")} if "max_new_tokens" in told else {}
    if unknown := sorted(set(told) - SPEECH.keys()):
        raise RequestError(f"additional_information has {unknown}, which means nothing here ({TABLE})", "prompt")
    for theirs, ours in SPEECH.items():
        value = told.get(theirs)
        if ours == "prompt":
            prompt[ours] = value if value is not None else prompt.get(ours)
        elif value and value != "Auto":
            found[ours] = value
    return found


def _sound(given: Any) -> Any:
    """A sound; samples with their rate, (array [n] or [n, channels], rate), as one of ours."""
    if isinstance(given, tuple) and len(given) == 2:
        samples = np.atleast_2d(np.asarray(given[0], dtype=np.float32).T)
        return recording_of(samples, int(given[1]))
    return given


def _open_modalities(chosen: DiffusionParams, besides: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a prompt chooses, but for the media that its sampling parameters have chosen with more reason."""
    own = chosen.extra if isinstance(chosen.extra, Mapping) else {}
    return {name: value for name, value in besides.items() if name != "modalities" or "modalities" not in own}
