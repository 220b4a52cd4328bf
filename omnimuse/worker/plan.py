"""`TickPlan`: what one tick does, decided by the engine on rank 0 and executed alike by the runner of every rank.

It holds names and numbers only, so it travels as a few hundred bytes of JSON; tensors never do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import msgspec

from omnimuse.core.params import DiffusionParams, family_params
from omnimuse.core.request import Request
from omnimuse.core.spec import Spec


@dataclass(frozen=True)
class TickPlan:
    """Requests to take in and to let go, requests to pause and to resume, states that advance; `stop` ends the loop."""

    admit: tuple[Request, ...] = ()
    drop: tuple[str, ...] = ()
    pause: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    stop: bool = False


def encode(plan: TickPlan) -> bytes:
    """The plan as JSON bytes. Requests must not carry images: nothing that runs on several ranks takes them yet."""
    assert not any(request.images for request in plan.admit)
    return msgspec.json.encode(asdict(plan))


def decode(payload: bytes, spec: Spec) -> TickPlan:
    """The plan that `encode` made; `spec` gives the family's parameter extension."""
    raw = msgspec.json.decode(payload)
    admit = tuple(decode_request(fields, spec) for fields in raw.pop("admit"))
    names = {field: tuple(raw[field]) for field in ("drop", "pause", "resume", "run")}
    return TickPlan(admit=admit, stop=bool(raw["stop"]), **names)


def decode_request(fields: dict[str, object], spec: Spec) -> Request:
    """The request that `dataclasses.asdict` turned into plain values; `spec` gives the family's extension."""
    extra, params = fields.pop("extra"), fields.pop("params")
    assert isinstance(extra, dict)
    assert isinstance(params, dict)
    known = {"params": DiffusionParams(**params), "extra": family_params(spec.extra, extra), "images": ()}
    return Request(**{**fields, **known})  # type: ignore[arg-type]
