"""Weights of four bits in the order in which torch's kernel for few rows reads them on a processor.

A layer is laid so once its weights are read (`worker/abreast.py`), and only in memory: files know nothing of it. What
is multiplied with many tokens becomes floats from this order, too, so that weights are there once.

Letters: R rows of one token each, K inputs, N outputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from omnimuse.layers.steady import agreeing, trial, trial_row
from omnimuse.quant.schemes import Packing, Parts, Reading

TOGETHER = {"AVX512": 64, "AVX2": 32}
"""How many outputs lie beside each other for the kernel of each kind of processor; elsewhere it is slow."""
GROUPS = (32, 64, 128, 256)
"""Inputs that may share a scale in it."""
MIDDLE = 8
"""The code that stands for the middle of a group, as the kernel has it: floors are as many steps below."""
AT_ONCE = 256
"""Outputs that become floats, or are laid, at once: what that takes stays near the processor."""
MOST = 128
"""Rows up to which reading the weights once is faster than floats of all of them."""
HEIGHTS = (67, 16, 5, 4, 3, 2, 1)
"""Numbers of rows with which is tried whether a row depends on its company."""


@runtime_checkable
class Fours(Packing, Protocol):
    """A packing that has whole numbers from 0 to 15, a scale and a floor for every so many inputs."""

    def fours(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers, uint8 [N, K], the scales and the floors, float32 [N, G] each."""
        ...


@dataclass(frozen=True)
class Abreast(Packing, Reading):
    """Of each `together` outputs a byte for every input and two of them: one of the first half, one of the other.

    Scale and middle of a group of inputs are pairs in bfloat16, as the inputs of the kernel are.
    """

    group: int
    together: int

    def empty(self, outputs: int, inputs: int) -> dict[str, Tensor]:
        pairs = torch.empty(inputs // self.group, outputs, 2, dtype=torch.bfloat16, device="meta")
        return {
            "weight": torch.empty(outputs, inputs // 2, dtype=torch.uint8, device="meta"),
            "weight_scale": pairs,
        }

    def unpack(self, parts: Parts) -> Tensor:
        packed, pairs = parts["weight"], parts["weight_scale"].float().permute(2, 1, 0).contiguous()  # [2, N, G]
        found = torch.empty(len(packed), 2 * packed.shape[1], device=packed.device)
        scale, floor = pairs[0], pairs[1] - MIDDLE * pairs[0]
        rows = zip(*(each.split(AT_ONCE) for each in (packed, scale, floor, found)), strict=True)
        for some, steps, least, floats in rows:
            both = some.view(-1, floats.shape[1], self.together // 2).transpose(1, 2).contiguous()
            halves = floats.view(-1, 2, self.together // 2, floats.shape[1])
            halves[:, 0], halves[:, 1] = both & 15, both >> 4
            floats.unflatten(1, (-1, self.group)).mul_(steps[..., None]).add_(least[..., None])
        return found

    def most(self, inputs: int) -> int:
        return MOST

    def few_product(self, x: Tensor, parts: Parts) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), parts["weight"], self.group, parts["weight_scale"]
        )


def abreast_for(packing: Packing, outputs: int, inputs: int) -> Abreast | None:
    """How weights that are packed so are laid on this processor, or None where they stay as they are."""
    if not isinstance(packing, Fours):
        return None
    groups = packing.fours(packing.empty(1, inputs))[1].shape[1]
    group, together = inputs // max(groups, 1), outputs_together()
    fits = group in GROUPS and group * groups == inputs and together and outputs % together == 0
    return Abreast(group, together) if fits else None


def laid(packing: Packing, parts: Parts, abreast: Abreast) -> dict[str, Tensor]:
    """The parts of weights that are packed as `Fours`, laid `abreast`."""
    assert isinstance(packing, Fours)
    outputs, found = packing.outputs(parts), dict[str, Tensor]()
    for start in range(0, outputs, AT_ONCE):
        whole, scale, floor = packing.fours({name: part[start : start + AT_ONCE] for name, part in parts.items()})
        found = found or {
            name: torch.empty_like(each, device=whole.device)
            for name, each in abreast.empty(outputs, whole.shape[1]).items()
        }
        found["weight"][start : start + AT_ONCE] = set_abreast(whole, abreast.together)
        pairs = torch.stack((scale, floor + MIDDLE * scale), 2)  # [n, G, 2]
        found["weight_scale"][:, start : start + AT_ONCE] = pairs.transpose(0, 1)
    return found


def set_abreast(whole: Tensor, together: int) -> Tensor:
    """Numbers of four bits, uint8 [n, K] -> as they are laid, [n, K / 2]."""
    first, second = whole.view(-1, 2, together // 2, whole.shape[1]).unbind(1)
    return (first | (second << 4)).transpose(1, 2).reshape(len(whole), -1)


def outputs_together(kind: str = "") -> int:
    """How many outputs lie beside each other on processors of that kind (as torch calls it; "": this one); 0 where
    torch has no fast kernel for it, reads another order here, or gives a row other bits in company.
    """
    return _tried(TOGETHER.get(kind or torch.backends.cpu.get_cpu_capability(), 0))


@cache
def _tried(together: int) -> int:
    """`together`, if so many lie beside each other for torch's kernel on this machine, else 0."""
    if not together:
        return 0
    inputs = 2 * GROUPS[-1]
    numbers = trial(2 * together, inputs)
    whole = ((numbers + 1) * 7.5).to(torch.uint8)
    order = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole.int(), 1)
    weight = set_abreast(whole, together)
    if not torch.equal(order.flatten(), weight.flatten()):
        return 0
    abreast = Abreast(GROUPS[0], together)
    parts = {"weight": weight, "weight_scale": trial(2 * together * inputs // GROUPS[0], 2).bfloat16()}
    parts["weight_scale"] = parts["weight_scale"].view(-1, 2 * together, 2)
    rows = trial_row(inputs).bfloat16().expand(HEIGHTS[0], -1).contiguous()
    return together if agreeing(rows, HEIGHTS, lambda x: abreast.few_product(x, parts)) == HEIGHTS else 0
