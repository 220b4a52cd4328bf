"""What a person may choose for one request: `DiffusionParams` and its typed extension per family.

Written by people, completed from the model's defaults by `core/request.py`, read by stages. `None` always means
"the model's own default". Frozen; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from omnimuse.core.errors import RequestError

OutputType = Literal["pil", "pt", "latent"]


@dataclass(frozen=True)
class FamilyParams:
    """Base of the typed extensions that model families declare in their `spec.py`."""


@dataclass(frozen=True)
class DiffusionParams:
    """Per-request choices. Every field left at `None` takes the model's default.

    Sizes are pixels, `fps` frames per second, `seed` an integer in [0, 2**63); output i of a request uses seed + i.
    `output_type` is `"pil"`, `"pt"` (float tensor in [0, 1]) or `"latent"`. `extra` holds the family's own choices,
    as its dataclass or as a mapping of field names.
    """

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    seed: int | None = None
    num_outputs_per_prompt: int | None = None
    max_sequence_length: int | None = None
    strength: float | None = None
    output_type: OutputType | None = None
    extra: FamilyParams | Mapping[str, Any] | None = None

    def over(self, defaults: DiffusionParams) -> DiffusionParams:
        """These choices, with what was left open taken from `defaults` (`extra` excepted)."""
        names = [field.name for field in fields(self) if field.name != "extra"]
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(defaults, **chosen)


def family_params(kind: type[FamilyParams], given: FamilyParams | Mapping[str, Any] | None) -> FamilyParams:
    """`given` as an instance of the family's extension type; RequestError for unknown names."""
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    allowed = [field.name for field in fields(kind)]
    if not isinstance(given, Mapping):
        raise RequestError(
            f"extra={given!r} does not fit this model; use {kind.__name__} or a dict of {allowed}", "extra"
        )
    for name in given:
        if name not in allowed:
            near = get_close_matches(str(name), allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(f"extra has no field {name!r} for this model; it knows {allowed}{hint}", f"extra.{name}")
    return kind(**given)
