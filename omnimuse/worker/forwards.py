"""The forwards of one tick: rows share them where they can, a failure is narrowed down, ranks learn all outcomes.

The runner hands in the rows of all states that step together. Whatever a network raises comes back as the failure of
the states whose rows raised it.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

from torch import Tensor

from omnimuse.core.caches import cache_named
from omnimuse.core.config import ScheduleConfig
from omnimuse.core.errors import ConfigError, MemoryShortageError, OmnimuseError
from omnimuse.core.guidance import NEGATIVE, POSITIVE
from omnimuse.core.request import Request
from omnimuse.layers.network import Network
from omnimuse.parallel.agree import agree_on_forward
from omnimuse.parallel.branches import share
from omnimuse.parallel.mesh import WORK, Mesh
from omnimuse.parallel.shortage import is_shortage
from omnimuse.pipeline.rows import forward, group
from omnimuse.pipeline.stage import Context, Row
from omnimuse.worker.aside import Aside, can_wait
from omnimuse.worker.clock import Clock, Span
from omnimuse.worker.crew import Crew
from omnimuse.worker.failures import free_memory, settle
from omnimuse.worker.pace import Offer, Pace, Party
from omnimuse.worker.teams import Shares, joins, shared_out, teams_for

log = logging.getLogger(__name__)

Predictions = dict[str, dict[str, Tensor]]
"""By state and branch."""
PIECE = 128
"""Row tokens of what takes no longer than a piece of a prompt does."""
AGAIN = 256
"""Forwards of a network after which it is tried again whether what was too much together still is."""
LATER = 8
"""Steps after which an accelerator is asked how long one took: it is over by then, and nobody waits."""


class Forwards:
    """Evaluates rows. `count` forwards were begun, `retries` (by network) of them again, after they had failed, and
    `asides` of these with their network's blocks outside of the device. `divided` counts ticks by their teams. Rows for
    which memory ran out together do not run together again for a while: `fewer` are the tokens that a forward may have.

    `pace` learns how long they take, on a CPU: elsewhere the host does not wait for them. `shares` learns what ranks
    gain that may be divided, of steps that are over in any case.
    """

    def __init__(self, ctx: Context, config: ScheduleConfig, clock: Clock, crew: Crew | None) -> None:
        self.ctx = ctx
        self.clock = clock
        self.config = config
        self.at_work: Callable[[], AbstractContextManager[None]] = nullcontext if crew is None else crew.at_work
        self.count = 0
        self.retries: Counter[str] = Counter()
        self.asides: Counter[str] = Counter()
        self.divided: Counter[int] = Counter()
        self.fewer: dict[str, int] = {}
        self._until: dict[str, int] = {}
        self._away: dict[str, Aside] = {}
        self._begun = 0
        self.pace = Pace()
        self.shares = Shares()
        self._unread: deque[tuple[str, int, int, Span]] = deque()

    def joins(self, party: Party, offer: Offer, usual: str | None) -> bool:
        """Whether `offer` should step in one tick with the `party`; `usual` is the network of who has none.

        On an accelerator company is not measured. Where ranks may be divided, it is reckoned. Who shares no forward
        with anybody may come along with those that write, if it makes none of them wait for long: it need not wait
        until they have written all.
        """
        if self.config.company == "always":
            return True
        if self.ctx.mesh.teams.meshes:
            offers = [*party.offers, offer]
            return joins(offers, self._divisions, self.shares.among(offers))
        if self.ctx.device.type != "cpu":
            return True
        networks = party.networks if offer.network in party.networks else party.networks | {offer.network}
        if None in networks:
            networks = networks - {None} or {usual}
        if None in networks or self.config.exact:
            return False
        network = str(usual if offer.network is None else offer.network)
        if not self._writing.issuperset(networks):
            return len(networks) == 1 and self.pace.pays(network, party, offer)
        alike = party.alike(network, offer.tokens)
        if alike is not party and max(offer.tokens, *party.counts) > PIECE:
            return False
        return not alike.offers or self.pace.pays(network, alike, offer)

    def teams(self, asked: Iterable[tuple[Request, Offer]]) -> int:
        """Into how many teams ranks are divided for a step of each of these.

        What a step cache remembers is on all ranks, so that all take part in every step of who wears one.
        """
        if not self.ctx.mesh.teams.meshes:
            return 1
        offered, divisions = list(asked), self._divisions
        if any(not cache_named(request.params.cache or "none").off for request, _ in offered):
            return 1
        offers = [offer for _, offer in offered]
        if len(offers) == 1 and (tried := self.shares.trial(offers[0], divisions)) is not None:
            return tried
        return teams_for([offer.tokens for offer in offers], divisions, self.shares.among(offers))[0]

    @cached_property
    def _writing(self) -> frozenset[str]:
        """The networks whose rows are tokens that are read or written."""
        parts = ((name, self.ctx.components.wherever(name)) for name in self.ctx.components)
        return frozenset(name for name, part in parts if isinstance(part, Network) and part.packing == "tokens")

    @property
    def _divisions(self) -> tuple[int, ...]:
        return (1, *self.ctx.mesh.teams.meshes)

    def evaluate(self, rows: Sequence[Row], teams: int = 1) -> tuple[Predictions, dict[str, OmnimuseError]]:
        """Predictions by state and branch, and the failures by state; every rank learns all of both.

        In several `teams`, each evaluates the rows of some states.
        """
        found, failures = dict[int, Tensor](), dict[int, OmnimuseError]()
        self.divided[teams] += 1
        self._begun = 0
        with self.ctx.mesh.divided(teams) as mesh:
            mine, owners = rows, list[tuple[int, ...]]()
            if mesh.size > 1:
                owners, here = _owners(mesh, rows, teams), mesh.axis("branches").index
                mine = [row for row, theirs in zip(rows, owners, strict=True) if here in theirs]
            began = self.clock.mark()
            self._hope()
            parts = group(self.ctx, mine, exact=self.config.exact, tokens=self.config.tick_tokens, fewer=self.fewer)
            for part in parts:
                self._forward(part, found, failures)
            if self.ctx.mesh.teams.meshes and not failures:
                self._see(mine, self.clock.since(began))
            if mesh.size > 1:
                found, failures = self._share(mesh, rows, owners, found, failures)
        predictions: Predictions = {}
        for row in rows:
            if id(row) in found:
                predictions.setdefault(row.state.id, {})[row.branch] = found[id(row)]
        return predictions, {row.state.id: failures[id(row)] for row in rows if id(row) in failures}

    def _see(self, rows: Sequence[Row], span: Span) -> None:
        """Learn from a step of one state, what its ranks took; on an accelerator, some steps later, when it is over."""
        if rows and len({row.state.id for row in rows}) == 1:
            ranks = self.ctx.mesh.now.axis(WORK).size
            self._unread.append((rows[0].network, ranks, sum(row.tokens for row in rows), span))
        while len(self._unread) > (0 if self.ctx.device.type == "cpu" else LATER):
            network, ranks, tokens, over = self._unread.popleft()
            self.shares.record(network, ranks, tokens, over.seconds())

    def _forward(self, rows: Sequence[Row], found: dict[int, Tensor], failures: dict[int, OmnimuseError]) -> None:
        """One forward; when it fails, smaller ones: only the guilty fail, and what was too much together fits. What is
        too much alone has one more try, with the network's blocks outside of the device.
        """
        failure = self._try(rows, found)
        if failure is None:
            return
        short = isinstance(failure, MemoryShortageError)
        if short:
            self.ctx.components.forgo()
            free_memory(self.ctx.device)
            self._narrow(rows)
        parts = _smaller(rows, short)
        if not parts:
            failures.update((id(row), failure) for row in rows)
            return
        self._note(rows, failure, len(parts))
        for part in parts:
            if len(part) > 1:
                self._forward(part, found, failures)
            elif (failure := self._try(part, found)) is not None:
                failure = self._try_aside(part, found, failure)
            if len(part) == 1 and failure is not None:
                failures[id(part[0])] = failure

    def _narrow(self, rows: Sequence[Row]) -> None:
        """Memory ran out for `rows`: half of that is tried at once from now on. Several ranks must divide alike."""
        if len(rows) > 1 and self.ctx.mesh.size == 1:
            self.fewer[rows[0].network] = sum(row.tokens for row in rows) // 2
            self._until[rows[0].network] = self.count + AGAIN

    def _hope(self) -> None:
        """Others may have left memory behind since it ran out."""
        for network in [name for name, until in self._until.items() if self.count >= until]:
            del self._until[network]
            self.fewer.pop(network, None)
            if network in self._away:
                self._bring_back(network)

    def _bring_back(self, network: str) -> None:
        """Its blocks, which wait outside of the device. Where there is no room for them any more, as others took it,
        they go on waiting, and it is tried again later.
        """
        free_memory(self.ctx.device)
        try:
            self._away[network].end()
            del self._away[network]
        except (MemoryError, RuntimeError) as problem:
            if not is_shortage(problem):
                raise
            self._until[network] = self.count + AGAIN
            log.warning("blocks of %s wait outside of the device until there is room: %s", network, problem)

    def _try(self, rows: Sequence[Row], found: dict[int, Tensor]) -> OmnimuseError | None:
        self.count, self._begun = self.count + 1, self._begun + 1
        began = self.clock.mark() if (timed := self.ctx.device.type == "cpu") else None
        try:
            with self.at_work():
                outputs = forward(self.ctx, rows)
            if timed:
                tokens = dict[str, int]()
                for row in rows:
                    tokens[row.state.id] = tokens.get(row.state.id, 0) + row.tokens
                seconds = self.clock.since(began).seconds() / rows[0].state.stride
                self.pace.record(rows[0].network, list(tokens.values()), seconds)
            found.update((id(row), output) for row, output in zip(rows, outputs, strict=True))
            return None
        except Exception as error:  # the worker loop
            caught = error
        failure = settle(caught, rows[0].network)
        names = " ".join(f"{row.state.id}/{row.branch}" for row in rows)
        agree_on_forward(self.ctx.mesh.now, f"forward {self._begun} {names}", failure)
        return failure

    def _try_aside(self, rows: Sequence[Row], found: dict[int, Tensor], failure: OmnimuseError) -> OmnimuseError | None:
        """Once more while blocks wait outside of the device, if memory ran out and they can. Ranks do not: the others
        would go on without this one.
        """
        name, components = rows[0].network, self.ctx.components
        if self.ctx.mesh.size > 1 or not isinstance(failure, MemoryShortageError) or not can_wait(components, name):
            return failure
        self._note(rows, failure, 1, ", with its blocks outside of the device")
        self.asides[name] += 1
        free_memory(self.ctx.device)
        try:
            self._away[name] = Aside(components.wherever(name), self.ctx.device)
        except (OSError, MemoryError, RuntimeError, ConfigError) as problem:  # no room where blocks would wait
            log.warning("blocks of %s cannot wait outside of the device: %s", name, problem)
            return failure
        try:
            again = self._try(rows, found)
        finally:
            self._bring_back(name)
        told = f"memory ran out in a step of {name}, which was done with its blocks outside of the device"
        if again is None and told not in rows[0].state.said:
            rows[0].state.said.append(told)
        return again

    def _note(self, rows: Sequence[Row], failure: OmnimuseError, parts: int, how: str = "") -> None:
        """A retry makes everybody slower, so it is counted, and told the first time."""
        network = rows[0].network
        if not (self.asides if how else self.retries)[network]:
            log.warning(
                "a forward of %s with %d rows failed and is tried again as %d%s: %s "
                "(told once; the metric of retries counts them)",
                *(network, len(rows), parts, how, failure),
            )
        self.retries[network] += 1

    def close(self) -> None:
        """No network computes any more."""
        for aside in self._away.values():
            aside.close()

    def _share(
        self,
        mesh: Mesh,
        rows: Sequence[Row],
        owners: Sequence[Sequence[int]],
        found: dict[int, Tensor],
        failures: dict[int, OmnimuseError],
    ) -> tuple[dict[int, Tensor], dict[int, OmnimuseError]]:
        """What all ranks found, and what any of them failed at, agreed on by all."""
        told = [(row, owner) for row, theirs in zip(rows, owners, strict=True) for owner in theirs]
        mine = {i: found.get(id(row), failures.get(id(row))) for i, (row, _) in enumerate(told)}
        owned = {i: outcome for i, outcome in mine.items() if outcome is not None}
        agreed = share(mesh, owned, [owner for _, owner in told], self.ctx.device)
        outcomes = [(id(row), outcome) for (row, _), outcome in zip(told, agreed, strict=True)]
        failed = {key: outcome for key, outcome in outcomes if isinstance(outcome, OmnimuseError)}
        made = {key: outcome for key, outcome in reversed(outcomes) if isinstance(outcome, Tensor)}  # its first owner's
        return {key: outcome for key, outcome in made.items() if key not in failed}, failed


def _smaller(rows: Sequence[Row], short: bool) -> list[list[Row]]:
    """What to try after a forward of `rows` failed: each state alone, or where memory was `short`, each branch of one.

    A single row is tried again where memory was short, since what others had left behind is freed by then.
    """
    by_state: dict[str, list[Row]] = {}
    for row in rows:
        by_state.setdefault(row.state.id, []).append(row)
    if len(by_state) > 1:
        return list(by_state.values())
    return [[row] for row in rows] if short else []


def _owners(mesh: Mesh, rows: Sequence[Row], teams: int) -> list[tuple[int, ...]]:
    """The indices, on the branches axis, of who evaluates each of `rows`; the same on every rank."""
    every = tuple(range(mesh.axis("branches").size))
    team: dict[str, int] = {}
    if teams > 1:
        tokens: Counter[str] = Counter()
        for row in rows:
            tokens[row.state.id] += row.tokens
        team = dict(zip(tokens, shared_out(list(tokens.values()), teams), strict=True))
    alone = [team[row.state.id] if team else owner_of(mesh, row.branch) for row in rows]
    return [every if row.everywhere else (one,) for row, one in zip(rows, alone, strict=True)]


def owner_of(mesh: Mesh, branch: str) -> int:
    """The index, on the branches axis, of the rank that computes `branch`: the positive one is rank 0's, the negative
    one the next one's, and further ones are the last one's.
    """
    return min({POSITIVE: 0, NEGATIVE: 1}.get(branch, 2), mesh.axis("branches").size - 1)
