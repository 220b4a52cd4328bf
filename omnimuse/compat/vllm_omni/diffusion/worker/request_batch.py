"""`vllm_omni.diffusion.worker.request_batch`: several requests for one `forward`. The engine gives one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams, OmniPromptType

T = TypeVar("T")
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class DiffusionRequestBatch:
    """`requests` in order; what they chose for all is what the first chose."""

    requests: list[OmniDiffusionRequest]

    @property
    def num_reqs(self) -> int:
        """How many there are."""
        return len(self.requests)

    @property
    def request_ids(self) -> list[str]:
        """Their ids."""
        return [each.request_id or "" for each in self.requests]

    @property
    def prompts(self) -> list[OmniPromptType]:
        """Their prompts."""
        return [each.prompt for each in self.requests]

    @property
    def sampling_params(self) -> OmniDiffusionSamplingParams:
        """What the first chose."""
        return self.requests[0].sampling_params

    @property
    def sampling_params_list(self) -> list[OmniDiffusionSamplingParams]:
        """What each chose."""
        return [each.sampling_params for each in self.requests]

    @property
    def request_id(self) -> str:
        """The id of the only request; of several, of the first."""
        return self.request_ids[0]

    def is_dummy_run(self) -> bool:
        """Never: a warm-up draws a real request."""
        return False

    def collate_request_generators(self, num_outputs_per_prompt: int, default_generator: Generators) -> Generators:
        """The generator of every output of every request; the default one where none has any."""
        own = [each.generator for each in self.sampling_params_list]
        if not any(own):
            return default_generator
        return [each for each in _all(own, "generator") for _ in range(num_outputs_per_prompt)]

    def collate_request_tensors(self, attr: str, default_tensor: Tensor | None) -> Tensor | None:
        """What the requests chose as `attr`, [B, *] each, in one; the default one where none chose any."""
        own: list[Tensor | None] = [getattr(each, attr) for each in self.sampling_params_list]
        return default_tensor if all(each is None for each in own) else torch.cat(_all(own, attr))

    @staticmethod
    def collate_prompt_field_map(
        prompts: Sequence[OmniPromptType],
        field_defaults: Mapping[str, Tensor | None],
        field_aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Tensor | None]:
        """What lies in the prompts under each name, or another for it, [*] each, as one [B, *]; else the default."""
        found: dict[str, Tensor | None] = {}
        for name, usual in field_defaults.items():
            names = (field_aliases or {}).get(name, (name,))
            own = [_field(prompt, names) for prompt in prompts]
            found[name] = usual if all(each is None for each in own) else torch.stack(_all(own, name))
        return found

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def _all(own: Sequence[T | None], name: str) -> list[T]:
    """All of them; ValueError where some have none."""
    there = [each for each in own if each is not None]
    if len(there) != len(own):
        raise ValueError(f"some requests of a batch have a {name} and some have none; they cannot share it")
    return there


def _field(prompt: OmniPromptType, names: Sequence[str]) -> Tensor | None:
    """What lies in a prompt, or in what came with it, under the first of `names` that is there."""
    if isinstance(prompt, str):
        return None
    places: tuple[Mapping[str, Any], ...] = (prompt, prompt.get("additional_information") or {})
    for value in (place[name] for name in names for place in places if place.get(name) is not None):
        return value[0] if isinstance(value, list) else value
    return None


def split_diffusion_output_by_request(
    result: DiffusionOutput, req: DiffusionRequestBatch, *, num_outputs_per_prompt: int = 1
) -> list[DiffusionOutput]:
    """One output for every request, of `result`, whose tensors and lists have all along the first dimension."""
    if num_outputs_per_prompt < 1:
        raise ValueError(f"num_outputs_per_prompt={num_outputs_per_prompt} is not allowed; use at least 1")
    spans = [slice(at * num_outputs_per_prompt, (at + 1) * num_outputs_per_prompt) for at in range(req.num_reqs)]
    return [replace(result, output=_part(result.output, span)) for span in spans]


def _part(value: Any, span: slice) -> Any:
    if isinstance(value, dict):
        return {name: _part(each, span) for name, each in value.items()}
    return value[span] if isinstance(value, Tensor | list | tuple) else value


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
