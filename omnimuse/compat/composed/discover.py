"""What a package says of pipelines that are composed as SGLang's guide has it, read from its source: no import.

A front process must know what a model takes before anything heavy starts. A module names its pipelines in `EntryClass`;
the configurations are told by `register_configs`, or by the pipeline's class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omnimuse.core.errors import ModelError

REGISTERS = ("register_configs", "_register_configs")
CONFIG, SAMPLING = "pipeline_config_cls", "sampling_params_cls"


@dataclass(frozen=True)
class Named:
    """A class and the module that has it."""

    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        """What it is called."""
        return self.node.name


@dataclass(frozen=True)
class Package:
    """The source of a package by module."""

    name: str
    trees: Mapping[str, ast.Module]

    @cached_property
    def classes(self) -> dict[tuple[str, str], Named]:
        """Every class at the top of a module, by that and its name."""
        tops = [(module, node) for module, tree in self.trees.items() for node in tree.body]
        return {(module, node.name): Named(module, node) for module, node in tops if isinstance(node, ast.ClassDef)}

    def entries(self) -> Iterator[Named]:
        """The classes that modules name in `EntryClass`."""
        for module, tree in self.trees.items():
            for node in tree.body:
                if isinstance(node, ast.Assign) and "EntryClass" in [ast.unparse(each) for each in node.targets]:
                    listed = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
                    for each in listed:
                        yield self.named(ast.unparse(each), module, f"EntryClass of {module}")

    def meant(self, name: str, module: str) -> Named | None:
        """What `name` is in `module`: its own class, or one that it imports from a module of the package.

        A name that it neither has nor imports is the only class of that name; None where there is none, or several.
        """
        if (module, name) in self.classes:
            return self.classes[module, name]
        for node in ast.walk(self.trees[module]) if module in self.trees else ():
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        source = self._source(node, module)
                        return self.meant(alias.name, source) if source in self.trees else None
        alike = [each for (_, known), each in self.classes.items() if known == name]
        return alike[0] if len(alike) == 1 else None

    def named(self, name: str, module: str, who: str) -> Named:
        """The same; ModelError where there is none."""
        found = self.meant(name, module)
        if found is None:
            raise ModelError(f"{who} is {name!r}, which no module of {self.name} defines; correct the name")
        return found

    def values(self, name: str, module: str = "") -> dict[str, Any]:
        """What the class `name` of `module`, and its bases in the package, set attributes to, where that is plain.

        Of an attribute of something else, such as `ModelTaskType.T2I`, the last name.
        """
        found: dict[str, Any] = {}
        kind = self.meant(name, module)
        if kind is None:
            return found
        for base in reversed(kind.node.bases):
            above = self.meant(ast.unparse(base).rpartition(".")[2], kind.module)
            if above is not None and above is not kind:
                found |= self.values(above.name, above.module)
        for item in kind.node.body:
            target, value = _assigned(item)
            if target and value is not None:
                found.pop(target, None)
                if (plain := _plain(value)) is not _NOTHING:
                    found[target] = plain
        return found

    def configs_of(self, pipeline: str, paths: tuple[str, ...], module: str = "") -> dict[str, Named]:
        """The classes of configurations of `pipeline`, which a checkpoint of these names has: CONFIG and SAMPLING.

        `paths` are the class name and the ids of the checkpoint. A package with one registration needs no match.
        """
        own, kinds = self.values(pipeline, module), (CONFIG, SAMPLING)
        if any(kind in own for kind in kinds):
            return {kind: self.named(own[kind], module, f"{kind} of {pipeline}") for kind in kinds if kind in own}
        calls = list(self._registrations())
        fitting = [each for each in calls if _fits(each[1], paths)]
        found: dict[str, Named] = {}
        for place, call in fitting[:1] or (calls if len(calls) == 1 else []):
            for word in call.keywords:
                kind = SAMPLING if word.arg in (SAMPLING, "sampling_param_cls") else str(word.arg)
                if kind in kinds:
                    found[kind] = self.named(ast.unparse(word.value), place, f"{word.arg} of a registration")
        return found

    def words(self) -> frozenset[str]:
        """Every attribute that is read, and every string that is a name, in all files."""
        found: set[str] = set()
        for node in (node for tree in self.trees.values() for node in ast.walk(tree)):
            match node:
                case ast.Attribute(attr=name, ctx=ast.Load()):
                    found.add(name)
                case ast.Constant(value=str(name)) if name.isidentifier():
                    found.add(name)
                case ast.Name(id=name):
                    found.add(name)
        return frozenset(found)

    def _registrations(self) -> Iterator[tuple[str, ast.Call]]:
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in REGISTERS:
                    yield module, node

    def _source(self, node: ast.ImportFrom, module: str) -> str:
        """The module that `node` of `module` imports from."""
        if not node.level:
            return node.module or ""
        folder = any(each.startswith(f"{module}.") for each in self.trees)
        parts = module.split(".")[: None if folder and node.level == 1 else int(folder) - node.level]
        return ".".join([*parts, *([node.module] if node.module else [])])


_NOTHING = object()


def package_of(name: str) -> Package:
    """The source of the package, or of the single module, `name`; an empty one where it has none."""
    spec = find_spec(name)
    trees: dict[str, ast.Module] = {}
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(root).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            module = ".".join((name, *(part for part in parts if part != "__init__")))
            trees[module] = ast.parse(path.read_text(encoding="utf-8"))
    if not trees and spec is not None and spec.origin and spec.origin.endswith(".py"):
        trees[name] = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return Package(name, trees)


def pipelines(plugin: str) -> Iterator[tuple[str, str, str]]:
    """The composed pipelines of a package: what checkpoints call it, its module and its class."""
    package = package_of(plugin)
    for each in package.entries():
        called = package.values(each.name, each.module).get("pipeline_name")
        if isinstance(called, str):
            yield called, each.module, each.name


def _assigned(item: ast.stmt) -> tuple[str, ast.expr | None]:
    match item:
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            return name, value
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, value
    return "", None


def _plain(value: ast.expr) -> Any:
    if isinstance(value, ast.Attribute):
        return value.attr
    if isinstance(value, ast.Name):
        return value.id
    try:
        return ast.literal_eval(value)
    except ValueError:
        return _NOTHING


def _fits(call: ast.Call, paths: tuple[str, ...]) -> bool:
    """Whether a registration is for a checkpoint of one of these names: by its ids, or by its detectors."""
    for word in call.keywords:
        if word.arg == "hf_model_paths":
            ids = _plain(word.value)
            short = {each.rpartition("/")[2].lower() for each in ids} if isinstance(ids, list | tuple) else set()
            if any(path.rpartition("/")[2].lower() in short for path in paths):
                return True
        if word.arg == "model_detectors" and isinstance(word.value, ast.List | ast.Tuple):
            for each in word.value.elts:
                if isinstance(each, ast.Lambda) and any(_holds(each.body, path.lower()) for path in paths):
                    return True
    return False


def _holds(test: ast.expr, path: str) -> bool:
    """Whether what a detector says is true of `path`; ModelError for a detector that does more than compare texts."""
    match test:
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_holds(part, path) for part in parts)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return any(_holds(part, path) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _holds(part, path)
        case ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.In()]):
            return text in path
        case ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.NotIn()]):
            return text not in path
        case ast.Compare(ops=[ast.Eq()], comparators=[ast.Constant(value=str(text))]):
            return text == path
        case ast.Call(func=ast.Attribute(attr="startswith" | "endswith" as name), args=[ast.Constant(value=str(text))]):
            return path.startswith(text) if name == "startswith" else path.endswith(text)
    raise ModelError(
        f"the detector {ast.unparse(test)!r} cannot be read without running it; compare texts in it, as in "
        '`lambda hf_id: "name" in hf_id.lower()`, or give hf_model_paths'
    )
