"""Plans a load: which tensor of the files goes where in the network, and what does not fit. Names and shapes only.

Called by `weights` before any tensor is read, so that a wrong checkpoint is refused in milliseconds; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omnimuse.loader.differences import Differences, Shape
from omnimuse.loader.rules import Rule, Target, apply_rules


@dataclass(frozen=True)
class Piece:
    """Where one stored tensor goes: all of `target`, or from `start` to `stop` of it along `dim`."""

    target: str
    dim: int = 0
    start: int | None = None
    stop: int = 0


@dataclass
class Plan:
    """Pieces by name in the files, and what was found wrong on the way.

    `unexpected`: names in the files that go nowhere -> what is to be said beside a name.
    """

    pieces: dict[str, Piece] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: dict[str, str] = field(default_factory=dict)
    misshaped: list[tuple[str, Shape, Shape]] = field(default_factory=list)

    @property
    def differences(self) -> Differences:
        """What does not fit."""
        unexpected = tuple(name + said for name, said in self.unexpected.items())
        return Differences(tuple(self.missing), unexpected, tuple(self.misshaped))


def plan_load(
    stored: Mapping[str, Shape], wanted: Mapping[str, Shape], ties: Mapping[str, str], rules: Sequence[Rule]
) -> Plan:
    """How tensors of shapes `stored` fill places of shapes `wanted` under `rules`.

    `ties` maps each wanted name to the first name of the same memory: one of its names in the files is enough, and of
    several the first in the network's own order is read.
    """
    plan = Plan()
    coming: dict[str, dict[str, Target]] = {}
    for source in stored:
        target = apply_rules(source, rules)
        if target.name in wanted:
            coming.setdefault(target.name, {})[source] = target
        elif target.name:
            plan.unexpected[source] = ""
    for name, sources in coming.items():
        if any(target.fuse for target in sources.values()):
            _fuse(plan, name, wanted[name], sources, stored)
        else:
            _whole(plan, name, wanted[name], list(sources), stored)
    covered: dict[str, str] = {}
    for name in wanted:
        if name in coming and covered.setdefault(ties[name], name) != name:
            plan.pieces = {source: piece for source, piece in plan.pieces.items() if piece.target != name}
    plan.missing += [name for name in dict.fromkeys(ties.values()) if name not in covered]
    return plan


def _whole(plan: Plan, name: str, shape: Shape, sources: list[str], stored: Mapping[str, Shape]) -> None:
    source, *twice = sources
    plan.unexpected |= dict.fromkeys(twice, f" (goes to {name}, as {source} does)")
    plan.pieces[source] = Piece(name)
    if stored[source] != shape:
        plan.misshaped.append((source, shape, stored[source]))


def _fuse(plan: Plan, name: str, shape: Shape, sources: Mapping[str, Target], stored: Mapping[str, Shape]) -> None:
    """The parts of `name`, each at its offset along the fused dimension."""
    fuse = next(target.fuse for target in sources.values() if target.fuse)
    prefix = next(target.prefix for target in sources.values() if target.fuse)
    by_part = {target.part: source for source, target in sources.items() if target.fuse}
    plan.unexpected |= {source: f" (goes to {name} twice)" for source in sources if source not in by_part.values()}
    absent = [part for number, part in enumerate(fuse.parts) if number not in by_part]
    if absent:
        plan.missing += [f"{prefix}{part} (part of {name})" for part in absent]
        return
    ordered = [by_part[number] for number in range(len(fuse.parts))]
    whole = _concatenated([stored[source] for source in ordered], fuse.dim)
    if whole != shape:
        plan.misshaped.append((" + ".join(ordered), shape, whole or stored[ordered[0]]))
        return
    start = 0
    for source in ordered:
        stop = start + stored[source][fuse.dim]
        plan.pieces[source] = Piece(name, fuse.dim, start, stop)
        start = stop


def _concatenated(shapes: list[Shape], dim: int) -> Shape | None:
    """The shape of tensors of `shapes` laid end to end along `dim`; None if they do not go together."""
    rests = {(*shape[:dim], *shape[dim + 1 :]) for shape in shapes}
    if len(rests) != 1 or len({len(shape) for shape in shapes}) != 1 or dim >= len(shapes[0]):
        return None
    return (*shapes[0][:dim], sum(shape[dim] for shape in shapes), *shapes[0][dim + 1 :])
