"""Which kernel computes which attention site, and why.

Called once when a worker is built, for all of its networks; `explain` prints what it returns. A choice that cannot be
honoured is refused here, at start-up: nothing falls back in silence.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from omnimuse.attention.backends.flex import Flex
from omnimuse.attention.backends.libraries import (
    FLASH_2,
    FLASH_3,
    SAGE,
    XFORMERS,
    FlashAttention,
    SageAttention,
    XFormers,
)
from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.backends.sdpa import KERNELS, Sdpa, SdpaKernel
from omnimuse.attention.backends.varlen import Varlen
from omnimuse.attention.layer import Attention, Backend
from omnimuse.core.config import AttentionConfig, Choice, Config
from omnimuse.core.errors import ConfigError
from omnimuse.core.plugins import ATTENTION, brought, loaded

UNASKED: tuple[Backend, ...] = (Sdpa(), Reference())
"""What "auto" may choose, fastest first."""
ASKED: tuple[Backend, ...] = (
    Varlen(),
    Flex(),
    *(SdpaKernel(name) for name in KERNELS),
    FlashAttention("flash_attn_2", FLASH_2),
    FlashAttention("flash_attn_3", FLASH_3),
    SageAttention(SAGE),
    XFormers(XFORMERS),
)
BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (*UNASKED, *ASKED)}
AUTO = "auto"


@dataclass(frozen=True)
class Binding:
    """What one attention site was bound to: its module path, role, backend, and the reason."""

    site: str
    role: str
    backend: str
    reason: str


@runtime_checkable
class Compiling(Protocol):
    """A backend that torch may compile."""

    def how(self, device: torch.device) -> str:
        """Whether it is compiled there, and why, in words."""
        ...

    def why_not_within(self, device: torch.device) -> str | None:
        """Why blocks that are compiled cannot have it there, or None."""
        ...


@runtime_checkable
class Unmasked(Protocol):
    """A backend that may take no masks."""

    def why_no_mask(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why it takes none there, in words, or None if it does."""
        ...


@dataclass(frozen=True)
class Place:
    """What a backend must be able to do at a site."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    weighing: bool
    compiled: bool
    masks: bool = False

    def obstacle(self, backend: Backend) -> str | None:
        """Why `backend` cannot do it, or None."""
        if self.weighing and not backend.weighs:
            return "it does not tell what keys weigh, by which ranks of a ring merge what they found"
        why = backend.why_not(self.device, self.dtype, self.head_dim)
        if why is None and self.masks and (unable := self.why_no_mask(backend)) is not None:
            return f"this site has a mask, and {unable}"
        if why is None and self.compiled and isinstance(backend, Compiling):
            return backend.why_not_within(self.device)
        return why

    def why_no_mask(self, backend: Backend) -> str | None:
        """Why `backend`, which runs here, takes no mask, or None."""
        return backend.why_no_mask(self.device, self.dtype, self.head_dim) if isinstance(backend, Unmasked) else None


def bind_all(
    networks: Mapping[str, nn.Module], config: Config, device: torch.device, dtype: torch.dtype
) -> list[Choice]:
    """Give every site of `networks` its backend: what was chosen by network and role, and why.

    A role is known where any of them has it: not each has all. ConfigError for a backend where there is no site.
    """
    ring, compiled = config.parallel.ring > 1, config.compile.mode != "none"
    together = nn.ModuleDict(networks)
    bindings = bind(together, config.attention, device, dtype, weighing=ring, compiled=compiled)
    if (wanted := config.attention.default) != AUTO and not bindings:
        raise ConfigError(
            f"attention={wanted} cannot be: no attention of ours is in {', '.join(networks)}; leave it out"
        )
    kernel = cache(partial(Sdpa().kernel, device, dtype))  # of heads of that size
    alike = Counter(
        (each.site.partition(".")[0], each.role, each.backend, each.reason + _by(together, each, kernel))
        for each in bindings
    )
    return [
        Choice("attention", f"{name}, {role} ({sites} sites)", backend, reason)
        for (name, role, backend, reason), sites in alike.items()
    ]


def _by(networks: nn.ModuleDict, bound: Binding, kernel: Callable[[int], str]) -> str:
    """By which kernel torch computes at that site, where it chooses among its own, to add to the reason."""
    site = networks.get_submodule(bound.site)
    assert isinstance(site, Attention)
    found = kernel(site.head_dim) if isinstance(site.backend, Sdpa) else ""
    return f", by torch's kernel {found}" if found else ""


def bind(
    model: nn.Module,
    choice: AttentionConfig,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    weighing: bool = False,
    compiled: bool = False,
) -> list[Binding]:
    """Give every `Attention` in the model its backend; raises ConfigError for names and choices that cannot
    work.

    A site looks for its name in this order: `per_role[role]`, `per_role[category]`, `default`. Device and
    dtype are the ones it will compute with; left out, they are those of the model's first parameter. `weighing`:
    outcomes with several sets of keys will be merged; `compiled`: its blocks will be compiled.
    """
    sites = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    _check_names(choice, sites.values())
    first = next(model.parameters(), torch.empty(0))
    bindings = []
    for name, site in sites.items():
        wanted, reason = _resolve(choice, site)
        place = Place(device or first.device, dtype or first.dtype, site.head_dim, weighing, compiled, site.masks)
        site.backend, why = _find(wanted, place, site.role)
        site.maskless = place.why_no_mask(site.backend)
        bindings.append(Binding(name, site.role, site.backend.name, f"{reason}{why}"))
    return bindings


def _check_names(choice: AttentionConfig, sites: Iterable[Attention]) -> None:
    asked = [name for name in (choice.default, *choice.per_role.values()) if name not in (AUTO, *BACKENDS)]
    known = (AUTO, *BACKENDS, *(brought(ATTENTION, BACKENDS) if asked else ()))
    for backend in asked:
        if backend not in known:
            raise ConfigError(f"attention backend {backend!r} is unknown; {_nearest(backend, known)}")
    roles = {name for site in sites for name in (site.role, site.category) if name is not None}
    for role in choice.per_role:
        if role not in roles:
            raise ConfigError(f"this model has no attention role or category {role!r}; {_nearest(role, roles)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}"


def _resolve(choice: AttentionConfig, site: Attention) -> tuple[str, str]:
    for kind, name in (("role", site.role), ("category", site.category)):
        if name is not None and name in choice.per_role:
            return choice.per_role[name], f"per_role[{name!r}], by {kind}"
    return choice.default, "default"


def _find(wanted: str, place: Place, role: str) -> tuple[Backend, str]:
    """The backend of that name, or for "auto" the fastest that can run, with what to add to the reason."""
    if wanted != AUTO:
        asked = BACKENDS.get(wanted) or loaded(brought(ATTENTION)[wanted])()
        obstacle = place.obstacle(asked)
        if obstacle is not None:
            raise ConfigError(
                f"attention backend {wanted!r} cannot run at role {role!r} on {place.device} in {place.dtype} with "
                f"head_dim={place.head_dim}: {obstacle}; choose another backend or {AUTO!r}"
            )
        return asked, f", {asked.how(place.device)}" if isinstance(asked, Compiling) else ""
    obstacles: list[str] = []
    for backend in UNASKED:
        obstacle = place.obstacle(backend)
        if obstacle is None:
            return backend, f", auto: {'; '.join([*obstacles, f'{backend.name} is the first that can run'])}"
        obstacles.append(f"{backend.name}: {obstacle}")
    raise ConfigError(f"no attention backend can run on {place.device} in {place.dtype} ({'; '.join(obstacles)})")
