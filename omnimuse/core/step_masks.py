"""Step masks: which steps of a request a step cache must compute, as words or as a digit for every step.

The words and what they mean are those of cache-dit's step computation masks ("SCM"): runs of computed steps and of
others in turn, drawn for 28 steps and for the few of distilled models. For fewer steps than a drawing has, its last
runs give way; for more than 28, all runs grow by the same share. The last step is always computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, zip_longest
from types import MappingProxyType

from omnimuse.core.errors import ConfigError

Runs = tuple[int, ...]
MASKS = ("slow", "medium", "fast", "ultra")
_DRAWN: Mapping[int, tuple[Runs, ...]] = MappingProxyType(
    {
        4: ((2, 1, 1),) * 4,
        6: ((3, 2, 1),) * 4,
        8: ((5, 1, 2), (4, 1, 1, 1, 1), (3, 1, 1, 2, 1), (2, 2, 1, 2, 1)),
        9: ((5, 1, 3), (5, 1, 1, 1, 1), (4, 1, 1, 2, 1), (3, 2, 1, 2, 1)),
        15: (
            (4, 1, 2, 1, 2, 1, 2, 1, 1),
            (4, 1, 2, 1, 1, 2, 1, 2, 1),
            (3, 1, 1, 2, 1, 2, 1, 3, 1),
            (2, 1, 1, 2, 1, 3, 1, 3, 1),
        ),
        28: (
            (8, 1, 3, 2, 3, 2, 2, 2, 1, 3, 1),
            (6, 1, 2, 3, 2, 3, 2, 3, 2, 3, 1),
            (6, 1, 1, 3, 1, 4, 1, 5, 1, 4, 1),
            (4, 2, 1, 5, 1, 6, 1, 7, 1),
        ),
    }
)  # fmt: skip
"""For so many steps at most, by word: how many are computed, how many may be skipped, computed again, and so on."""


def least_steps(mask: str) -> int:
    """The fewest steps, of more than one, for which there is such a mask."""
    return min(_DRAWN) if mask in MASKS else len(mask)


def step_mask(mask: str, steps: int) -> str:
    """A digit for each of `steps` steps, of a word or of digits; ConfigError for another number of digits."""
    if mask not in MASKS:
        if len(mask) != steps:
            raise ConfigError(
                f"cache mask={mask!r:.80} is for {len(mask)} steps and the network is evaluated {steps} times; give "
                f"{steps} digits, or one of {', '.join(MASKS)}"
            )
        return mask
    if steps < min(_DRAWN):
        raise ConfigError(
            f"cache mask={mask!r} is drawn for {min(_DRAWN)} steps at least and the network is evaluated {steps} "
            "times; give a digit for every step"
        )
    drawn = next((most for most in _DRAWN if steps <= most), max(_DRAWN))
    runs = list(_DRAWN[drawn][MASKS.index(mask)])
    pairs = _shortened(_grown(runs, drawn, steps), steps)
    return "".join("1" * computed + "0" * skipped for computed, skipped in pairs)[:-1] + "1"


def _grown(runs: Sequence[int], drawn: int, steps: int) -> list[int]:
    """Until they cover all steps, runs grow in turn by half of their share of them, and the last one by a step."""
    grown, last = list(runs), len(runs) - 1
    for number in cycle(range(len(runs))):
        if sum(grown) >= steps:
            return grown
        grown[number] += 1 if number == last else max(int(runs[number] * (steps / drawn * 0.5)), 1)
    raise AssertionError("a cycle has no end")


def _shortened(runs: Sequence[int], steps: int) -> list[tuple[int, int]]:
    """The last run of skipped steps and the last of computed ones give up a step in turn, until no more are there than
    there should be: pairs of a run of computed steps and one of others.
    """
    computed, skipped = list(runs[::2]), list(runs[1::2])
    for giving in cycle((skipped, computed)):
        if sum(computed) + sum(skipped) <= steps:
            break
        if giving:
            giving[-1] -= 1
            if not giving[-1]:
                giving.pop()
    return list(zip_longest(computed, skipped, fillvalue=0))
