"""The frame that all step caches share: a stack runner that lets rows skip the middle of a stack, each by its policy.

A build pass sets a `StepCache` around whatever runs the last stack of a network. Every row has its own choice and
decides alone, and what it remembers is in its `Memory`; so requests with other choices or at other steps share a batch,
and blocks run for all rows that want them together. All rows that look at one place share one transfer to the host.

Of a row with a cache, the first blocks run at every step, then its policy decides about the middle, and the last blocks
run again at every step. A row without one is all first blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from omnimuse.cache.policies import COMPUTE, Policy, Verdict, Watch, policy_for
from omnimuse.cache.row import Row
from omnimuse.core.caches import OFF, CacheConfig, Fits, cache_named, completed, too_few
from omnimuse.core.errors import RequestError
from omnimuse.layers.stack import Block, Conditioning, Memory, PlainRunner, StackRunner, behind


@dataclass
class Visit:
    """One row on its way through the stack at one step: where its middle is, and what was found out."""

    memory: Memory
    policy: Policy | None
    row: Row
    start: int
    stop: int
    verdict: Verdict = COMPUTE
    seen: Tensor | None = None
    before: Tensor | None = None  # [S, D], where the middle begins
    after: Row | None = None

    def runs(self, start: int) -> bool:
        """Whether this row runs blocks from `start` on, none of them beyond an end of its middle; a verdict has it only
        from where that begins.
        """
        return start >= self.stop or not self.verdict.skip


class StepCache:
    """A stack runner around `inner` (default: the plain one). `default` is the choice of rows that have none of their
    own, `fits` what is known of the model.
    """

    name = "stepcache"

    def __init__(self, default: CacheConfig = OFF, fits: Fits | None = None, inner: StackRunner | None = None) -> None:
        self.fits = fits or Fits()
        self.default = completed(default, self.fits)
        self.inner = inner or PlainRunner()

    def __call__(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory] | None = None,
    ) -> Tensor:
        visits = [self._visit(memory, len(blocks)) for memory in memories or ()]
        if memories is None or all(visit.policy is None for visit in visits):
            return self.inner(blocks, hidden, cond, memories)
        begun = cond.layout.unpack(hidden)
        for start, stop in pairwise(sorted({0, len(blocks), *(v.start for v in visits), *(v.stop for v in visits)})):
            self._decide(blocks, hidden, cond, begun, {n: v for n, v in enumerate(visits) if v.start == start})
            rows = [number for number, visit in enumerate(visits) if visit.runs(start)]
            hidden = self._run(blocks[start:stop], hidden, behind(cond, start), memories, rows)
            hidden = _ended(hidden, cond, {n: v for n, v in enumerate(visits) if v.stop == stop > v.start})
        for visit in visits:  # only now, so that a step that failed can be tried again
            if visit.after is not None:
                visit.memory.data[self.name] = visit.after.emptied() if _is_last(visit.memory) else visit.after
        return hidden

    def probe(self, blocks: Sequence[Block[Any]], hidden: Tensor, cond: Conditioning) -> Tensor:
        return self.inner.probe(blocks, hidden, cond)

    def _visit(self, memory: Memory, blocks: int) -> Visit:
        key = f"{self.name}.policy"
        if key not in memory.data:
            memory.data[key] = self._policy(memory, blocks)
        policy, row = memory.data[key], memory.data.get(self.name, Row())
        if policy is None:
            return Visit(memory, None, row, blocks, blocks)
        return Visit(memory, policy, row, policy.choice.first or 0, blocks - (policy.choice.last or 0))

    def _policy(self, memory: Memory, blocks: int) -> Policy | None:
        """The policy of a row; RequestError for a choice that this stack has too few blocks for. What is evaluated once
        has no step that could be skipped.
        """
        if memory.steps == memory.of == 1:
            return None
        choice = self.default if memory.cache is None else cache_named(memory.cache)
        choice = completed(choice, self.fits, memory.of)
        if why := too_few(choice, blocks):
            raise RequestError(why, "cache")
        return policy_for(choice, self.fits)

    def _decide(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        begun: Sequence[Tensor],
        visits: dict[int, Visit],
    ) -> None:
        """The verdicts of rows whose middle begins here."""
        parts, seen = cond.layout.unpack(hidden), dict[Watch, Sequence[Tensor]]()
        watched = {policy.watches for visit in visits.values() if (policy := visit.policy)}
        if "probe" in watched:
            seen["probe"] = cond.layout.unpack(self.probe(blocks, hidden, cond))
        if "first" in watched:
            added = cond.layout.pack([now - before for now, before in zip(parts, begun, strict=True)])
            seen["first"] = cond.layout.unpack(blocks[0].telling(added, cond))
        looking = []
        for number, visit in visits.items():
            if (policy := visit.policy) is None:
                continue
            visit.before, visit.seen = parts[number], seen[policy.watches][number] if policy.watches else None
            if (verdict := policy.must(visit.row, visit.memory)) is None:
                looking.append((visit, policy))
            else:
                visit.verdict = verdict
        changes = relative_changes([(visit.row.seen, visit.seen) for visit, _ in looking])
        for (visit, policy), change in zip(looking, changes, strict=True):
            visit.verdict = policy.judge(visit.row, visit.memory, change)

    def _run(
        self,
        blocks: Sequence[Block[Any]],
        hidden: Tensor,
        cond: Conditioning,
        memories: Sequence[Memory],
        rows: list[int],
    ) -> Tensor:
        """Run the blocks for those rows only; the others stay as they are."""
        if len(rows) == len(memories):
            return self.inner(blocks, hidden, cond, memories)
        if not rows:
            return hidden
        layout, parts = cond.layout, cond.layout.unpack(hidden)
        some = cond.select(rows)
        out = self.inner(blocks, layout.take(hidden, rows), some, [memories[row] for row in rows])
        made = dict(zip(rows, some.layout.unpack(out), strict=True))
        return layout.pack([made.get(number, part) for number, part in enumerate(parts)])


def _ended(hidden: Tensor, cond: Conditioning, visits: dict[int, Visit]) -> Tensor:
    """`hidden` where the middle of some rows ends: with what was skipped, and that they remember it."""
    if not visits:
        return hidden
    parts = cond.layout.unpack(hidden)
    for number, visit in visits.items():
        policy, row, step = visit.policy, visit.row, visit.memory.step
        assert policy is not None
        assert visit.before is not None
        if visit.verdict.skip:
            parts[number] = visit.before + row.added.at(step)
            seen = _kept(visit.seen) if policy.always else row.seen
            visit.after = row.missed(seen, visit.verdict.drift, visit.verdict.growth)
        else:
            added = row.added.then(parts[number] - visit.before, step, policy.choice.order)
            visit.after = row.ran(_kept(visit.seen), added)
    skipped = any(visit.verdict.skip for visit in visits.values())
    return cond.layout.pack(parts) if skipped else hidden


def _kept(seen: Tensor | None) -> Tensor | None:
    """A copy: a view would keep the whole batch alive."""
    return None if seen is None else seen.clone()


def _is_last(memory: Memory) -> bool:
    return memory.step >= memory.steps - 1


def relative_changes(pairs: Sequence[tuple[Tensor | None, Tensor | None]]) -> list[float]:
    """mean|new - old| / mean|old| of each row, infinite where there is nothing to compare with.

    One transfer to the host for all rows, and none where nothing is compared.
    """
    found = [math.inf] * len(pairs)
    there = [
        (number, old, new)
        for number, (old, new) in enumerate(pairs)
        if old is not None and new is not None and old.shape == new.shape
    ]
    if there:
        means = [(new - old).abs().float().mean() / old.abs().float().mean() for _, old, new in there]
        for (number, *_), change in zip(there, torch.stack(means).tolist(), strict=True):
            found[number] = change
    return found
