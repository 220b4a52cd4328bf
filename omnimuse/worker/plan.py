"""`TickPlan`: what one tick does, decided by the engine on rank 0 and executed alike by the runner of every rank.

It holds names and numbers, and the pictures that a request brings; tensors never travel with it.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import asdict, dataclass
from typing import cast

import msgspec

from omnimuse.core.params import DiffusionParams, family_params
from omnimuse.core.request import Picture, Request
from omnimuse.core.spec import Spec


@dataclass(frozen=True)
class TickPlan:
    """What happens, in this order: requests are let go, taken in, parked on the CPU, woken; states advance.

    `stop` ends the loop.
    """

    drop: tuple[str, ...] = ()
    admit: tuple[Request, ...] = ()
    park: tuple[str, ...] = ()
    wake: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    stop: bool = False


def encode(plan: TickPlan) -> bytes:
    """The plan as bytes: a few hundred, and the pictures of the requests that it admits."""
    return msgspec.msgpack.encode(asdict(plan))


def decode(payload: bytes, spec: Spec) -> TickPlan:
    """The plan that `encode` made; `spec` gives the family's parameter extension."""
    raw = msgspec.msgpack.decode(payload)
    admit = tuple(decode_request(fields, spec) for fields in raw.pop("admit"))
    names = {field: tuple(raw[field]) for field in ("drop", "park", "wake", "run")}
    return TickPlan(admit=admit, stop=bool(raw["stop"]), **names)


def decode_request(fields: dict[str, object], spec: Spec) -> Request:
    """The request that `dataclasses.asdict` turned into plain values; `spec` gives the family's extension."""
    extra, params, images = fields.pop("extra"), fields.pop("params"), fields.pop("images")
    assert isinstance(extra, dict)
    assert isinstance(params, dict)
    assert isinstance(images, list | tuple)
    pictures = tuple(_picture(**image) for image in images)
    branches = tuple(cast("list[str]", fields.pop("branches")))
    known = {"params": DiffusionParams(**params), "extra": family_params(spec.extra, extra), "images": pictures}
    return Request(**{**fields, **known, "branches": branches})  # type: ignore[arg-type]


def _picture(width: int, height: int, png: bytes | str) -> Picture:
    """A picture whose file went through JSON, where bytes are base64, or did not."""
    return Picture(width, height, b64decode(png) if isinstance(png, str) else png)
