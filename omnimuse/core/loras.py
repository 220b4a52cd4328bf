"""Which adapters a request wears, and how strongly: `Lora`, and `loras_of`, which reads what people write for them.

Part of `DiffusionParams`; completed at the door (`core/request.py`), read by the runner when it takes a request in. An
adapter is named by its file here; what is in the file, `loader/adapters.py` says. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from omnimuse.core.bounds import finite
from omnimuse.core.errors import RequestError

MOST_LORAS = 16
MAX_SCALE = 100.0
MAX_SOURCE = 4096
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_COMPONENT = re.compile(r"transformer(?:_\d)?")
_FOR = re.compile(rf"({_COMPONENT.pattern})=(.*)", re.DOTALL)
SOURCES = ("source", "path", "name")
"""What the field of a dict may be called that says which adapter is meant."""
OTHERS = ("scale", "component")
"""Its other fields."""
_BUNDLED = re.compile(r"omnimuse/[^/]+/[^/.]+")


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter, by its file or folder, and the factor that what it adds is multiplied with.

    `component`: the network that it is for, where its file does not say which of several that draw.
    """

    source: str
    scale: float = 1.0
    component: str = ""

    def __str__(self) -> str:
        """The text that `read_lora` reads."""
        scale = f"{self.scale:g}"
        exact = scale if float(scale) == self.scale else repr(self.scale)
        return f"{self.component}{'=' if self.component else ''}{self.source}:{exact}"

    @property
    def bundled(self) -> bool:
        """Whether its name is the same on every machine, if there is such an adapter."""
        return bool(_BUNDLED.fullmatch(self.source))


Loras = Sequence["Lora | str | PurePath | Mapping[str, Any]"]
"""Adapters as people write them: `Lora`s, texts such as `style.safetensors:0.8`, paths, or dicts of one and a scale."""


def read_lora(text: str) -> Lora:
    """`style.safetensors:0.8` -> that file at 0.8; without a number at the end, at 1. What is behind a colon and can be
    no end of a path was meant as a number: RequestError. Behind `transformer_2=` it is for that network.
    """
    if match := _FOR.fullmatch(text.strip()):
        return replace(read_lora(match[2]), component=match[1])
    source, given, scale = text.strip().rpartition(":")
    if not given or scale.endswith(".safetensors") or "/" in scale or "\\" in scale:
        return Lora(text.strip())
    if not _NUMBER.fullmatch(scale):
        raise RequestError(
            f"the scale {scale!r:.80} of {source:.80} is no number; write it like {source:.80}:0.8, and a name with a "
            "colon at its end with a scale, too",
            "loras",
        )
    return Lora(source, float(scale))


def loras_of(given: Any, registered: Mapping[str, str] | None = None) -> tuple[Lora, ...] | None:
    """What `given` names, checked, in its order; None if that is nothing. RequestError says what is wrong.

    Where there are `registered` adapters only their names are known, and stand for their files.
    """
    if given is None:
        return None
    listed = [given] if isinstance(given, str | PurePath | Lora | Mapping) else given
    if not isinstance(listed, list | tuple):
        raise RequestError(f"loras must be a list of adapters, got {type(given).__name__}", "loras")
    names = [] if registered is None else list(registered)
    if len(listed) > MOST_LORAS:
        raise RequestError(f"{len(listed)} adapters were asked for; use at most {MOST_LORAS} at once", "loras")
    called = "path" if registered is None else "name"
    found = tuple(_checked(Lora(each) if each in names else _lora(each, called)) for each in listed)
    named = [(lora.source, lora.component) for lora in found]
    for source, component in named:
        if named.count((source, component)) > 1:
            raise RequestError(f"loras has {source!r} more than once; name it once, with one scale", "loras")
    if registered is not None:
        found = tuple(_registered(lora, registered) for lora in found)
    return found or None


def component_of(target: str | None) -> str:
    """What SGLang calls a target, as a `component`: `all` is what an adapter says itself. RequestError for others."""
    if target is not None and target != "all" and not _COMPONENT.fullmatch(target):
        raise RequestError(f"target={target!r:.80} is not known; use all, transformer or transformer_2", "target")
    return "" if target is None or target == "all" else target


def told(loras: Sequence[Lora]) -> list[dict[str, Any]]:
    """What files and answers say of adapters: the last part of their names (of bundled ones the whole), their scales,
    and what they are for.
    """
    names = [lora.source if lora.bundled else PurePath(lora.source).name for lora in loras]
    named = [(lora, {"name": name, "scale": lora.scale}) for lora, name in zip(loras, names, strict=True)]
    return [{**about, "component": lora.component} if lora.component else about for lora, about in named]


def _registered(lora: Lora, files: Mapping[str, str]) -> Lora:
    if lora.source not in files:
        known = f"registered are {', '.join(sorted(files))}" if files else "none is registered"
        raise RequestError(f"there is no adapter {lora.source!r:.80} here; {known}", "loras")
    return replace(lora, source=files[lora.source])


def _lora(given: Any, called: str) -> Lora:
    """What a person wrote, where that which says which adapter is meant is `called` so."""
    if isinstance(given, Lora):
        return given
    if isinstance(given, str):
        return read_lora(given)
    if isinstance(given, PurePath):
        return Lora(str(given))
    if not isinstance(given, Mapping):
        one = "a file's name" if called == "path" else "a name"
        raise RequestError(f"an adapter is {one}, or a dict of {called} and scale, got {given!r:.80}", "loras")
    named = [name for name in SOURCES if given.get(name) is not None]
    unknown = sorted(str(name) for name in given if name not in (*SOURCES, *OTHERS))
    if unknown or len(named) != 1:
        wrong = f"the field {unknown[0]!r:.80}" if unknown else f"{' and '.join(named) or f'no {called}'}"
        also = "perhaps a scale, and the component that it is for"
        raise RequestError(f"an adapter has one {called}, {also}; this one has {wrong}", "loras")
    scale, component, source = given.get("scale"), given.get("component"), given[named[0]]
    source = str(source) if isinstance(source, PurePath) else source
    return Lora(source, 1.0 if scale is None else scale, "" if component is None else component)


def _checked(lora: Lora) -> Lora:
    source: Any = lora.source
    if not isinstance(source, str):
        kind = type(source).__name__
        raise RequestError(
            f"the name of an adapter must be a text, got {kind}; use that of a *.safetensors file", "loras"
        )
    if not 0 < len(lora.source) <= MAX_SOURCE or "\0" in lora.source:
        raise RequestError(f"{lora.source!r:.80} names no adapter; use the name of a *.safetensors file", "loras")
    if not finite(lora.scale) or abs(lora.scale) > MAX_SCALE:
        raise RequestError(
            f"the scale {lora.scale!r:.80} of {lora.source} is not allowed; use a number from {-MAX_SCALE:g} to "
            f"{MAX_SCALE:g} (1 is as it was trained, 0 is off)",
            "loras",
        )
    component: Any = lora.component
    if not isinstance(component, str) or (component and not _COMPONENT.fullmatch(component)):
        raise RequestError(
            f"the component {component!r:.80} of {lora.source} is none that adapters are for; use transformer or "
            "transformer_2, or leave it out",
            "loras",
        )
    return replace(lora, scale=float(lora.scale))
