"""`vllm_omni.diffusion.worker.input_batch`: requests that take a step together, as one batch of tensors.

Letters: B requests, L text tokens of the longest, D width.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from omnimuse.compat.contract.names import no_attribute, no_name
from omnimuse.compat.vllm_omni.diffusion.worker.utils import StepRequestState, Texts

USUAL_SCALE = 4.0


@dataclass(kw_only=True)
class InputBatch(Texts):
    """One step of several requests; `states` are the requests themselves, in order, for what is theirs alone."""

    request_ids: list[str]
    latents: Tensor
    timesteps: Tensor
    states: Sequence[StepRequestState] = field(default_factory=tuple)
    guidance: Tensor | None = None
    do_true_cfg: bool = False
    true_cfg_scale: float = USUAL_SCALE
    cfg_normalize: bool = False
    image_latents: Tensor | None = None

    @property
    def num_reqs(self) -> int:
        """How many requests there are."""
        return len(self.request_ids)

    @classmethod
    def make_batch(cls, states: Sequence[StepRequestState]) -> InputBatch:
        """The batch of `states`, which must have one `company`."""
        first = states[0]
        embeds, mask, lengths = _texts(states, "prompt_embeds", "prompt_embeds_mask", "txt_seq_lens")
        against = _texts(
            states, *(f"negative_{name}" for name in ("prompt_embeds", "prompt_embeds_mask", "txt_seq_lens"))
        )
        images = [each.sampling.image_latent for each in states]
        return cls(
            request_ids=[each.request_id for each in states],
            latents=torch.cat([_latents(each) for each in states]),
            timesteps=torch.cat([_per_row(each, each.current_timestep) for each in states]),
            states=tuple(states),
            guidance=None if first.guidance is None else torch.cat([_per_row(each, each.guidance) for each in states]),
            do_true_cfg=first.do_true_cfg,
            true_cfg_scale=first.sampling.true_cfg_scale or USUAL_SCALE,
            cfg_normalize=first.sampling.cfg_normalize,
            image_latents=None if images[0] is None else torch.cat([each for each in images if each is not None]),
            prompt_embeds=embeds,
            prompt_embeds_mask=mask,
            txt_seq_lens=lengths,
            negative_prompt_embeds=against[0],
            negative_prompt_embeds_mask=against[1],
            negative_txt_seq_lens=against[2],
            img_shapes=None
            if first.img_shapes is None
            else [shape for each in states for shape in each.img_shapes or ()],
        )

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)


def company(state: StepRequestState) -> Hashable:
    """What must be equal for two requests to be one batch: guidance, shapes, and lengths where no mask hides pads."""
    texts = [
        None if embeds is None else (embeds.shape[-1], None if mask is not None else embeds.shape[-2])
        for embeds, mask in (
            (state.prompt_embeds, state.prompt_embeds_mask),
            (state.negative_prompt_embeds, state.negative_prompt_embeds_mask),
        )
    ]
    image, latents, sampling = state.sampling.image_latent, _latents(state), state.sampling
    return (
        state.do_true_cfg,
        (sampling.guidance_scale, sampling.true_cfg_scale, sampling.cfg_normalize),
        (latents.shape[1:], latents.dtype),
        None if image is None else image.shape,
        state.guidance is None,
        *texts,
    )


def _latents(state: StepRequestState) -> Tensor:
    if state.latents is None:
        raise ValueError(f"request {state.request_id} has no latents; `prepare_encode` must make them")
    return state.latents


def _per_row(state: StepRequestState, value: Tensor | float | None) -> Tensor:
    """One number for every row of the latents, [B]."""
    latents = _latents(state)
    return torch.as_tensor(value, device=latents.device).reshape(-1).expand(latents.shape[0])


def _texts(
    states: Sequence[StepRequestState], embeds: str, mask: str, lengths: str
) -> tuple[Tensor | None, Tensor | None, list[int] | None]:
    """What the attributes of those names hold, of all requests, with short texts padded."""
    texts: list[Tensor] = [
        each if each.ndim == 3 else each[None] for s in states if (each := getattr(s, embeds)) is not None
    ]
    if not texts:
        return None, None, None
    masks: list[Tensor] = [
        each if each.ndim == 2 else each[None] for s in states if (each := getattr(s, mask)) is not None
    ]
    longest = max(text.shape[1] for text in texts)
    known = [length for s in states for length in getattr(s, lengths) or ()]
    if masks:
        known = known or [int(length) for each in masks for length in (each != 0).sum(-1)]
    joined = torch.cat([F.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])
    hidden = torch.cat([F.pad(each, (0, longest - each.shape[1])) for each in masks]) if masks else None
    return joined, hidden, known or None


StepInputBatch = InputBatch
"""Its other name."""


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
