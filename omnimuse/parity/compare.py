"""Two trails beside each other, part by part, in the order in which one part follows from another.

Tensors are compared by the norm of their difference over the norm of the reference. Where a library packs them in
another way than we do, their numbers are compared in order of size, which is said; a result is always compared as it
is. Of guidance branches nobody tells us which is which on the other side, so the nearest prediction counts as the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from omnimuse.parity.decoding import GIVEN
from omnimuse.parity.notes import Evaluation, Trail

SORTED = "in order of size"
TOLERANCE = 1e-5
UNLIKE = float("inf")
"""How far apart tensors are that cannot be compared: of other sizes."""


Kind = Literal["text", "time steps", "block", "prediction", "latents", "decoder", "result"]
"""What can be compared, each in the order in which it follows from those before."""


@dataclass(frozen=True)
class Part:
    """One thing that was compared: of which kind, where, and how far apart it is.

    `step` counts from 1; it is 0 before and after the steps.
    """

    kind: Kind
    where: str
    apart: float
    step: int = 0
    how: str = ""


def compare(ours: Trail, theirs: Trail) -> list[Part]:
    """Everything that can be compared, in order."""
    assert ours.result is not None and theirs.result is not None
    steps = [part for number in range(min(len(ours.steps), len(theirs.steps))) for part in _step(number, ours, theirs)]
    first = [part for part in steps if part.step == 1]
    texts = [part for part in _texts(ours, theirs) if part.apart <= TOLERANCE or first_apart(first)]
    times = apart(torch.tensor(ours.timesteps), torch.tensor(theirs.timesteps))
    parts = [*texts, Part("time steps", "time steps", times), *steps]
    if len(ours.steps) != len(theirs.steps):
        parts.append(Part("time steps", f"{len(ours.steps)} steps here, {len(theirs.steps)} there", UNLIKE))
    return [*parts, *_decoder(ours, theirs), Part("result", "result", apart(ours.result, theirs.result))]


def first_apart(parts: Sequence[Part], tolerance: float = TOLERANCE) -> Part | None:
    """The first part that is further apart than it may be; NaN is."""
    return next((part for part in parts if not part.apart <= tolerance), None)


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over that of the reference; `UNLIKE` for other shapes, but for sides of 1."""
    ours, theirs = ours.float().cpu().squeeze(), theirs.float().cpu().squeeze()
    if ours.shape != theirs.shape:
        return UNLIKE
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-12))


def likeness(ours: Tensor, theirs: Tensor) -> tuple[float, str]:
    """How far apart, and how that was found, if the two may be packed in different ways."""
    if theirs.ndim == 2 and theirs.numel() > ours.numel() > 0 == ours.numel() % theirs.shape[1]:
        theirs = theirs[: ours.numel() // theirs.shape[1]]  # tokens of pictures that were shown come behind
    if (found := apart(ours, theirs)) < UNLIKE or ours.numel() != theirs.numel():
        return found, ""
    return apart(ours.flatten().sort().values, theirs.flatten().sort().values), SORTED


def _texts(ours: Trail, theirs: Trail) -> Iterator[Part]:
    """Each of our tensors with the nearest of the same size that the reference's network was given.

    That may be another one, where the reference has it in another form: it says nothing if the first step agrees.
    """
    for name, text in ours.texts.items():
        near = [_rows_apart(text, other) for other in theirs.texts.values() if other.ndim == text.ndim]
        if (best := min(near, default=UNLIKE)) < UNLIKE:
            yield Part("text", f"text {name}", best)


def _rows_apart(ours: Tensor, theirs: Tensor) -> float:
    """`apart`, where the reference may have pads behind: rows that we do not have."""
    behind = theirs[: len(ours)] if theirs.ndim > 1 else theirs
    return apart(ours, behind)


def _step(number: int, ours: Trail, theirs: Trail) -> Iterator[Part]:
    mine, others, step = ours.steps[number], theirs.steps[number], number + 1
    if len(others) < len(mine):
        yield Part("prediction", f"step {step}: {len(mine)} evaluations here, {len(others)} there", UNLIKE, step)
        return
    for one, other in zip(mine, _paired(mine, others), strict=True):
        where = f"step {step}, {one.branch}"
        yield from _blocks(step, where, one.blocks, other.blocks)
        found, how = likeness(one.prediction, other.prediction)
        yield Part("prediction", f"{where}, prediction of {one.network}", found, step, how)
    if theirs.latents:
        found, how = likeness(ours.latents[number], theirs.latents[number])
        yield Part("latents", f"step {step}, latents", found, step, how)


def _decoder(ours: Trail, theirs: Trail) -> Iterator[Part]:
    """What the decoder was given and what its parts made, where both sides have such parts and go the same way."""
    for name, made in ours.decoded.items():
        other = theirs.decoded.get(name)
        if other is not None and other.shape == made.shape:
            where = "what the decoder is given" if name == GIVEN else f"decoder, {name}"
            yield Part("decoder", where, apart(made, other))


def _paired(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> Sequence[Evaluation]:
    """The reference's evaluations in the order of ours: that in which the predictions are nearest."""

    def distance(order: Sequence[Evaluation]) -> float:
        pairs = zip(ours, order, strict=True)
        return sum(min(likeness(mine.prediction, other.prediction)[0], 1e9) for mine, other in pairs)

    return min(permutations(theirs, len(ours)), key=distance)


def _blocks(
    step: int, where: str, ours: Mapping[str, list[list[Tensor]]], theirs: Mapping[str, list[list[Tensor]]]
) -> Iterator[Part]:
    for stack, blocks in ours.items():
        if (others := _same_number(stack, len(blocks), theirs)) is None:
            continue
        for number, (block, (name, other)) in enumerate(zip(blocks, others, strict=True)):
            found = _block_apart(block[0], other)
            yield Part("block", f"{where}, block {number} of {stack} ({name} there)", found, step)


def _same_number(
    stack: str, count: int, lists: Mapping[str, list[list[Tensor]]]
) -> list[tuple[str, list[Tensor]]] | None:
    """The list of that name, or neighbouring ones, the last such, if they have `count` blocks together."""
    if stack in lists and len(lists[stack]) == count:
        lists = {stack: lists[stack]}
    named = [[(f"{name}.{index}", block) for index, block in enumerate(blocks)] for name, blocks in lists.items()]
    for end in range(len(named), 0, -1):
        for start in range(end - 1, -1, -1):
            joined = [block for part in named[start:end] for block in part]
            if len(joined) == count:
                return joined
    return None


def _block_apart(ours: Tensor, theirs: Sequence[Tensor]) -> float:
    """The tokens of all streams are one sequence here; there they may be several, in any order, with pads behind.

    A stream whose tokens nobody sees after a last block may be missing there: then the others are compared.
    """
    orders = [order for count in range(1, len(theirs) + 1) for order in permutations(theirs, count)]
    fitting = [torch.cat(list(order)) for order in orders if len({tensor.shape[-1] for tensor in order}) == 1]
    if (found := min((_rows_apart(ours, each) for each in fitting), default=UNLIKE)) < UNLIKE:
        return found
    some = [(each, len(each)) for each in fitting if len(each) < len(ours)]
    return min((apart(part, each) for each, count in some for part in (ours[-count:], ours[:count])), default=UNLIKE)
