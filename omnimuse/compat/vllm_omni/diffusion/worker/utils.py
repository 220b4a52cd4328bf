"""`vllm_omni.diffusion.worker.utils`: what a pipeline that gives its loop away keeps of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm_omni.inputs.data import OmniDiffusionSamplingParams, OmniPromptType


@dataclass(kw_only=True)
class Texts:
    """What encoders made of the prompts: embeds [B, L, D] and masks [B, L], short ones padded."""

    prompt_embeds: Tensor | None = None
    prompt_embeds_mask: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    negative_prompt_embeds_mask: Tensor | None = None
    txt_seq_lens: list[int] | None = None
    negative_txt_seq_lens: list[int] | None = None
    img_shapes: list[Any] | None = None


@dataclass(kw_only=True)
class StepRequestState(Texts):
    """One request between its steps; `prepare_encode` fills it, and `step_scheduler` moves `latents` and `step_index`.

    `scheduler` is the request's own. What only the pipeline knows of is in `extra`.
    """

    request_id: str
    sampling: OmniDiffusionSamplingParams
    prompt: OmniPromptType | None = None
    latents: Tensor | None = None
    timesteps: Tensor | Sequence[Tensor] | None = None
    step_index: int = 0
    scheduler: Any = None
    do_true_cfg: bool = False
    guidance: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    stage_durations: dict[str, float] = field(default_factory=dict)

    @property
    def req_id(self) -> str:
        """An older name of `request_id`."""
        return self.request_id

    @property
    def prompts(self) -> list[OmniPromptType]:
        """The only prompt, in a list."""
        return [] if self.prompt is None else [self.prompt]

    @property
    def total_steps(self) -> int:
        """How many there will be."""
        if self.timesteps is None:
            return 0
        return 1 if isinstance(self.timesteps, Tensor) and not self.timesteps.ndim else len(self.timesteps)

    @property
    def current_timestep(self) -> Tensor | None:
        """That of the step to be taken next; None after the last."""
        if self.timesteps is None or self.denoise_completed:
            return None
        if isinstance(self.timesteps, Tensor) and not self.timesteps.ndim:
            return self.timesteps
        return self.timesteps[self.step_index]

    @property
    def denoise_completed(self) -> bool:
        """Whether all steps are taken."""
        return 0 < self.total_steps <= self.step_index

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


DiffusionRequestState = StepRequestState
"""Its older name."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
