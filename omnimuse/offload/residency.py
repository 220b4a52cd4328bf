"""Residency: who of a pipeline's components is on the device.

The context of a pipeline hands components out through it, so whoever has one can compute with it. Knows names and
parcels; the order in which components are wanted follows from the stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omnimuse.offload.parcels import Parcel


class Residency(Mapping[str, Any]):
    """Components by name. Those with a parcel take turns: one comes in when it is asked for, and the others leave.

    So a loop with two networks, or a preview in the middle of a loop, needs room for one of them. A stage that computes
    with several at once says so by `using`.
    """

    def __init__(self, components: Mapping[str, Any], parcels: Mapping[str, Parcel] | None = None) -> None:
        self._components = dict(components)
        self._parcels = dict(parcels or {})
        self._held: frozenset[str] = frozenset()
        self._expected: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        component = self._components[name]
        parcel = self._parcels.get(name)
        if parcel is not None and not parcel.inside:
            for other, theirs in self._parcels.items():
                if other in self._held:
                    continue
                if theirs.inside:
                    theirs.leave()
                elif other not in (name, *self._expected):
                    theirs.store.drop(theirs.arena)
            parcel.enter()
            self._read_ahead()
        return component

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def leave(self) -> None:
        """Whatever takes turns leaves, for room; it comes in again when it is asked for."""
        self._expected = ()
        for parcel in self._parcels.values():
            parcel.store.drop(parcel.arena)
            if parcel.inside:
                parcel.leave()

    def forgo(self) -> None:
        """What came ahead of its turn leaves, for room; it comes in again when it is asked for."""
        self._expected = ()
        for parcel in self._parcels.values():
            if not parcel.inside:
                parcel.store.drop(parcel.arena)

    @property
    def moves(self) -> bool:
        """Whether any component takes turns with others."""
        return bool(self._parcels)

    def stays(self, name: str) -> bool:
        """Whether the component is on the device all the time."""
        return name not in self._parcels

    def wherever(self, name: str) -> Any:
        """The component without its weights, perhaps: for what it says of itself."""
        return self._components[name]

    @contextmanager
    def using(self, names: Iterable[str]) -> Iterator[None]:
        """For the length of a stage: of those that it uses, one that came in stays when another is asked for."""
        before, self._held = self._held, frozenset(names)
        try:
            yield
        finally:
            self._held = before

    def expect(self, names: Iterable[str]) -> None:
        """These are asked for next: begin to bring them, beside what is computed until then."""
        if self._parcels:
            self._expected = tuple(names)
            self._read_ahead()

    def _read_ahead(self) -> None:
        """What is expected comes behind those that the stage uses which runs now, since these are waited for."""
        waiting = {name: parcel for name, parcel in self._parcels.items() if not parcel.inside}
        if waiting.keys() & self._held:
            return
        for name in self._expected:
            if (parcel := waiting.get(name)) is not None:
                parcel.store.read_ahead(parcel.arena)
