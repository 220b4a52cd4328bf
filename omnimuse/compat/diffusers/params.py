"""Which of a pipeline's parameters a request can carry, under which name, and the type that checks the rest.

What means the same as a parameter of ours has our name; pictures come with the prompt; every other parameter of plain
values becomes a field of a `FamilyParams` that is made here. Tensors and functions cannot be given.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from omnimuse.compat.diffusers.source import UNKNOWN, Parameter, PipelineSource
from omnimuse.core.errors import RequestError
from omnimuse.core.params import FamilyParams

CORE = MappingProxyType(
    {
        **{
            name: name
            for name in (
                "num_inference_steps",
                "guidance_scale",
                "guidance_scale_2",
                "true_cfg_scale",
                "height",
                "width",
                "num_frames",
                "strength",
                "max_sequence_length",
            )
        },
        "frame_rate": "fps",
        "fps": "fps",
        "video_length": "num_frames",
        "audio_length_in_s": "seconds",
        "audio_duration_s": "seconds",
        "audio_duration": "seconds",
    }
)
"""Parameters that mean what one of ours means: their name, and ours."""

OURS = frozenset({"prompt", "negative_prompt", "generator", "output_type", "return_dict", "batch_size"})
"""Parameters that the engine gives itself."""

MANY = frozenset({"video", "frames"})
"""Parameters for pictures that take all of them, in order: frames of a video."""

_PLAIN: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
)


def core_parameters(source: PipelineSource) -> dict[str, str]:
    """The pipeline's parameters that have a name of ours: theirs to ours."""
    return {name: CORE[name] for name in source.parameters if name in CORE and _is_plain(source.parameters[name])}


def picture_parameters(source: PipelineSource) -> list[Parameter]:
    """The parameters that take pictures, in the order in which pictures are given."""
    return [
        parameter
        for parameter in source.parameters.values()
        if "Image" in parameter.annotation and not parameter.name.startswith(("_", "ip_adapter", "negative_ip"))
    ]


def extra_parameters(source: PipelineSource) -> list[Parameter]:
    """Every other parameter that plain values can be given for."""
    taken = {*core_parameters(source), *OURS, *(parameter.name for parameter in picture_parameters(source))}
    return [
        parameter
        for parameter in source.parameters.values()
        if parameter.name not in taken
        and not parameter.name.startswith("_")
        and "callback" not in parameter.name
        and not parameter.name.endswith("_per_prompt")
        and _is_plain(parameter)
    ]


def extra_type(source: PipelineSource) -> type[FamilyParams]:
    """A frozen dataclass with a field for each of `extra_parameters`; values that do not fit are refused."""
    parameters = extra_parameters(source)
    made: list[Any] = [(parameter.name, Any, _field(parameter)) for parameter in parameters]
    kinds = {parameter.name: parameter for parameter in parameters}
    return make_dataclass(
        f"{source.arch}Params",
        made,
        bases=(FamilyParams,),
        frozen=True,
        namespace={"__post_init__": lambda given: _check(given, kinds)},
    )


def _field(parameter: Parameter) -> Any:
    default = None if parameter.default is UNKNOWN else parameter.default
    about = {"type": parameter.annotation, "default": default, "about": parameter.about}
    if isinstance(default, list | dict):
        return field(default_factory=partial(type(default), default), metadata=about)
    return field(default=default, metadata=about)


def _check(given: FamilyParams, kinds: Mapping[str, Parameter]) -> None:
    """Refuse what does not fit; lists become tuples where the library wants tuples (JSON knows only lists)."""
    for name, parameter in kinds.items():
        value = getattr(given, name)
        if value is None and parameter.required:
            raise RequestError(
                f"extra.{name} must be given to this model ({parameter.annotation}): {parameter.about}", f"extra.{name}"
            )
        if value is None or value == parameter.default:
            continue
        fitted = _fit(ast.parse(parameter.annotation, mode="eval").body, value)
        if fitted is UNKNOWN:
            wanted = parameter.annotation.removesuffix(" | None")
            raise RequestError(f"extra.{name}={value!r} does not fit this model; give {wanted}", f"extra.{name}")
        object.__setattr__(given, name, fitted)  # in __post_init__ of a frozen class there is no other way


def _is_plain(parameter: Parameter) -> bool:
    """Whether some plain value fits the annotation."""
    if not parameter.annotation:
        return False
    return any(_takes_plain(node) for node in _alternatives(ast.parse(parameter.annotation, mode="eval").body))


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """`A | B`, `Optional[A]` and `Union[A, B]` as a list."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return [*_alternatives(left), *_alternatives(right)]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return _alternatives(inner)
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=parts)):
            return [each for part in parts for each in _alternatives(part)]
    return [node]


def _takes_plain(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return name in _PLAIN or name in ("list", "List", "tuple", "Tuple", "dict", "Dict", "Any")
        case ast.Subscript(value=ast.Name(id="list" | "List" | "tuple" | "Tuple"), slice=inner):
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return all(_is_dots(part) or any(_takes_plain(each) for each in _alternatives(part)) for part in parts)
        case ast.Subscript(value=ast.Name(id="dict" | "Dict" | "Literal")):
            return True
    return False


def _fit(annotation: ast.expr, value: Any) -> Any:
    """`value` as the annotation wants it, or UNKNOWN if none of its alternatives takes it."""
    for node in _alternatives(annotation):
        fitted = _fit_one(node, value)
        if fitted is not UNKNOWN:
            return fitted
    return UNKNOWN


def _fit_one(node: ast.expr, value: Any) -> Any:
    match node:
        case ast.Name(id="Any"):
            return value
        case ast.Name(id=name) if name in _PLAIN:
            return value if isinstance(value, _PLAIN[name]) and (name == "bool") == isinstance(value, bool) else UNKNOWN
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return value if value in ast.literal_eval(inner) else UNKNOWN
        case ast.Name(id="dict" | "Dict") | ast.Subscript(value=ast.Name(id="dict" | "Dict")):
            return dict(value) if isinstance(value, Mapping) else UNKNOWN
        case ast.Name(id="list" | "List" | "tuple" | "Tuple" as name):
            kind = list if name in ("list", "List") else tuple
            return kind(value) if isinstance(value, list | tuple) else UNKNOWN
        case ast.Subscript(value=ast.Name(id="list" | "List" | "tuple" | "Tuple" as name), slice=inner):
            return _fit_items(list if name in ("list", "List") else tuple, inner, value)
    return UNKNOWN


def _fit_items(kind: type, inner: ast.expr, value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return UNKNOWN
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if kind is list or len(parts) == 1 or _is_dots(parts[-1]):  # tuple[int] is written for tuples of any length, too
        parts = [parts[0]] * len(value)
    if len(parts) != len(value):
        return UNKNOWN
    items = [_fit(part, item) for part, item in zip(parts, value, strict=True)]
    return UNKNOWN if any(item is UNKNOWN for item in items) else kind(items)


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
