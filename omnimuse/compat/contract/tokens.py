"""The tokens of a network of the contract shared out among ranks, as its `_sp_plan` says: cut here, joined there.

Its attention sites attend across the ranks meanwhile (`parallel/sequence.py`). The network's code is not changed: what
the plan names is called through a stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import BoundArguments
from typing import Any

import torch
from torch import Tensor, nn

from omnimuse.attention.layer import Attention as Site
from omnimuse.attention.layout import Layout
from omnimuse.compat.contract.surroundings import here
from omnimuse.compat.vllm_omni.diffusion.called import StandIn
from omnimuse.compat.vllm_omni.diffusion.distributed.sp_plan import SequenceParallelInput, SequenceParallelOutput
from omnimuse.core.config import Choice
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.plans import Cut
from omnimuse.parallel.collectives import gathered
from omnimuse.parallel.mesh import SEQUENCE, ULYSSES, Axis, Mesh
from omnimuse.parallel.sequence import Usp

PLAN = "_sp_plan"


class Shared(StandIn):
    """A part of a network whose arguments or outputs are cut into shares, or joined from those of all ranks."""

    def __init__(self, path: str, inner: nn.Module, entry: Any, axis: Axis) -> None:
        super().__init__(inner)
        self.path = path
        self.axis = axis
        self.joins = _joins(entry)
        self.cuts: Mapping[str | int, SequenceParallelInput] = {} if self.joins else entry
        for name, cut in self.cuts.items():
            if not isinstance(cut, SequenceParallelInput) or cut.auto_pad or isinstance(name, int) != cut.split_output:
                raise ConfigError(
                    f"{PLAN}[{path!r}][{name!r}]={cut} is not taken: write SequenceParallelInput, of an argument by "
                    "its name, or of an output by its number with split_output=True; nothing is padded (auto_pad)"
                )

        if unknown := [name for name in self.cuts if isinstance(name, str) and name not in self.takes.parameters]:
            raise ConfigError(f"{PLAN}[{path!r}] names {unknown[0]!r}, which that part does not take; correct the plan")

    def called(self, given: BoundArguments) -> Any:
        around = here("a network whose tokens ranks share")
        for name, cut in self.cuts.items():
            if isinstance(name, str) and (value := given.arguments.get(name)) is not None:
                given.arguments[name] = self._share(name, value, cut)
        around.spread = around.spread or bool(self.cuts)
        made = self.inner(*given.args, **given.kwargs)
        outs = list(made) if isinstance(made, tuple | list) else [made]
        for number, cut in self.cuts.items():
            if isinstance(number, int):
                outs[number] = self._share(f"output {number}", outs[number], cut)
        for number, join in enumerate(self.joins):
            outs[number] = self._joined(outs[number], join)
            around.spread = False
        return type(made)(outs) if isinstance(made, tuple | list) else outs[0]

    def _share(self, name: str, value: Any, cut: SequenceParallelInput) -> Tensor:
        if not isinstance(value, Tensor) or (cut.expected_dims not in (None, value.ndim)):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(f"{name} of {self.path!r} is {shape}, where {PLAN} expects {cut.expected_dims} dimensions")
        count, ranks = value.shape[cut.split_dim], self.axis.size
        if count % ranks:
            raise ModelError(
                f"{name} of {self.path!r} has {count} tokens, which {ranks} ranks cannot share evenly, as the contract "
                "wants it; use another size, or fewer ranks"
            )
        return value.chunk(ranks, cut.split_dim)[self.axis.index].contiguous()

    def _joined(self, value: Tensor, join: SequenceParallelOutput) -> Tensor:
        parts = gathered(self.axis, value[None], [1] * self.axis.size)
        return torch.cat([part[0] for part in parts], join.gather_dim)


def _joins(entry: Any) -> list[SequenceParallelOutput]:
    """What an entry of a plan says of outputs; none where it is about what is cut."""
    several = list(entry) if isinstance(entry, list | tuple) else [entry]
    return several if all(isinstance(each, SequenceParallelOutput) for each in several) else []


def share_tokens(pipe: nn.Module, mesh: Mesh) -> list[Choice]:
    """Stand-ins where the plans of its networks say, and sites that attend across ranks."""
    axis, choices = mesh.axis(SEQUENCE), []
    for path, network in list(pipe.named_modules()):
        kind = type(network)
        if not hasattr(kind, PLAN) or not (plan := getattr(kind, PLAN)):
            continue
        for name in sorted(plan, reverse=True):  # parts before the network itself
            _stand_in(pipe, f"{path}.{name}" if name else path, plan[name], axis)
        attend_across(path, network, mesh)
        choices.append(Choice("ranks", f"{path}, tokens", f"{axis.size} shares", f"asked for: as its {PLAN} says"))
    if not choices:
        raise ConfigError(
            f"ulysses_degree and ring_degree cannot be: no network of {type(pipe).__name__} has a {PLAN}; give it one"
        )
    return choices


def _stand_in(pipe: nn.Module, path: str, entry: Any, axis: Axis) -> None:
    owner_path, _, key = path.rpartition(".")
    try:
        owner, part = pipe.get_submodule(owner_path), pipe.get_submodule(path)
    except AttributeError as problem:
        raise ConfigError(f"{PLAN} names {path!r}, which is not there; correct it") from problem
    while isinstance(owner, StandIn):
        owner = owner.inner
    setattr(owner, key, Shared(path, part, entry, axis))


def attend_across(path: str, network: nn.Module, mesh: Mesh) -> None:
    """Let the sites of `network` attend across ranks; ConfigError for fewer heads than ranks."""
    for site in network.modules():
        if isinstance(site, Site):
            if site.num_heads < mesh.axis(ULYSSES).size:
                raise ConfigError(
                    f"ulysses_degree={mesh.axis(ULYSSES).size} cannot be: an attention of {path} has {site.num_heads} "
                    "heads here, and every rank needs one; use less, or ring_degree"
                )
            site.spread = Usp(mesh)


def attend(site: nn.Module, own: Sequence[Tensor], others: Sequence[Tensor | None], front: bool) -> Tensor:
    """Attention of this rank's share of the tokens, q, k, v [B, S, N, H], and of tokens that every rank has all of.

    -> the outcome of both, in the order that they were put in: [B, L + S, N, H], or [B, S + L, N, H].
    """
    mesh: Mesh = here("attention").mesh
    axis = mesh.axis(SEQUENCE)
    part, rows, count = Cut(axis.index, axis.size), own[0].shape[0], own[0].shape[1] * axis.size
    shared = [x for x in others if x is not None]
    length = shared[0].shape[1] if shared else 0
    if any(x.shape[1] != length for x in shared) or len(shared) not in (0, len(own)):
        raise ModelError("joint_query, joint_key and joint_value must be of the same tokens where ranks share a row")
    runs = ((length, count) if front else (count, length)) if length else (count,)
    layout = Layout((sum(runs),) * rows, (runs,) * rows).cut(part)
    start, stop = part.span(length)
    cuts: list[Tensor | None] = [x[:, start:stop] for x in shared]
    packed = [_ordered(cut, x, front) for cut, x in zip(cuts or [None] * len(own), own, strict=True)]
    found: Tensor = site(*packed, layout=layout)
    if not length:
        return found
    mine, here_too = stop - start, own[0].shape[1]
    pieces = found.split([mine, here_too] if front else [here_too, mine], dim=1)
    text, rest = pieces if front else pieces[::-1]
    sizes = [Cut(at, axis.size).share(length) for at in range(axis.size)]
    texts = torch.cat(gathered(axis, text.transpose(0, 1).contiguous(), sizes)).transpose(0, 1)
    return _ordered(texts, rest, front)


def _ordered(other: Tensor | None, own: Tensor, front: bool) -> Tensor:
    if other is None:
        return own
    return torch.cat([other, own] if front else [own, other], dim=1)
