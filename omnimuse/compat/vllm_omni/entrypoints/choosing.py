"""What is chosen for each stage of theirs, as one choice of ours: a list of sampling parameters, one for each stage.

A stage of theirs is a track of ours; one that writes and then draws is two, and all behind the last that talks are one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from omnimuse.ar.sampling import Sampling
from omnimuse.compat.contract.names import TABLE
from omnimuse.compat.vllm.sampling_params import SamplingParams
from omnimuse.compat.vllm_omni.entrypoints.options import params_of
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams
from omnimuse.core.errors import RequestError
from omnimuse.core.params import DiffusionParams, TokenParams, make_params
from omnimuse.core.pools import DeployConfig
from omnimuse.core.request import Door
from omnimuse.core.spec import GENERATION, OPTIONS, Configs
from omnimuse.pipeline.answering import Speak
from omnimuse.pipeline.denoise import Denoise
from omnimuse.pipeline.generate import Generate
from omnimuse.pipeline.numbered import numbered
from omnimuse.pipeline.picture_codes import LANGUAGE, WriteCodes
from omnimuse.pipeline.pipeline import Pipeline
from omnimuse.pipeline.stage import Stage
from omnimuse.pipeline.talking import Talk

Sampled = OmniDiffusionSamplingParams | SamplingParams
Given = Sampled | Sequence[Sampled] | None
WHY = {
    "talks": "a talker has a temperature and a bound of its own, and the rest is as the model talks",
    "codes": "the codes of a picture are written as the checkpoint says, as many as it has",
}
"""Why of a stage that chooses tokens in a way of its own most cannot be chosen."""
TOKENS = ("temperature", "top_p", "top_k", "repetition_penalty", "min_tokens")


@dataclass(frozen=True)
class Theirs:
    """A stage of theirs: it `writes` or speaks as a request chooses, `talks` or writes the `codes` of a picture in a
    way of its own (`how`), `draws`, or chooses nothing (""). `slots` are those that it writes, `ends` the tokens after
    which nothing comes, where the checkpoint says so.
    """

    kind: Literal["writes", "talks", "codes", "draws", ""]
    slots: frozenset[str]
    how: Sampling | None = None
    ends: tuple[int, ...] = ()

    @property
    def usual(self) -> Sampled:
        """What its parameters are where nobody has chosen: as the checkpoint has it."""
        if self.kind == "draws":
            return OmniDiffusionSamplingParams()
        told = {name: getattr(self.how, name) for name in TOKENS} if self.how is not None else OPEN
        return SamplingParams(**told, max_tokens=Speak.longest if self.kind == "talks" else None)


OPEN: Mapping[str, Any] = {**dict.fromkeys(TOKENS), "min_tokens": 0}


def stages_of(pipeline: type[Pipeline], configs: Configs, speaks: bool) -> list[Theirs]:
    """Theirs of a pipeline of ours and of a checkpoint with these configurations, which may not `speak`."""
    parts = numbered(pipeline)
    talks = max((at for at, part in enumerate(parts) if any(isinstance(s, Talk) for s in part)), default=len(parts))
    if rest := tuple(chain.from_iterable(parts[talks + 1 :])):
        parts[talks + 1 :] = [rest]
    return [_theirs(part, configs, speaks, at > talks) for at, part in enumerate(parts)]


def _theirs(stages: Sequence[Stage], configs: Configs, speaks: bool, behind: bool) -> Theirs:
    slots = frozenset(chain.from_iterable(stage.writes for stage in stages))
    if behind:
        return Theirs("", slots)
    for stage in stages:
        if isinstance(stage, Speak):
            how = Sampling.of(TokenParams(), stage.told(configs)) if speaks else None
            return Theirs("talks", slots, how, how.ends if how is not None else ())
        if isinstance(stage, WriteCodes):
            how = stage.how(configs) if LANGUAGE in configs else None
            return Theirs("codes", slots, how, how.ends if how is not None else ())
        if isinstance(stage, Generate | Talk):
            network = stage.network if isinstance(stage, Generate) else ""
            told = configs.get(f"{network}/{GENERATION}") or configs.get(OPTIONS) or {}
            return Theirs("writes", slots, None, Sampling.of(TokenParams(), told).ends)
    return Theirs("draws" if any(isinstance(stage, Denoise) for stage in stages) else "", slots)


def usual_of(stages: Sequence[Theirs], deploy: DeployConfig) -> list[Sampled]:
    """What each stage is asked with where nobody has chosen; a file of theirs says all of it, or nothing. ConfigError
    for what of that cannot be.
    """
    found = [stage.usual for stage in stages]
    for number, (usual, said) in enumerate(zip(found, deploy.sampling, strict=False)):
        try:
            found[number] = type(usual)(**said) if said else usual
        except TypeError as error:
            raise deploy.wrong(f"stage {number}: default_sampling_params: {error}") from None
    return found


def chosen_of(door: Door, stages: Sequence[Theirs], given: Sequence[Any]) -> DiffusionParams:
    """All stages' parameters as one choice; RequestError for what cannot be said of a stage."""
    if wrong := [each for each in given if not isinstance(each, Sampled)]:
        what = f"{type(wrong[0]).__name__} is no sampling parameters; use SamplingParams or OmniDiffusionSamplingParams"
        raise _refusal(what)
    for sampled in given:
        sampled.check()
    if len(given) == 1 and isinstance(given[0], OmniDiffusionSamplingParams):
        return params_of(given[0], door.spec)
    if len(given) > len(stages):
        raise _refusal(
            f"{len(given)} sampling parameters are more than the stages of {door.spec.family}, of which there are "
            f"{len(stages)}; {TABLE} says what a stage is"
        )
    params = params_of(None, door.spec)
    own = dict[str, Any]()
    for number, (stage, sampled) in enumerate(zip(stages, given, strict=False)):
        if stage.kind and (stage.kind == "draws") != isinstance(sampled, OmniDiffusionSamplingParams):
            means = "draws" if stage.kind == "draws" else "chooses tokens"
            kind = type(stage.usual).__name__
            raise _refusal(f"{type(sampled).__name__} mean nothing to stage {number}, which {means}; give {kind}")
        if isinstance(sampled, SamplingParams):
            own |= _of_tokens(number, stage, sampled, given[0])
        elif stage.kind == "draws":
            params = params_of(sampled, door.spec)
    first = given[0] if given else None
    if isinstance(first, SamplingParams):
        if first.seed is not None and params.seed not in (None, first.seed) and stages[0].kind == "codes":
            raise _refusal(
                f"seed={first.seed} of stage 0 and seed={params.seed} differ; a request has one: use the same"
            )
        params = replace(params, seed=first.seed if params.seed is None else params.seed)
        params = replace(params, num_outputs_per_prompt=first.n) if first.n != 1 else params
    return make_params(params, own)


def _of_tokens(number: int, stage: Theirs, given: SamplingParams, first: Sampled) -> dict[str, Any]:
    """What the parameters of a stage choose, in our words."""
    if not stage.kind or (stage.kind == "talks" and stage.how is None):
        return {}
    if strange := sorted(set(given.stop_token_ids or ()) - set(stage.ends)):
        raise _refusal(
            f"stop_token_ids={strange} of stage {number} cannot be chosen: it ends at {list(stage.ends)}, as the "
            f"checkpoint says; leave them out, or name a text with `stop` ({TABLE})"
        )
    choices = given.choices
    if stage.kind == "writes":
        return choices
    usual = SamplingParams()
    names = (*TOKENS, "stop")
    allowed: dict[str, tuple[Any, ...]] = {n: (getattr(stage.how, n, None), getattr(usual, n)) for n in names}
    allowed |= {"seed": (first.seed, None), "n": (1, first.n if isinstance(first, SamplingParams) else 1)}
    allowed["top_k"] = (*allowed["top_k"], -1)
    if stage.kind == "talks":
        del allowed["temperature"]
    for name, values in allowed.items():
        if (value := getattr(given, name)) is not None and value not in values:
            raise _refusal(
                f"{name}={value!r} of stage {number} cannot be chosen: {WHY[stage.kind]}; use {values[0]!r} ({TABLE})"
            )
    if stage.kind == "codes":
        return {}
    bound = None if given.max_tokens in (None, usual.max_tokens) else min(given.max_tokens, Speak.longest)
    return {"voice_temperature": given.temperature, "voice_tokens": bound}


def _refusal(why: str) -> RequestError:
    return RequestError(why, "sampling_params_list")


def staged(sampling: Given) -> bool:
    """Whether a list of sampling parameters has one for each stage; else it has one for each prompt."""
    return isinstance(sampling, list | tuple) and any(isinstance(each, SamplingParams) for each in sampling)


def per_prompt(sampling: Given, count: int) -> list[Given]:
    """What was chosen for each of `count` prompts; one in a list is for all of them."""
    if isinstance(sampling, Sampled | None) or staged(sampling):
        return [sampling] * count
    listed: list[Given] = list(sampling) if isinstance(sampling, list | tuple) else [sampling]
    return listed * count if len(listed) == 1 else listed
