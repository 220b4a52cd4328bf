"""`vllm_omni.diffusion.request`: what a pipeline's `forward` is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams, OmniPromptType


@dataclass
class OmniDiffusionRequest:
    """One request: its prompts, strings or dicts, and what it chose.

    The engine gives a pipeline one prompt and one output at a time. `guidance_scale` is 1 where nobody chose one, and
    then `guidance_scale_provided` is false.
    """

    prompts: list[OmniPromptType]
    sampling_params: OmniDiffusionSamplingParams
    request_ids: list[str] = field(default_factory=list)
    request_id: str | None = None

    @property
    def prompt(self) -> OmniPromptType:
        """The only prompt."""
        return self.prompts[0]

    @prompt.setter
    def prompt(self, prompt: OmniPromptType) -> None:
        self.prompts[0] = prompt

    def is_dummy_run(self) -> bool:
        """Never: a warm-up draws a real request."""
        return False

    @property
    def multi_modal_data(self) -> dict[str, Any]:
        """What came with the first prompt."""
        first = self.prompts[0]
        return {} if isinstance(first, str) else dict(first.get("multi_modal_data") or {})

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def resolve_video_num_frames(num_frames: int | None, *, default_num_frames: int, is_dummy_run: bool) -> int:
    """How many frames a video has: what was chosen, or the pipeline's own number. One is what pictures have, and means
    that nobody chose.
    """
    return default_num_frames if num_frames is None or (num_frames == 1 and not is_dummy_run) else num_frames


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
