"""`vllm_omni.diffusion.utils.prompt_utils`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omnimuse.compat.contract.names import no_name


def validate_prompt_sequence_lengths(
    attention_mask: Tensor,
    *,
    max_sequence_length: int,
    supported_max_sequence_length: int,
    prompt_name: str = "prompt",
    length_offset: int = 0,
    baseline_attention_mask: Tensor | None = None,
    error_context: str = "",
) -> None:
    """ValueError for a prompt of more tokens than were asked for.

    Of each row of `attention_mask` [B, S] those of a template are not counted: as many as its own mask has, and
    `length_offset` more.
    """
    counts = attention_mask.sum(dim=1) - length_offset
    if baseline_attention_mask is not None:
        counts = counts - baseline_attention_mask.sum(dim=1)
    longest = int(counts.max())
    if longest > max_sequence_length:
        raise ValueError(
            f"{prompt_name} has {longest} tokens {error_context}, and max_sequence_length={max_sequence_length}; make "
            f"it shorter, or use a max_sequence_length of up to {supported_max_sequence_length}"
        )


def __getattr__(name: str) -> Any:
    raise no_name(__name__, name)
