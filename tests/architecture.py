"""Checkers for the house rules: each takes the text of one file and returns what is wrong, in plain words.

`tests/test_architecture.py` runs them over the project and, to prove that they can fail, over small bad
snippets. They read source with `ast` and import nothing of the project.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

MAX_FILE, MAX_FUNCTION, MAX_CLASS, MAX_PARAMETERS, MAX_FIELDS = 500, 60, 350, 7, 15

ROOMS: tuple[tuple[str, ...], ...] = (
    ("cli", "playground", "entrypoints"),
    ("simulate",),
    ("server", "api", "parity"),
    ("deploy",),
    ("engine",),
    ("worker",),
    ("models", "compat"),
    ("pipeline",),
    ("components",),
    ("loader",),
    ("cache", "offload", "quant", "lora", "parallel"),
    ("diffusion", "ar"),
    ("layers",),
    ("attention",),
    ("media", "observe"),
    ("core", "bundled"),
)
"""Every room of `omnimuse/`, from the roof to the cellar. A room imports from lower rows only, never from its
own row. A single file such as `api.py` is a room, too."""

FORBIDDEN_STEMS = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
LOGGERS = frozenset({"logger", "log"})
MUTABLE_CALLS = frozenset({"dict", "list", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"})
MUTATORS = frozenset(
    {
        "add",
        "append",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
        "sort",
        "update",
    }
)
GONE = frozenset({"EngineDeadError", "EngineClosedError", "WorkerLostError", "PoisonError"})
ADVICE = re.compile(r"[;,] (and )?(allow|ask|join|look|make|mend|see|start|try)\b")
PASSED_ON = ("the engine has died: {}",)
"""What stands before the text of another of them."""
FIELD_BASES = frozenset({"Struct", "NamedTuple", "TypedDict", "BaseModel"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(source: str) -> ast.Module:
    """The tree of a file, which many checks look at and none changes."""
    return ast.parse(source)


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Everything in it, from the outside in."""
    return tuple(ast.walk(parsed(source)))


def last_name(node: ast.AST) -> str:
    """`c` of `a.b.c`, of `c` and of a call of either; empty for anything else."""
    match node:
        case ast.Call():
            return last_name(node.func)
        case ast.Attribute():
            return node.attr
        case ast.Name():
            return node.id
    return ""


# -- sizes ---------------------------------------------------------------------------------------------------


def size_problems(source: str) -> list[str]:
    """Files, functions, classes, parameter lists and records that are too large."""
    found = []
    if (lines := len(source.splitlines())) > MAX_FILE:
        found.append(f"the file has {lines} lines, at most {MAX_FILE}: split it by topic")
    for node in nodes(source):
        if isinstance(node, Function):
            found += _function_problems(node)
        elif isinstance(node, ast.ClassDef):
            found += _class_problems(node)
    return found


def _function_problems(node: Function) -> list[str]:
    found = []
    if (lines := _length(node)) > MAX_FUNCTION:
        found.append(f"line {node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION}")
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = len(names) - (names[:1] in (["self"], ["cls"]))
    if count > MAX_PARAMETERS:
        most = f"at most {MAX_PARAMETERS}: use a dataclass"
        found.append(f"line {node.lineno}: {node.name} takes {count} parameters, {most}")
    return found


def _class_problems(node: ast.ClassDef) -> list[str]:
    found = []
    if (lines := _length(node)) > MAX_CLASS:
        found.append(f"line {node.lineno}: {node.name} has {lines} lines, at most {MAX_CLASS}")
    is_record = any(last_name(d) == "dataclass" for d in node.decorator_list) or any(
        last_name(base) in FIELD_BASES for base in node.bases
    )
    count = sum(isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item) for item in node.body)
    if is_record and count > MAX_FIELDS:
        found.append(f"line {node.lineno}: {node.name} has {count} fields, at most {MAX_FIELDS}: group them by topic")
    return found


def _length(node: Function | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def file_name_problems(path: str) -> list[str]:
    """A file or folder whose name says nothing about what is in it."""
    parts = Path(path).with_suffix("").parts
    return [f"{part!r} is a drawer, not a topic: name what is in it" for part in parts if part in FORBIDDEN_STEMS]


# -- constructs ----------------------------------------------------------------------------------------------


def construct_problems(source: str, *, contract: bool = False) -> list[str]:
    """`getattr` with a literal and a default, `**kwargs` without `Unpack` in a signature, `global`.

    In a file whose signatures are a `contract`'s, functions may take what the contract lets them be given.
    """
    found = []
    for node in nodes(source):
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), _]):
                found.append(f"line {node.lineno}: getattr(..., {name!r}, default) hides what a thing is: declare it")
            case ast.arguments(kwarg=ast.arg(annotation=ast.Subscript(value=ast.Name(id="Unpack")))):
                pass  # a typed dict names what is accepted
            case ast.arguments(kwarg=ast.arg()) if contract:
                pass
            case ast.arguments(kwarg=ast.arg() as rest):
                found.append(f"line {rest.lineno}: **{rest.arg} in a signature accepts anything: name it")
            case ast.Global():
                found.append(f"line {node.lineno}: global {', '.join(node.names)}: pass the value instead")
    return found


def docstring_problems(source: str) -> list[str]:
    """A module that does not say what lives in it."""
    return [] if ast.get_docstring(parsed(source)) else ["the module has no docstring: say what lives here"]


def broad_except_problems(source: str, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Handlers and `suppress` of everything, outside the functions in `allowed`.

    A handler that ends in a bare `raise` only cleans up, so it passes.
    """
    found: list[str] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, Function):
            function = node.name
        broad = isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _re_raises(node)
        broad = broad or (
            isinstance(node, ast.Call) and last_name(node) == "suppress" and any(map(_is_broad, node.args))
        )
        if broad and function not in allowed:
            assert isinstance(node, ast.ExceptHandler | ast.Call)
            found.append(f"line {node.lineno}: a broad except in {function or 'the module'}: name what you expect")
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(parsed(source), "")
    return found


def _is_broad(caught: ast.expr | None) -> bool:
    parts = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(part is None or last_name(part) in ("Exception", "BaseException") for part in parts)


def _re_raises(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def advice_problems(source: str) -> list[str]:
    """Errors of engines that are gone whose text does not say what to do now. Where there is no text, that of another
    is passed on.
    """
    calls = (node for node in nodes(source) if isinstance(node, ast.Call) and last_name(node) in GONE and node.args)
    said = ((node.lineno, _with_gaps(node.args[0])) for node in calls)
    return [
        f"line {line}: {text!r} does not say what to do, such as `; start the engine again`"
        for line, text in said
        if text not in ("", *PASSED_ON) and not ADVICE.search(text)
    ]


def _with_gaps(said: ast.expr) -> str:
    """A text, with {} for what is known later; empty for anything else."""
    match said:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_with_gaps(part) or "{}" for part in parts)
    return ""


def reads_environment(source: str) -> bool:
    """Whether a file touches the process environment."""
    for node in nodes(source):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "putenv" | "unsetenv"):
                return True
            case ast.ImportFrom(module="os") if any(a.name in ("environ", "getenv") for a in node.names):
                return True
    return False


# -- ambient state -------------------------------------------------------------------------------------------


def ambient_state_problems(source: str) -> list[str]:
    """Module-level names that are no constants, aliases or loggers, tables that change once made, and functions that
    keep tensors for as long as the process lives.

    A table in UPPER_CASE may be a dict, list or set if it is assigned once and nobody changes it; only a
    function called `register...` may add to one, since registries are filled while modules are imported.
    """
    tree = parsed(source)
    assigned = [(name, node) for node in _module_statements(tree) for name in _targets(node)]
    found = []
    for name, node in assigned:
        if not _is_allowed_name(name, node):
            found.append(f"line {node.lineno}: module-level {name}: constants are UPPER_CASE, the rest is passed")
    for name, count in Counter(name for name, _ in assigned).items():
        if count > 1 and not name.startswith("__"):
            found.append(f"module-level {name} is assigned {count} times: a constant is assigned once")
    found += [
        f"line {node.lineno}: {node.name} keeps tensors for life: whoever computes with them keeps them"
        for node in nodes(source)
        if isinstance(node, Function) and node.returns is not None and "Tensor" in ast.unparse(node.returns)
        if any(re.search(r"\b(lru_)?cache\b", ast.unparse(each)) for each in node.decorator_list)
    ]
    tables = {name for name, node in assigned if _is_mutable(node.value)}
    return found + [
        f"line {line}: {name} is changed after it was made: only register...() may"
        for name, line in _mutations(tree, tables)
    ]


def _module_statements(tree: ast.Module) -> Iterator[ast.Assign | ast.AnnAssign | ast.AugAssign]:
    blocks: list[ast.stmt] = list(tree.body)
    while blocks:
        node = blocks.pop(0)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            blocks += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def _targets(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [leaf.id for target in targets for leaf in ast.walk(target) if _is_stored(leaf)]


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _is_allowed_name(name: str, node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> bool:
    bare = name.lstrip("_")
    if name.startswith("__") and name.endswith("__"):
        return True
    if bare in LOGGERS:
        return last_name(node.value) == "getLogger" if node.value else False
    is_alias = re.fullmatch(r"[A-Z][A-Za-z0-9]*", bare) is not None and not _is_mutable(node.value)
    return is_alias or re.fullmatch(r"[A-Z][A-Z0-9_]*", bare) is not None


def _is_mutable(value: ast.expr | None) -> bool:
    literal = isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp)
    return literal or (isinstance(value, ast.Call) and last_name(value) in MUTABLE_CALLS)


def _mutations(tree: ast.Module, tables: set[str]) -> Iterator[tuple[str, int]]:
    def visit(node: ast.AST, registering: bool) -> Iterator[tuple[str, int]]:
        if isinstance(node, Function):
            registering = registering or node.name.lstrip("_").startswith("register")
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=verb)) if verb in MUTATORS:
                changed = name
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                changed = name
            case ast.AugAssign(target=ast.Name(id=name)):
                changed = name
            case _:
                changed = ""
        if changed in tables and not registering:
            assert isinstance(node, ast.expr | ast.stmt)
            yield changed, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, registering)

    return visit(tree, False)


# -- imports -------------------------------------------------------------------------------------------------


def imported_modules(source: str) -> list[tuple[str, int]]:
    """Every module that a file imports anywhere, with its line; `from a import b` counts as `a.b`."""
    found = []
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            found += [(f"{prefix}.{alias.name}", node.lineno) for alias in node.names]
    return found


def direction_problems(source: str, room: str) -> list[str]:
    """Imports by a file of `room` that do not go down, and relative ones (they hide a name's home)."""
    level = {name: row for row, names in enumerate(ROOMS) for name in names}
    if room not in level:
        return [f"the room {room!r} has no place in the order of rooms: add it to ROOMS"]
    found = []
    for module, line in imported_modules(source):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if not top:
            found.append(f"line {line}: relative import {module}: write omnimuse.{room}...")
        elif top in ("tests", "tools", "benchmarks", "examples"):
            found.append(f"line {line}: the package must not import {top}")
        elif top == "omnimuse" and other not in level and other != "__version__":
            found.append(f"line {line}: import from a room, not from {module}")
        elif top == "omnimuse" and other != room and level.get(other, len(ROOMS)) <= level[room]:
            found.append(f"line {line}: {room} must not import {other}: imports go down, {other} is not below")
    return found


def import_circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle while they are imported, by the texts of all; empty if none do.

    What is imported within a function, or for type checkers only, is not imported then.
    """
    graph = {}
    for module, source in sources.items():
        named = imported_modules(ast.unparse(_Begun().visit(ast.parse(source))))
        graph[module] = {name if name in sources else name.rpartition(".")[0] for name, _ in named} - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


class _Begun(ast.NodeTransformer):
    """Leaves of a module what runs while it is imported."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.Pass:
        return ast.Pass()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.Pass:
        return ast.Pass()

    def visit_If(self, node: ast.If) -> ast.AST:
        return ast.Pass() if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)


def torch_problems(source: str) -> list[str]:
    """Any import of torch, even inside a function or for type checking."""
    return [
        f"line {line}: imports {name}; this room works without torch"
        for name, line in imported_modules(source)
        if name.split(".")[0] == "torch"
    ]


# -- models --------------------------------------------------------------------------------------------------


def family_name_problems(source: str, families: Sequence[str]) -> list[str]:
    """Identifiers and strings that name a model family; comments and docstrings may."""
    docstrings = {id(node.value) for node in nodes(source) if isinstance(node, ast.Expr)}
    found = []
    for node in nodes(source):
        for text in _texts(node) if id(node) not in docstrings else ():
            for family in _named(text, tuple(families)):
                line = node.lineno if isinstance(node, ast.stmt | ast.expr | ast.arg) else "?"
                found.append(f"line {line}: {text[:60]!r} names the family {family}: that belongs in models/")
    return found


def _texts(node: ast.AST) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.ImportFrom(module=module) if module:
            return [module, *(alias.name for alias in node.names)]
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.keyword(arg=name) if name:
            return [name]
    return []


@cache
def _named(text: str, families: tuple[str, ...]) -> list[str]:
    return [family for family in families if _names_family(text, family)]


def _names_family(text: str, family: str) -> bool:
    """`z_image` is named by z_image, ZImage, Z-Image, zimage; `wan` by Wan2 but not by wanted."""
    words = _words(text)
    parts = _words(family)
    if "".join(parts) not in "".join(words):
        return False
    runs = [words[i : i + len(parts)] for i in range(len(words) - len(parts) + 1)]
    return parts in runs or "".join(parts) in words


@cache
def _words(text: str) -> list[str]:
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)]


def model_folder_problems(models: Path) -> list[str]:
    """One folder, one line in the table; the four files; short transformer and pipeline files.

    A kind of another family, whose network it uses, has neither a transformer nor rules of its own.
    """
    table = models / "__init__.py"
    lines = _table_lines(table.read_text()) if table.exists() else []
    folders = [path for path in sorted(models.iterdir()) if path.is_dir() and path.name != "__pycache__"]
    found = [f"{path.name}: a file beside the families; models/ holds folders" for path in _strays(models)]
    for folder in folders:
        count = sum(line.split(".")[-1].split(":")[0] == folder.name for line in lines)
        if count != 1:
            found.append(f"{folder.name}: {count} lines in the table, one is needed")
        own = any((folder / name).exists() for name in ("transformer.py", "weights.py"))
        for name in ("spec.py", "pipeline.py", *(("transformer.py", "weights.py") if own else ())):
            if not (folder / name).exists():
                found.append(f"{folder.name}: {name} is missing")
        for name, most in (("transformer.py", 500), ("pipeline.py", 300)):
            path = folder / name
            if path.exists() and (length := len(path.read_text().splitlines())) > most:
                found.append(f"{folder.name}/{name} has {length} lines, at most {most}")
    for line in lines:
        if line.split(".")[-1].split(":")[0] not in {folder.name for folder in folders}:
            found.append(f"the table names {line}, which has no folder")
    return found


def _strays(models: Path) -> list[Path]:
    return [path for path in sorted(models.glob("*.py")) if path.name != "__init__.py"]


def _table_lines(source: str) -> list[str]:
    """The values of the dict `TABLE`: the package of each family."""
    for node in _module_statements(ast.parse(source)):
        if _targets(node) == ["TABLE"] and isinstance(node.value, ast.Dict):
            return [str(value.value) for value in node.value.values if isinstance(value, ast.Constant)]
    return []
