"""How kernels that know no packed rows compute them: one call a row. Backends choose it for themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from omnimuse.attention.layout import Layout

if TYPE_CHECKING:
    from omnimuse.attention.layer import Backend


def row_by_row(backend: Backend, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kv_layout: Layout) -> Tensor:
    """q packed by `layout`, k and v by `kv_layout` -> like q."""
    rows = zip(layout.unpack(q), kv_layout.unpack(k), kv_layout.unpack(v), strict=True)
    return layout.pack([backend(q[None], k[None], v[None])[0] for q, k, v in rows])


def no_mask(name: str, mask: Tensor | None) -> None:
    """ValueError for a mask, where the kernel `name` can take none."""
    if mask is not None:
        raise ValueError(f"attention backend {name!r} takes no mask; choose 'sdpa' for this role")
