"""`vllm_omni.entrypoints.omni`: the engine as scripts of the contract call it, for any model of ours, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from omnimuse import api
from omnimuse.compat.contract.names import TABLE, no_attribute, no_name
from omnimuse.compat.vllm_omni.entrypoints.choosing import Given, Sampled, per_prompt
from omnimuse.compat.vllm_omni.entrypoints.options import EngineOptions, config_of
from omnimuse.compat.vllm_omni.entrypoints.stages import Stages
from omnimuse.compat.vllm_omni.inputs.data import OmniPromptType
from omnimuse.compat.vllm_omni.outputs import OmniRequestOutput
from omnimuse.core.errors import RequestError


class TooLate(TypedDict, total=False):
    """What is chosen when the engine starts, under both of its names."""

    max_num_seqs: int
    max_batch_size: int


class Omni:
    """An engine for one model: `Omni(model="...", plugin="my_package")`. Close it, or use it in a `with`."""

    def __init__(self, model: str, **options: Unpack[EngineOptions]) -> None:
        self._ours = api.Omni(model, config=config_of(model, options))
        self._stages = Stages.of(self._ours.config)
        self.default_sampling_params_list: list[Sampled] = list(self._stages.usual)

    def generate(
        self,
        prompts: OmniPromptType | Sequence[OmniPromptType],
        sampling_params_list: Given = None,
        *,
        sampling_params: Given = None,
        negative_prompts: Sequence[str] | None = None,
        py_generator: bool = False,
        use_tqdm: bool = True,
        **later: Unpack[TooLate],
    ) -> list[OmniRequestOutput] | Iterator[OmniRequestOutput]:
        """One output per prompt, in order; as they are finished, in an iterator, with `py_generator`. Of a model that
        writes or speaks, one for each stage that made something of a prompt.

        `sampling_params` is one for all prompts, or one for each; with vLLM's `SamplingParams` among them, one for each
        stage. A single prompt's error is raised; of several, an output has its own.
        """
        for name, value in later.items():
            if name not in TooLate.__annotations__:
                raise RequestError(f"{name} cannot be given to generate; {TABLE} lists what can", "prompt")
            raise RequestError(
                f"{name}={value} is chosen when the engine starts; write Omni(..., max_num_seqs=...)", "prompt"
            )
        if not isinstance(use_tqdm, bool):
            raise RequestError(f"use_tqdm={use_tqdm!r} is not allowed; use True or False", "prompt")
        single = isinstance(prompts, str | Mapping)
        many: list[Any] = [prompts] if single else list(prompts)
        nothing: list[str | None] = [None] * len(many)
        against = list(negative_prompts) if negative_prompts else nothing
        if len(against) != len(many):
            raise RequestError(f"{len(against)} negative_prompts for {len(many)} prompts; give as many", "prompt")
        given = per_prompt(sampling_params if sampling_params is not None else sampling_params_list, len(many))
        if len(given) != len(many):
            raise RequestError(f"{len(given)} sampling_params for {len(many)} prompts; give one, or as many", "prompt")
        both = [self._stages.asked(*each) for each in zip(many, given, against, strict=True)]
        asked, chosen = [prompt for prompt, _ in both], [params for _, params in both]
        if py_generator:
            return (made for _, result in self._ours.stream(asked, chosen) for made in self._stages.outputs(result))
        results = self._ours.generate(asked, chosen, progress=use_tqdm)
        if single and (error := results[0].error) is not None:
            raise error
        return [made for result in results for made in self._stages.outputs(result)]

    def close(self) -> None:
        """Free the weights."""
        self._ours.close()

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
