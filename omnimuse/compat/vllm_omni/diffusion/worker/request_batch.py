"""`vllm_omni.diffusion.worker.request_batch`: several requests for one `forward`. The engine gives one at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm_omni.diffusion.data import DiffusionOutput
from omnimuse.compat.vllm_omni.diffusion.request import OmniDiffusionRequest
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams, OmniPromptType


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

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


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
