"""What a pipeline class of diffusers says of itself, read from its source: parameters, outputs, step callback.

The source is parsed and never imported, so that front processes need no torch: importing a class takes seconds.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ModelError

UNKNOWN = object()
"""The default of a parameter whose default is no plain value."""

MEDIA = {
    "images": "image",
    "image": "image",
    "frames": "video",
    "video": "video",
    "videos": "video",
    "audios": "audio",
    "audio": "audio",
}
"""What the first field of a pipeline's output is called, and what it holds."""

ROOT = "DiffusionPipeline"
"""What every pipeline derives from; it cannot be called itself."""

_LISTED = re.compile(r'_import_structure\["([\w.]+)"\](?:\.extend\(| = )\(?\s*\[([^\]]*)\]')
_ARGUMENT = re.compile(r"^ {0,8}(\w+) \((.*)\):?\s*$")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Parameter:
    """One parameter of `__call__`: its annotation as written, its default, and what its documentation says first.

    `needed` are those without a default, and those whose default is None although neither their annotation nor their
    documentation says that they are optional.
    """

    name: str
    annotation: str
    required: bool
    default: Any
    about: str = ""
    optional: bool = True

    @property
    def needed(self) -> bool:
        """Whether a call without it makes no sense."""
        may_be_none = "None" in self.annotation or self.annotation.startswith("Optional")
        return self.required or (self.default is None and not self.optional and not may_be_none)


@dataclass(frozen=True)
class PipelineSource:
    """A pipeline class as its source has it.

    `outputs` are the fields of what `__call__` returns, in order; `bodies` the functions of the class by name.
    """

    arch: str
    parameters: dict[str, Parameter]
    outputs: tuple[str, ...]
    bodies: dict[str, ast.FunctionDef]
    attributes: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    @property
    def medium(self) -> str | None:
        """What comes out first: "image", "video", "audio", or None for anything else."""
        if self.outputs:
            return MEDIA.get(self.outputs[0])
        guess = [medium for word, medium in (("Video", "video"), ("Audio", "audio")) if word in self.arch]
        return guess[0] if guess else "image"

    @property
    def media(self) -> dict[str, int]:
        """Every medium that comes out, and which field of the output holds it."""
        found = {} if self.medium is None else {self.medium: 0}
        for index, name in enumerate(self.outputs):
            if name in MEDIA:
                found.setdefault(MEDIA[name], index)
        return found

    @property
    def hook(self) -> str:
        """Where the library hands control out after a step: the name of a parameter, or "progress_bar"."""
        for name in ("callback_on_step_end", "callback"):
            if name in self.parameters:
                return name
        return "progress_bar"

    @property
    def shows_latents(self) -> bool:
        """Whether the latents come out between steps."""
        return self.hook == "callback" or "latents" in self.attributes.get("_callback_tensor_inputs", ())

    @property
    def needs_gradients(self) -> bool:
        """Whether it differentiates while it draws."""
        return "enable_grad" in self.text

    def calls(self, word: str) -> bool:
        """Whether the string `word` stands in `__call__`, such as an output type that it compares with."""
        return any(isinstance(node, ast.Constant) and node.value == word for node in ast.walk(self.bodies["__call__"]))


def read_source(arch: str) -> PipelineSource:
    """The pipeline class `arch` of the installed diffusers; ModelError with the closest names if it has none."""
    root = _library()
    packages = _packages(root)
    if arch not in packages:
        near = get_close_matches(arch, [name for name in packages if name.endswith("Pipeline")], n=1, cutoff=0.6)
        hint = f"; the closest that it has is {near[0]}" if near else ""
        raise ModelError(
            f"{arch} is no architecture that omnimuse or the installed diffusers knows{hint}. "
            "`omnimuse models` lists the families; a newer diffusers may have it, or a package of your own (--plugin)"
        )
    return _read(arch, packages[arch], packages)


def _library() -> Path:
    found = find_spec("diffusers")
    if found is None or not found.submodule_search_locations:
        raise ModelError("diffusers is not installed; reinstall omnimuse: pip install omnimuse")
    return Path(found.submodule_search_locations[0]) / "pipelines"


def _packages(root: Path) -> dict[str, Path]:
    """The folder of every class that the library exports from its pipelines."""
    text = (root / "__init__.py").read_text(encoding="utf-8")
    return {
        name: root.joinpath(*package.split("."))
        for package, names in _LISTED.findall(text)
        for name in re.findall(r'"(\w+)"', names)
    }


def _read(arch: str, folder: Path, packages: dict[str, Path]) -> PipelineSource:
    node, text = _class(arch, folder)
    bodies = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    attributes = dict(_literals(node))
    for base in (ast.unparse(base) for base in node.bases):
        if "__call__" not in bodies and base in packages and base != ROOT:
            inherited = _read(base, packages[base], packages)
            bodies, attributes = {**inherited.bodies, **bodies}, {**inherited.attributes, **attributes}
    if "__call__" not in bodies:
        raise ModelError(f"{arch} is no pipeline that can be called; use the folder of a complete pipeline")
    call = bodies["__call__"]
    return PipelineSource(arch, _parameters(call), _outputs(call), bodies, attributes, text)


def _class(arch: str, folder: Path) -> tuple[ast.ClassDef, str]:
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    for path in files:
        text = path.read_text(encoding="utf-8")
        if re.search(rf"^class {arch}\b", text, re.MULTILINE):
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef) and node.name == arch:
                    return node, text
    raise ModelError(f"the source of {arch} is not in {folder}; reinstall diffusers")


def _literals(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """Class attributes with plain values."""
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            value = _plain(item.value)
            if value is not UNKNOWN:
                yield item.targets[0].id, value


def _parameters(call: ast.FunctionDef) -> dict[str, Parameter]:
    arguments = [*call.args.posonlyargs, *call.args.args][1:]
    missing: list[ast.expr | None] = [None] * (len(arguments) - len(call.args.defaults))
    given = [*zip(arguments, [*missing, *call.args.defaults], strict=True)]
    given += zip(call.args.kwonlyargs, call.args.kw_defaults, strict=True)
    about = _documented(ast.get_docstring(call, clean=False) or "")
    found = {}
    for argument, default in given:
        written = "" if argument.annotation is None else ast.unparse(argument.annotation)
        value = UNKNOWN if default is None else _plain(default)
        said, optional = about.get(argument.arg, ("", True))
        found[argument.arg] = Parameter(argument.arg, written, default is None, value, said, optional)
    return found


def _documented(docstring: str) -> dict[str, tuple[str, bool]]:
    """The first sentence of each argument's description, and whether it is called optional."""
    found: dict[str, list[str]] = {}
    optional: dict[str, bool] = {}
    current: list[str] | None = None
    for line in cleandoc(docstring).splitlines():
        if match := _ARGUMENT.match(line):
            current = found.setdefault(match[1], [])
            optional[match[1]] = "optional" in match[2] or "defaults to" in match[2]
        elif not line.strip() or not line.startswith(" "):
            current = None
        elif current is not None:
            current.append(line.strip())
    said = {name: _LINK.sub(r"\1", " ".join(lines)) for name, lines in found.items()}
    return {name: (re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0], optional[name]) for name, text in said.items()}


def _outputs(call: ast.FunctionDef) -> tuple[str, ...]:
    """The names of the fields of the output that `__call__` returns last; empty if it names none."""
    for node in reversed(list(ast.walk(call))):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
            names = tuple(keyword.arg for keyword in node.value.keywords if keyword.arg)
            if names and ast.unparse(node.value.func).endswith("Output"):
                return names
    return ()


def _plain(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN
