"""What each side notes of one output on its way from the prompt to the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Evaluation:
    """One row of a network in one step: what its blocks made, by list of blocks, and what it predicted.

    A block's outcome is one or several tensors [S, D]; `branch` is empty where nobody says which one it is. `texts`
    are the tensors by name that it was given beside the latents.
    """

    network: str
    branch: str
    blocks: dict[str, list[list[Tensor]]]
    prediction: Tensor
    texts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Trail:
    """Everything that one side noted: `steps` are the evaluations of each, `latents` what it left, float32, `decoded`
    what the decoder was given and what each of its parts made of that.
    """

    texts: Mapping[str, Tensor] = field(default_factory=dict)
    timesteps: list[float] = field(default_factory=list)
    steps: list[list[Evaluation]] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    decoded: dict[str, Tensor] = field(default_factory=dict)
    result: Tensor | None = None
    seconds: float = 0.0
