"""Which kernel computes which attention site, and why.

Called once per network when a worker is built; `doctor` and `explain` print what it returns. A choice that
cannot be honoured is refused here, at start-up: nothing falls back in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from omnimuse.attention.backends.reference import Reference
from omnimuse.attention.backends.sdpa import Sdpa
from omnimuse.attention.layer import Attention, Backend
from omnimuse.core.config import AttentionConfig
from omnimuse.core.errors import ConfigError

BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (Sdpa(), Reference())}  # fastest first
AUTO = "auto"


@dataclass(frozen=True)
class Binding:
    """What one attention site was bound to: its module path, role, backend, and the reason."""

    site: str
    role: str
    backend: str
    reason: str


def bind(
    model: nn.Module,
    choice: AttentionConfig,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> list[Binding]:
    """Give every `Attention` in the model its backend; raises ConfigError for names and choices that cannot
    work.

    A site looks for its name in this order: `per_role[role]`, `per_role[category]`, `default`. Device and
    dtype are the ones it will compute with; left out, they are those of the model's first parameter.
    """
    sites = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    _check_names(choice, sites.values())
    first = next(model.parameters(), torch.empty(0))
    bindings = []
    for name, site in sites.items():
        wanted, reason = _resolve(choice, site)
        site.backend, why = _find(wanted, device or first.device, dtype or first.dtype, site)
        bindings.append(Binding(name, site.role, site.backend.name, f"{reason}{why}"))
    return bindings


def _check_names(choice: AttentionConfig, sites: Iterable[Attention]) -> None:
    for backend in (choice.default, *choice.per_role.values()):
        if backend not in (AUTO, *BACKENDS):
            raise ConfigError(f"attention backend {backend!r} is unknown; {_nearest(backend, (AUTO, *BACKENDS))}")
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


def _find(wanted: str, device: torch.device, dtype: torch.dtype, site: Attention) -> tuple[Backend, str]:
    """The backend of that name, or for "auto" the fastest that can run, with what to add to the reason."""
    if wanted != AUTO:
        obstacle = BACKENDS[wanted].why_not(device, dtype, site.head_dim)
        if obstacle is not None:
            raise ConfigError(
                f"attention backend {wanted!r} cannot run at role {site.role!r} on {device} in {dtype} with "
                f"head_dim={site.head_dim}: {obstacle}; choose another backend or {AUTO!r}"
            )
        return BACKENDS[wanted], ""
    obstacles: list[str] = []
    for backend in BACKENDS.values():
        obstacle = backend.why_not(device, dtype, site.head_dim)
        if obstacle is None:
            return backend, f", auto: {'; '.join([*obstacles, f'{backend.name} is the first that can run'])}"
        obstacles.append(f"{backend.name}: {obstacle}")
    raise ConfigError(f"no attention backend can run on {device} in {dtype} ({'; '.join(obstacles)})")
