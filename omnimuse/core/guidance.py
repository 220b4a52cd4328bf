"""How a family is guided, said once: what is encoded and evaluated, what is refused and what it costs follow from it.

A family's `Spec` holds one `Guidance`, or none if its networks are evaluated once per step. No torch; the arithmetic is
in `diffusion/guidance.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from omnimuse.core.params import DiffusionParams, FamilyParams

POSITIVE = "positive"
NEGATIVE = "negative"
BOTH = (POSITIVE, NEGATIVE)
ONLY_POSITIVE = (POSITIVE,)


@dataclass(frozen=True)
class Combination:
    """What is done beyond going along the line through two predictions.

    `norm_cap` bounds the result's norm to that many times the positive one's (0: no bound). `match_norm` gives every
    token the norm that it has in the positive one, by a factor within `match_within`; a token is `patch` x `patch`
    latents. Instead `per` "line" does so with the line of one channel. Guidance stops once the elapsed share of time
    passes `truncation`, and after the share `until` of the steps (1: never). A further branch `aside` leads away from
    itself by the factor `away`, or (where that is not 0) to the point `over` on the line from it through the result, in
    guided steps before which more than the first share of `while_done` of all are done,
    and less than the second.
    """

    norm_cap: float = 0.0
    match_norm: bool = False
    match_within: tuple[float, float] = (0.0, math.inf)
    patch: int = 1
    per: Literal["token", "line"] = "token"
    truncation: float = 1.0
    until: float = 1.0
    aside: str = ""
    away: float = 0.0
    over: float = 0.0
    while_done: tuple[float, float] = (0.0, 1.0)


def plain(extra: FamilyParams) -> Combination:
    """Nothing beyond the line."""
    return Combination()


def nothing(extra: FamilyParams) -> tuple[str, ...]:
    """No further branches."""
    return ()


@dataclass(frozen=True)
class Guidance:
    """Two predictions per step, p of the prompt and n of a negative prompt, and a point on the line through them.

    The parameters `scales` say which, one for each network of those that take turns; one that was left open is the one
    before it. Guidance is off up to the scale `neutral`: 1 counts from the negative prediction, n + s (p - n), 0 from
    the positive one, p + s (p - n). `negative` stands for a negative prompt that nobody gave; None: there is no
    guidance without one. Where it is not `given`, people may not give one. `how` tells from a request's own choices
    what is done besides, and `besides` in which further branches of its own making a family evaluates the prompt,
    guided or not. A step evaluates `most` branches, if all of these.
    """

    scales: tuple[str, ...] = ("guidance_scale",)
    neutral: Literal[0, 1] = 1
    negative: str | None = ""
    given: bool = True
    how: Callable[[FamilyParams], Combination] = plain
    besides: Callable[[FamilyParams], tuple[str, ...]] = nothing
    most: int = 2

    def scale(self, params: DiffusionParams, network: int = 0) -> float:
        """The scale of the steps of network number `network`."""
        chosen = [getattr(params, name) for name in self.scales[: network + 1]]
        return float(next((scale for scale in reversed(chosen) if scale is not None), self.neutral))

    def text(self, negative: str | None) -> str | None:
        """The negative prompt that counts."""
        return self.negative if negative is None else negative

    def needed(self, negative: str | None, params: DiffusionParams) -> tuple[str, ...]:
        """The branches that any step of such a request may evaluate."""
        return BOTH if self.text(negative) is not None and self._most(params) > self.neutral else ONLY_POSITIVE

    def branches(
        self, needed: tuple[str, ...], extra: FamilyParams, scale: float, elapsed: float, step: tuple[int, int] = (0, 1)
    ) -> tuple[str, ...]:
        """What a step at `scale` evaluates: those of the `needed` branches, and further ones.

        `elapsed` is the share of time before it; `step` is its number, from 0 on, and how many there are.
        """
        how, (index, count) = self.how(extra), step
        guided = scale > self.neutral and elapsed <= how.truncation and (index + 1) / count <= how.until
        first, last = (share * count for share in how.while_done)
        aside = (how.aside,) if how.aside and guided and first < index < last else ()
        return (*(needed if guided else ONLY_POSITIVE), *self.besides(extra), *aside)

    def objection(self, negative: str | None, params: DiffusionParams) -> str | None:
        """Why a negative prompt, or its absence, makes no sense beside the scales; None if it does."""
        name, scale = self.scales[0], self._most(params)
        if negative and not self.given:
            return "negative_prompt means nothing to this model, whose guidance is away from an empty one; leave it out"
        if negative and scale <= self.neutral:
            more = f"choose a scale above {self.neutral}, such as 4, or leave the prompt out"
            return f"negative_prompt does nothing while {name} is {scale:g}; {more}"
        if self.text(negative) is None and scale > self.neutral:
            less = f"give one or leave the scale at {self.neutral}"
            return f"{name}={scale:g} needs a negative_prompt, which may be empty; {less}"
        return None

    def _most(self, params: DiffusionParams) -> float:
        return max(self.scale(params, network) for network in range(len(self.scales)))
