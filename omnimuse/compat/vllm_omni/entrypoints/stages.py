"""What scripts of the contract say of stages, in our words: one set of sampling parameters for each, and prompts of
models that write or speak.

A stage of theirs is a track of ours; all tracks behind the last that chooses tokens are one of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from omnimuse.compat.contract.names import TABLE
from omnimuse.compat.vllm.sampling_params import SamplingParams
from omnimuse.compat.vllm_omni.entrypoints.options import params_of, prompt_of
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.config import Config
from omnimuse.core.errors import RequestError
from omnimuse.core.output import Result
from omnimuse.core.params import AnswerParams, DiffusionParams, GenerationParams, SpeechParams, TokenParams, make_params
from omnimuse.core.request import Door
from omnimuse.media.recording import recording_of
from omnimuse.pipeline.answering import Speak
from omnimuse.pipeline.talking import Talk
from omnimuse.worker.find import find, pipeline_for

Sampled = OmniDiffusionSamplingParams | SamplingParams
Sampling = Sampled | Sequence[Sampled] | None
TALKS_AS_IT_DOES: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1.0,),
    "top_k": (50, 0, -1),
    "repetition_penalty": (1.05, 1.0),
    "min_tokens": (0,),
    "stop": (None,),
}
"""What a talker's parameters may be: what it does, or what stands there where nobody chose."""
SPEECH = {"text": "prompt", "speaker": "voice", "language": "language", "instruct": "instructions"}
"""What `additional_information` says of speech, by our names."""


@dataclass(frozen=True)
class Stages:
    """What a model's stages are to a script: `talks` is the number of the talker that has parameters of its own,
    `made` the number of the stage that makes each medium, in order, `count` how many there are.
    """

    door: Door
    talks: int | None
    made: Mapping[str, int]
    count: int

    @staticmethod
    def of(config: Config) -> Stages:
        """Those of the model that `config` names; of one track, or of a library's pipeline, all is one stage."""
        door = find(config).door
        if door.spec.library:
            return Stages(door, None, {}, 1)
        pipeline = pipeline_for(door.spec)
        tracks = pipeline.tracks or (pipeline.stages,)
        talks = next((at for at, track in enumerate(tracks) if any(isinstance(each, Speak) for each in track)), None)
        chooses = max((at for at, track in enumerate(tracks) if any(isinstance(s, Talk) for s in track)), default=0)
        made = {
            medium: min(at, chooses + 1)
            for medium, slot in pipeline.results.items()
            for at, track in enumerate(tracks)
            if any(slot in stage.writes for stage in track)
        }
        return Stages(door, talks, made, min(len(tracks), chooses + 2))

    @property
    def several(self) -> bool:
        """Whether outputs are told apart by the stages that made them."""
        return issubclass(self.door.spec.extra, TokenParams)

    def asked(
        self, given: Any, sampling: Sampling, negative: str | None = None, wanted: Sequence[str] | None = None
    ) -> tuple[Any, DiffusionParams]:
        """A prompt and what was chosen for it, in our words; `wanted` are the media that it is to be answered in."""
        if sampling is not None and not isinstance(sampling, Sampled):
            sampling = list(sampling)
        chosen = self._chosen(sampling if isinstance(sampling, list) else [] if sampling is None else [sampling])
        prompt: dict[str, Any] = {"prompt": given} if isinstance(given, str) else dict(given)
        if wanted is not None and list(prompt.setdefault("modalities", wanted)) != list(wanted):
            why = f"the prompt wants modalities={prompt['modalities']}; leave one of them out"
            raise RequestError(f"output_modalities={list(wanted)} cannot be: {why}", "modalities")
        if not self.several:
            if (media := prompt.pop("modalities", None)) is not None and set(media) != {self.door.spec.medium}:
                raise RequestError(f"modalities={list(media)} cannot be; use {[self.door.spec.medium]}", "modalities")
            return prompt_of(prompt, negative), chosen
        besides = self._besides(prompt)
        for theirs, ours, read in (("audio", "sounds", _sound), ("video", "videos", lambda video: video)):
            media = dict(prompt.get("multi_modal_data") or {})
            if (value := media.pop(theirs, None)) is not None:
                prompt[ours] = [read(each) for each in (value if isinstance(value, list) else [value])]
                prompt["multi_modal_data"] = media
        if besides.get("modalities") == ("text",) and isinstance(chosen.extra, Mapping):  # its talker has nothing to do
            chosen = replace(chosen, extra={k: v for k, v in chosen.extra.items() if k != "voice_temperature"})
        return prompt_of(prompt, negative), make_params(chosen, besides)

    def outputs(self, result: Result) -> list[OmniRequestOutput]:
        """What a script gets for a result: one output for each stage that made something."""
        if not self.several or result.error is not None:
            return [OmniRequestOutput(result)]
        media = list(dict.fromkeys(part.medium for parts in result.parts for part in parts))
        media.sort(key=list(self.made).index)
        return [OmniRequestOutput(result, self.made[medium], medium) for medium in media]

    # -- sampling parameters ---------------------------------------------------------------------------------------

    def _chosen(self, given: Sequence[Sampled]) -> DiffusionParams:
        """All stages' parameters as one; RequestError for what cannot be said of a stage."""
        writing = [each for each in given if isinstance(each, SamplingParams)]
        drawing = [each for each in given if not isinstance(each, SamplingParams)]
        if len(writing) > self.count or len(drawing) > 1:
            raise RequestError(
                f"{len(given)} sampling parameters are more than the stages of {self.door.spec.family}, of which there "
                f"are {self.count}; {TABLE} says what a stage is",
                "sampling_params_list",
            )
        params = params_of(drawing[0] if drawing else None, self.door.spec)
        if not writing:
            return params
        if not self.several:
            raise RequestError(
                f"SamplingParams mean nothing to {self.door.spec.family}, which chooses no tokens by them; give "
                "OmniDiffusionSamplingParams",
                "sampling_params_list",
            )
        first = writing[0]
        params = replace(params, seed=first.seed if first.seed is not None else params.seed)
        params = replace(params, num_outputs_per_prompt=first.n) if first.n != 1 else params
        talked = self._talked(writing) if self.talks is not None else {}
        return make_params(params, {**first.choices, **talked})

    def _talked(self, writing: Sequence[SamplingParams]) -> dict[str, Any]:
        """What is chosen of how a talker talks: how much chance there is in it."""
        assert self.talks is not None
        if len(writing) <= self.talks:
            return {}
        ours, first = writing[self.talks], writing[0]
        for name, allowed in {**TALKS_AS_IT_DOES, "seed": (None, first.seed)}.items():
            if getattr(ours, name) not in allowed:
                raise RequestError(
                    f"{name}={getattr(ours, name)!r} of stage {self.talks} cannot be chosen: a talker has a "
                    f"temperature of its own, and the rest is as the model talks; use {allowed[0]!r} ({TABLE})",
                    "sampling_params_list",
                )
        longest = Speak.longest
        if ours.max_tokens is not None and ours.max_tokens != SamplingParams.max_tokens and ours.max_tokens < longest:
            raise RequestError(
                f"max_tokens={ours.max_tokens} of stage {self.talks} cannot be chosen: an answer is spoken to its end, "
                f"in at most {longest} frames; use that, and say with the first stage's how much is written",
                "sampling_params_list",
            )
        return {"voice_temperature": ours.temperature}

    # -- prompts -----------------------------------------------------------------------------------------------------

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
            sound = self.door.limits.sound
            speaks = sound is not None and sound.speech is not None
            aloud = speaks if wanted is None else "audio" in wanted
            if unknown := sorted(set(wanted or ()) - {"text", "audio"}):
                raise RequestError(f"modalities have {unknown}; use text and audio", "modalities")
            found["modalities"] = ("text", "audio") if aloud else ("text",)
        elif wanted is not None and not set(wanted) <= self.made.keys():
            raise RequestError(f"modalities={list(wanted)} cannot be; use {list(self.made)}", "modalities")
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
    if (sound := told.pop("ref_audio", None)) is not None:
        prompt["sounds"] = [_sound(sound)]
        if told.pop("x_vector_only_mode", False) is not True:
            why = "a sound gives its voice alone here, and its text is not read"
            raise RequestError(f"x_vector_only_mode has to be True: {why} ({TABLE})", "prompt")
        told.pop("ref_text", None)
    found = {"max_tokens": told.pop("max_new_tokens")} if "max_new_tokens" in told else {}
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


def staged(sampling: Sampling) -> bool:
    """Whether a list of sampling parameters has one for each stage; else it has one for each prompt."""
    return not isinstance(sampling, Sampled | None) and any(isinstance(each, SamplingParams) for each in sampling)


def per_prompt(sampling: Sampling, count: int) -> list[Sampling]:
    """What was chosen for each of `count` prompts."""
    if isinstance(sampling, Sampled | None) or staged(sampling):
        return [sampling] * count
    return list(sampling)
