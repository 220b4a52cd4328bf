"""TeaCache in networks of the contract: their extractors say what is watched, and what the blocks are.

An extractor does all that a network's `forward` does, in pieces, and stands in its place. So a policy of ours can look
at what is watched and leave out the blocks; what they added when they last ran is added again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.cache.policies import Policy, policy_for
from omnimuse.cache.row import Row
from omnimuse.cache.stepcache import relative_changes
from omnimuse.compat.contract.blocks import Calls, ContractStack
from omnimuse.compat.contract.surroundings import here, inside
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.config import TeaCacheConfig
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.context import CacheContext
from omnimuse.compat.vllm_omni.diffusion.cache.teacache.extractors import EXTRACTOR_REGISTRY, Extractor, get_extractor
from omnimuse.compat.vllm_omni.diffusion.called import call_instead
from omnimuse.core.caches import PRESETS, CacheConfig, Fits, cache_named, completed
from omnimuse.core.config import Choice, Config
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.layers.stack import Memory
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.parallel.collectives import summed
from omnimuse.parallel.mesh import SEQUENCE, WORK

NAME = "extracted"
TIMES = ("timestep", "timesteps", "t")
"""What networks call the argument that says at which time they are."""


def by_extractor(choice: CacheConfig) -> bool:
    """Whether that cache watches what an extractor says: TeaCache, under any of its names."""
    return choice.kind in ("teacache", *PRESETS)


class Extracted:
    """In the place of the `forward` of `network`, which is called `label` in its pipeline. `time` is the argument that
    tells steps apart; "" where there is none.
    """

    def __init__(self, network: nn.Module, label: str, choice: CacheConfig, fits: Fits) -> None:
        self.network, self.label = network, label
        self.extractor: Extractor = get_extractor(type(network).__name__)
        self.choice, self.fits = completed(choice, fits), fits
        self.takes = signature(network.forward)
        self.time = next((name for name in TIMES if name in self.takes.parameters), "")

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the call gives; an extractor is called as the network was."""
        with _first_block(self.network):
            context = self.extractor(self.network, *args, **kwargs)
        if not isinstance(context, CacheContext):
            kind = type(context).__name__
            raise ModelError(f"the extractor for {type(self.network).__name__} gave a {kind}; give a CacheContext")
        context.validate()
        calls: Calls | None = here("a network").calls if inside() else None
        if calls is None:
            return context.postprocess(context.run_transformer_blocks()[0])
        calls.at(self.takes.bind(*args, **kwargs).arguments.get(self.time))
        return context.postprocess(self._behind_blocks(context, calls.next(self.label)))

    def _behind_blocks(self, context: CacheContext, memory: Memory) -> Tensor:
        """The hidden states behind the blocks, which have run or not."""
        policy, row = self._policy(memory), memory.data.get(NAME, Row())
        if policy is None:
            return context.run_transformer_blocks()[0]
        before, seen = context.hidden_states.clone(), context.modulated_input.clone()
        if (verdict := policy.must(row, memory)) is None:
            verdict = policy.judge(row, memory, change_of(row.seen, seen))
        if verdict.skip:
            added = row.added.at(memory.step)
            found = part_of(before, added) + added
            row = row.missed(seen, verdict.drift, verdict.growth)
        else:
            found = context.run_transformer_blocks()[0]
            row = row.ran(seen, row.added.then(found - part_of(before, found), memory.step, policy.choice.order))
        memory.data[NAME] = row.emptied() if memory.step >= memory.steps - 1 else row
        return found

    def _policy(self, memory: Memory) -> Policy | None:
        """The policy of a branch, which knows how many steps there are; of one, there is none to skip."""
        key = f"{NAME}.policy"
        if key not in memory.data:
            once = memory.steps == memory.of == 1
            choice = self.choice if memory.cache is None else cache_named(memory.cache)
            memory.data[key] = None if once else policy_for(completed(choice, self.fits, memory.of), self.fits)
        found: Policy | None = memory.data[key]
        return found


def part_of(before: Tensor, behind: Tensor) -> Tensor:
    """What of the hidden states `before` the blocks those `behind` them belong to: this rank's tokens, where blocks
    share them out.
    """
    dims = [dim for dim in range(before.ndim) if before.shape[dim] != behind.shape[dim]]
    if not dims:
        return before
    ranks = here("a step cache").mesh.axis(SEQUENCE)
    if len(dims) > 1 or before.shape[dims[0]] != behind.shape[dims[0]] * ranks.size:
        shapes = f"{tuple(before.shape)} and {tuple(behind.shape)}"
        raise ModelError(f"an extractor's hidden_states and what its blocks give are {shapes}; give both of all tokens")
    return before.chunk(ranks.size, dims[0])[ranks.index]


def change_of(old: Tensor | None, new: Tensor) -> float:
    """How much what is watched has changed, the same on all ranks that run the network together."""
    ranks = here("a step cache").mesh.axis(WORK)
    if ranks.size == 1 or old is None or old.shape != new.shape:
        return relative_changes([(old, new)])[0]
    change, before = summed(ranks, torch.stack([(new - old).abs().float().sum(), old.abs().float().sum()])).tolist()
    return change / before if before else math.inf


def _first_block(network: nn.Module) -> AbstractContextManager[None]:
    """An extractor looks into the first block, which is there meanwhile, wherever blocks wait."""
    stack = next((part for part in network.modules() if isinstance(part, ContractStack)), None)
    if stack is None or not isinstance(stack.runner, LayerwiseOffload):
        return nullcontext()
    return stack.runner.visiting(stack.blocks()[0])


def extract(pipe: nn.Module, config: Config, own_loop: bool) -> list[Choice]:
    """Put extractors in the place of the `forward` of every network that has one; ConfigError where none has.

    With its `own_loop` a pipeline tells nobody of its steps, so its networks must be told their time.
    """
    choices = []
    for label, network in _networks(pipe).items():
        kind = type(network).__name__
        fits = TeaCacheConfig(coefficients=config.contract.coefficients or None, transformer_type=kind).fits
        extracted = Extracted(network, label, config.cache, fits)
        if own_loop and not extracted.time:
            raise ConfigError(
                f"TeaCache cannot tell the steps of {kind} apart, whose forward takes none of {', '.join(TIMES)}; "
                "give the loop away in the four methods"
            )
        call_instead(network, extracted.called)
        choices.append(Choice("cache", label, extracted.choice.kind, f"asked for: by the extractor for {kind}"))
    return choices


def _networks(pipe: nn.Module) -> Mapping[str, nn.Module]:
    """By their names in it, those with an extractor; ConfigError names one that has none."""
    found = {label: part for label, part in pipe.named_modules() if type(part).__name__ in EXTRACTOR_REGISTRY}
    if not found:
        get_extractor(type(dict(pipe.named_children()).get("transformer", pipe)).__name__)
    return found
