"""How strong an adapter is by itself, where settings beside its tensors say so and not a tensor `alpha`.

diffusers keeps them in the file's metadata, PEFT in `adapter_config.json` beside it. What neither says: as strong as
its products are. Read by `adapters.py`; no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ModelError
from omnimuse.loader.files import read_json

BESIDE, PEFT_FILE = "adapter_config.json", "adapter_model.safetensors"
METADATA = "lora_adapter_metadata"
DRAWS = "transformer", "unet"
"""What files call a network that draws, whichever of a pipeline it is worn by."""
MOST_ALPHA = 1e6
"""No trainer has one near it, and numbers beyond it leave the formats that adapters are worn in."""


@dataclass(frozen=True)
class Strength:
    """The alpha of an adapter's layers: one, and others for names that end in a pattern; None: as large as the rank.

    A product counts alpha / rank, and where it is `rooted` alpha / sqrt(rank).
    """

    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    rooted: bool = False

    def factor(self, layer: str, rank: int, own: float | None) -> float:
        """What the product of `layer` is multiplied with; `own` is the alpha that stands beside it."""
        alpha = self._alpha(layer) if own is None else own
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.rooted else rank)

    def _alpha(self, layer: str) -> float | None:
        for pattern, alpha in self.patterns.items():
            if _pattern(pattern).fullmatch(layer):
                return alpha
        return self.alpha


def strengths(file: Path, metadata: Mapping[str, str]) -> dict[str, Strength]:
    """What is said of `file` by its metadata or its neighbour, by component; under "" what is said of all.

    ModelError for settings that are not of plain low-rank products.
    """
    if METADATA in metadata:
        return {name: _strength(said) for name, said in _by_component(metadata[METADATA]).items()}
    beside = file.with_name(BESIDE)
    if file.name == PEFT_FILE and beside.is_file():
        return {"": _strength(read_json(beside))}
    return {}


def strength_of(component: str, said: Mapping[str, Strength], *, draws: bool) -> Strength:
    """What is `said` of the layers of a `component`. One that `draws` has another name here than in the file where a
    pipeline has two of them, or its own word for it.
    """
    names = (component, *(DRAWS if draws else ()), "")
    return next((said[name] for name in names if name in said), Strength())


def _by_component(text: str) -> dict[str, dict[str, Any]]:
    """`{"transformer.r": 4}` -> `{"transformer": {"r": 4}}`."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ModelError("its metadata are no settings of an adapter; save it again")
    found: dict[str, dict[str, Any]] = {}
    for name, value in said.items():
        component, dot, setting = name.partition(".")
        found.setdefault(component if dot else "", {})[setting if dot else name] = value
    return found


def _strength(said: Mapping[str, Any]) -> Strength:
    if said.get("use_dora"):
        raise ModelError("its settings say that it is DoRA; only adapters of low-rank products (LoRA) are worn")
    alpha, patterns = said.get("lora_alpha"), said.get("alpha_pattern") or {}
    if alpha is not None and not _is_alpha(alpha):
        raise _refused(f"lora_alpha={alpha!r:.80}", f"is no number up to {MOST_ALPHA:g}")
    if not isinstance(patterns, Mapping) or not all(map(_is_alpha, patterns.values())):
        raise _refused(f"alpha_pattern={patterns!r:.80}", f"is no table of numbers up to {MOST_ALPHA:g}")
    for pattern in patterns:
        try:
            _pattern(pattern)
        except re.error as problem:
            raise _refused(f"alpha_pattern has {pattern!r:.80}", f"is no pattern ({problem})") from None
    return Strength(alpha, dict(patterns), bool(said.get("use_rslora")))


def _pattern(text: str) -> re.Pattern[str]:
    """What names of layers that end in `text` match."""
    return re.compile(rf"(.*\.)?({text.removeprefix('^')})")


def _refused(said: str, why: str) -> ModelError:
    return ModelError(f"its settings say {said}, which {why}; save it again")


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_ALPHA
