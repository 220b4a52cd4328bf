"""Blocks of networks, by name, while somebody looks: how long each took, how many bytes were held when it was done, and
a label of its own in a recording.

The runner looks for requests that want to know (`Ask.blocks`), and while it is recorded. Hooks stand on whatever is
called for a block, whoever runs it: blocks of our stacks, and the lists that networks of libraries have. On a device,
moments are marked and nobody waits. While nobody looks there is nothing on any block. What a library compiles whole has
no blocks left to tell of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import nn
from torch.profiler import record_function

from omnimuse.layers.stack import BlockStack
from omnimuse.offload.residency import Residency
from omnimuse.pipeline.stage import Loop
from omnimuse.pipeline.state import State
from omnimuse.worker.clock import Clock, Span


@dataclass(frozen=True)
class Ran:
    """One run of the block called `name`, such as `transformer.blocks.3`, of a component. `held` are the bytes that
    were held when it was done.
    """

    component: str
    name: str
    span: Span
    held: int = 0


class Blocks:
    """The blocks of all components. While the runner is `recorded`, they are always looked at. `held` tells the bytes
    that are held now.
    """

    def __init__(self, clock: Clock, held: Callable[[], int]) -> None:
        self.recorded = False
        self._clock, self._held = clock, held

    def watched(self, components: Residency, states: Iterable[State]) -> AbstractContextManager[list[Ran]]:
        """For the length of a `with` block what runs is added to the list, in order of ending, if a request of one of
        the `states` wants to know.
        """
        if not self.recorded:
            for state in states:
                if state.request.blocks:
                    break
            else:
                return nullcontext([])
        return self._watched(components)

    @contextmanager
    def _watched(self, components: Residency) -> Iterator[list[Ran]]:
        ran: list[Ran] = []
        with ExitStack() as hooks:
            for component in components:
                for name, called in named_blocks(component, components.wherever(component)):
                    self._watch(hooks, ran, component, name, called)
            yield ran

    def steps(self, stepping: Sequence[tuple[State, Loop]]) -> str:
        """Which steps these are, for a recording: `step 3 of 8`, of several at once each; nobody else wants to know."""
        if not self.recorded:
            return "step"
        at = [(state.position + 1, "" if loop.grows else f" of {len(state.plan)}") for state, loop in stepping]
        return " and ".join(f"step {step}{whole}" for step, whole in dict.fromkeys(at))

    def _watch(self, hooks: ExitStack, ran: list[Ran], component: str, name: str, called: nn.Module) -> None:
        under_way: list[tuple[record_function, Any]] = []

        def begin(*_: Any) -> None:
            label = record_function(name)
            label.__enter__()
            under_way.append((label, self._clock.mark()))

        def end(*_: Any) -> None:
            label, began = under_way.pop()
            span = self._clock.since(began)  # before memory is asked for, which takes its time
            ran.append(Ran(component, name, span, self._held()))
            label.__exit__(None, None, None)

        hooks.callback(called.register_forward_pre_hook(begin).remove)
        hooks.callback(called.register_forward_hook(end, always_call=True).remove)


def named_blocks(name: str, component: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every member of a list of modules that is in no other, and no list: its path, and what is called for it, or what
    may be, one after the other.
    """
    if not isinstance(component, nn.Module):
        return
    instead: dict[nn.Module, Sequence[nn.Module]] = {}
    for part in component.modules():
        if isinstance(part, BlockStack):
            instead.update(part.instead)
    for path, block in _members(name, component):
        for called in instead.get(block, (block,)):
            yield path, called


def _members(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for key, child in module.named_children():
        if child._compiled_call_impl is not None:
            continue  # a hook would be compiled, too
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield f"{path}.{key}", child
        else:
            yield from _members(f"{path}.{key}", child)


def runs_for(state: str, ran: Sequence[Ran], asked: Mapping[str, Set[str]]) -> list[Ran]:
    """What of a shared forward ran for one of the states that `asked` networks for a prediction: the blocks of these,
    and of components that no state asks by name, as a network may be the door to another's blocks.
    """
    if state not in asked:
        return []
    named = {network for networks in asked.values() for network in networks}
    return [each for each in ran if each.component in asked[state] or each.component not in named]


def seconds_of(runs: Mapping[tuple[str, str], list[Ran]]) -> dict[str, tuple[float, ...]]:
    """Seconds of every run of each block, of the output that took longest; `runs` are by name and output."""
    found: dict[str, tuple[float, ...]] = {}
    for (name, _), each in runs.items():
        found[name] = max(found.get(name, ()), tuple(ran.span.seconds() for ran in each), key=sum)
    return found


def held_of(runs: Mapping[tuple[str, str], list[Ran]]) -> dict[str, tuple[int, ...]]:
    """Bytes after every run of each block: the most of all outputs."""
    found: dict[str, tuple[int, ...]] = {}
    for (name, _), each in runs.items():
        found[name] = most(found.get(name, ()), [ran.held for ran in each])
    return found


def most(some: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    """The larger one in every place."""
    return tuple(map(max, zip_longest(some, others, fillvalue=0)))
