"""The house rules, checked over the whole project, and the checkers, checked on small bad snippets.

The rules are in `docs/architecture.md`; how each is checked is in `tests/architecture.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests import architecture as check

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "omnimuse"
MODELS = PACKAGE / "models"

EXEMPTIONS: tuple[str, ...] = ()
"""`path: problem` lines that are forgiven. The list may only shrink; it began empty."""
MOST_EXEMPTIONS_EVER = 0

BROAD_EXCEPT = {
    "omnimuse/engine/engine.py": frozenset({"tick"}),
    "omnimuse/engine/local.py": frozenset({"run", "_live", "_deliver"}),
    "omnimuse/cli/app.py": frozenset({"main"}),
    "omnimuse/ar/vllm_child.py": frozenset({"main"}),
    "omnimuse/worker/runner.py": frozenset({"_isolated"}),
    "omnimuse/worker/telling.py": frozenset({"_preview"}),
    "omnimuse/worker/forwards.py": frozenset({"_try"}),
    "omnimuse/pipeline/lent.py": frozenset({"_tell"}),
    "omnimuse/server/errors.py": frozenset({"tried"}),
}
"""The only functions that may catch everything: the command line, the worker loop, the HTTP handler, another engine."""

CONTRACT = ("omnimuse/compat/vllm/", "omnimuse/compat/vllm_omni/", "omnimuse/compat/sglang/")
"""Where names of files and signatures are not ours to choose: code from elsewhere imports and calls them."""

ENVIRONMENT_FILE = "omnimuse/core/environment.py"


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def sources(*roots: str) -> dict[str, str]:
    """Path from the root -> text, for every Python file below `roots` (the bundled model holds data only)."""
    paths = [path for root in roots for path in sorted((ROOT / root).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): text_of(path) for path in paths}


def room_of(path: str) -> str | None:
    """`omnimuse/core/spec.py` -> core, `omnimuse/api.py` -> api; `__init__.py` is above all rooms.

    What scripts of the contract call stands where the contract has it, and is a room of its own above `api`.
    """
    parts = Path(path).with_suffix("").parts
    if path.startswith((f"{CONTRACT[1]}entrypoints/", f"{CONTRACT[2]}runtime/entrypoints/")):
        return "entrypoints"
    return None if parts[1] in ("__init__", "__main__") else parts[1]


def families() -> list[str]:
    """The folders in omnimuse/models/."""
    return (
        [p.name for p in sorted(MODELS.glob("*")) if p.is_dir() and p.name != "__pycache__"] if MODELS.exists() else []
    )


def refuse(found: dict[str, list[str]]) -> None:
    """Fail with every problem, less the exempted ones."""
    lines = [f"{path}: {problem}" for path, problems in found.items() for problem in problems]
    left = [line for line in lines if line not in EXEMPTIONS]
    assert not left, "\n" + "\n".join(left)


# -- the project ---------------------------------------------------------------------------------------------


def test_files_functions_classes_and_records_are_small() -> None:
    refuse({path: check.size_problems(text) for path, text in sources("omnimuse", "tools").items()})


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    paths = sources("omnimuse", "tools", "tests")
    refuse({path: check.file_name_problems(path) for path in paths if not path.startswith(CONTRACT)})


def test_forbidden_constructs_do_not_appear() -> None:
    refuse(
        {
            path: check.construct_problems(text, contract=path.startswith(CONTRACT))
            for path, text in sources("omnimuse", "tools").items()
        }
    )


def test_every_module_says_what_lives_in_it() -> None:
    refuse({path: check.docstring_problems(text) for path, text in sources("omnimuse", "tools", "tests").items()})


def test_there_is_no_ambient_state() -> None:
    refuse({path: check.ambient_state_problems(text) for path, text in sources("omnimuse", "tools").items()})


def test_only_the_outermost_loops_catch_everything() -> None:
    refuse(
        {
            path: check.broad_except_problems(text, BROAD_EXCEPT.get(path, frozenset()))
            for path, text in sources("omnimuse", "tools").items()
        }
    )


def test_whoever_is_told_that_an_engine_is_gone_is_told_what_to_do() -> None:
    refuse({path: check.advice_problems(text) for path, text in sources("omnimuse").items()})


def test_the_environment_is_read_in_one_file() -> None:
    readers = [path for path, text in sources("omnimuse").items() if check.reads_environment(text)]
    assert readers in ([], [ENVIRONMENT_FILE])


def test_imports_go_down_the_list_of_rooms() -> None:
    found = {}
    for path, text in sources("omnimuse").items():
        room = room_of(path)
        if room is not None:
            found[path] = check.direction_problems(text, room)
    refuse(found)


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = sources("omnimuse")
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): found[path] for path in found}
    assert check.import_circle(modules) == []


def test_core_and_the_scheduler_never_name_torch() -> None:
    quiet = {
        path: text
        for path, text in sources("omnimuse").items()
        if room_of(path) == "core" or path in ("omnimuse/__init__.py", "omnimuse/engine/scheduler.py")
    }
    assert any(path.startswith("omnimuse/core/") for path in quiet)
    refuse({path: check.torch_problems(text) for path, text in quiet.items()})


def test_no_family_of_models_is_named_outside_models() -> None:
    found = {
        path: check.family_name_problems(text, families())
        for path, text in sources("omnimuse").items()
        if room_of(path) != "models"
    }
    refuse(found)


def test_each_family_is_one_folder_and_one_line_in_the_table() -> None:
    assert MODELS.exists()
    refuse({"omnimuse/models": check.model_folder_problems(MODELS)})


def test_importing_the_package_its_core_the_command_line_the_server_and_what_families_declare_loads_no_torch() -> None:
    modules = ["omnimuse"] + [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sources("omnimuse")
        if (room_of(path) in ("core", "cli", "server") or path.endswith("/spec.py"))
        and not path.endswith("__main__.py")
    ]
    program = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_exemptions_may_only_shrink() -> None:
    assert len(EXEMPTIONS) <= MOST_EXEMPTIONS_EVER


# -- the checkers: what each must catch ----------------------------------------------------------------------

TOO_LONG_FILE = '"""x"""\n' + "x = 1\n" * 500
TOO_LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 60
TOO_LONG_CLASS = "class C:\n" + "    x = 1\n" * 350
TOO_MANY_PARAMETERS = "class C:\n    def f(self, a, b, c, d, /, e, *, f, g, h): ..."
RECORD = "@dataclass(frozen=True)\nclass C:\n" + "".join(f"    f{i}: int\n" for i in range(16))
STRUCT = "class C(msgspec.Struct):\n" + "".join(f"    f{i}: int\n" for i in range(16))


@pytest.mark.parametrize(
    "source", [TOO_LONG_FILE, TOO_LONG_FUNCTION, TOO_LONG_CLASS, TOO_MANY_PARAMETERS, RECORD, STRUCT]
)
def test_the_size_check_catches(source: str) -> None:
    assert len(check.size_problems(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""x"""\n' + "x = 1\n" * 499,
        "def f():\n" + "    x = 1\n" * 59,
        "class C:\n    def f(self, a, b, c, d, e, f, g): ...",
        RECORD.replace("f15: int", "f15: ClassVar[int]"),
    ],
)
def test_the_size_check_passes_what_just_fits(source: str) -> None:
    assert check.size_problems(source) == []


@pytest.mark.parametrize("path", ["omnimuse/core/utils.py", "omnimuse/helpers/x.py", "tests/common.py"])
def test_the_file_name_check_catches(path: str) -> None:
    assert check.file_name_problems(path)
    assert not check.file_name_problems("omnimuse/core/spec.py")


@pytest.mark.parametrize(
    "source",
    [
        'getattr(x, "name", None)',
        "def f(a, **rest): ...",
        "f = lambda **rest: 1",
        "def f():\n    global X\n    X = 1",
    ],
)
def test_the_construct_check_catches(source: str) -> None:
    assert len(check.construct_problems(source)) == 1


def test_what_the_contract_calls_may_take_anything_by_name() -> None:
    source = "def predict_noise(self, **kwargs): ..."
    assert check.construct_problems(source, contract=True) == []
    assert len(check.construct_problems(source)) == 1


def test_the_construct_check_passes_computed_names_and_unpacked_calls() -> None:
    assert check.construct_problems('getattr(x, name)\ngetattr(x, name, None)\nf(**{"a": 1})\ngetattr(x, "a")') == []


@pytest.mark.parametrize(
    "source",
    [
        "current = None",
        "_cache: dict[str, int] = {}",
        "logger = {}",
        "Cache = {}",
        "X = 1\nX = 2",
        "X = {}\ndef f():\n    X['a'] = 1",
        "X = []\ndef f():\n    X.append(1)",
        "X = set()\ndef f():\n    del X[0]",
        "X = []\nX += [1]",
        "if True:\n    session = open('x')",
        "@lru_cache(maxsize=8)\ndef table(size: int) -> tuple[Tensor, Tensor]: ...",
        "@functools.cache\ndef table(size: int) -> torch.Tensor: ...",
    ],
)
def test_the_ambient_state_check_catches(source: str) -> None:
    assert check.ambient_state_problems(source)


@pytest.mark.parametrize(
    "source",
    [
        "import logging\nlogger = logging.getLogger(__name__)",
        "__all__ = ['a']\nMAX = 3\n_TABLE = {'a': 1}\nEvent = int | str\nT = TypeVar('T')",
        "BACKENDS = {}\ndef register(name, cls):\n    BACKENDS[name] = cls",
        "def f():\n    x = []\n    x.append(1)",
        "@cache\ndef heights(weight: Tensor) -> tuple[int, ...]: ...",
    ],
)
def test_the_ambient_state_check_passes_constants_aliases_loggers_and_registries(source: str) -> None:
    assert check.ambient_state_problems(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    try: g()\n    except Exception: pass",
        "try: g()\nexcept: pass",
        "def f():\n    try: g()\n    except (ValueError, BaseException) as e: print(e)",
        "def f():\n    with suppress(Exception): g()",
    ],
)
def test_the_broad_except_check_catches(source: str) -> None:
    assert len(check.broad_except_problems(source, frozenset({"main"}))) == 1


@pytest.mark.parametrize(
    "source",
    [
        'raise EngineDeadError("nobody is there")',
        'raise errors.EngineClosedError(f"{name} ended; it is not tried again")',
        'gone = PoisonError(f"it makes no sense: {error}")',
        'raise WorkerLostError(f"worker {index} did not start; " "it ended")',
    ],
)
def test_the_advice_check_catches(source: str) -> None:
    assert check.advice_problems(source)


def test_the_advice_check_passes_advice_and_what_is_passed_on() -> None:
    assert not check.advice_problems('raise EngineDeadError(f"rank {rank} is gone; start the engine again")')
    assert not check.advice_problems("raise EngineDeadError(str(self.dead))")
    assert not check.advice_problems('raise EngineDeadError(f"the engine has died: {error}")')
    assert not check.advice_problems('raise ModelError("no folder")')


def test_the_broad_except_check_passes_listed_functions_narrow_handlers_and_clean_up() -> None:
    source = (
        "def main():\n    try: g()\n    except Exception: pass\n"
        "def f():\n    try: g()\n    except ValueError: pass\n"
        "def h():\n    try: g()\n    except BaseException:\n        clean()\n        raise\n"
    )
    assert check.broad_except_problems(source, frozenset({"main"})) == []


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ"]
)
def test_the_environment_check_catches(source: str) -> None:
    assert check.reads_environment(source)
    assert not check.reads_environment("import os\nos.cpu_count()")


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("from omnimuse.api import Omni", "worker"),
        ("import omnimuse.engine.scheduler", "core"),
        ("from omnimuse.cache import x", "offload"),
        ("def f():\n    from omnimuse.pipeline.state import State", "layers"),
        ("from omnimuse import cli", "api"),
        ("from omnimuse import Omni", "cli"),
        ("from . import x", "core"),
        ("from tests.fakes import x", "core"),
        ("", "attic"),
    ],
)
def test_the_direction_check_catches(source: str, room: str) -> None:
    assert len(check.direction_problems(source, room)) == 1


def test_the_direction_check_passes_the_way_down_and_the_own_room() -> None:
    source = "from omnimuse.core.spec import Spec\nfrom omnimuse.worker import build\nfrom omnimuse import core"
    assert check.direction_problems(source, "worker") == []


def test_the_circle_check_finds_one_of_any_length_and_passes_what_is_imported_late() -> None:
    modules = {"a": "import b", "b": "if True:\n    from c import x", "c": "from a import y", "d": "import a"}
    assert sorted(set(check.import_circle(modules))) == ["a", "b", "c"]
    assert check.import_circle({**modules, "c": "def f():\n    from a import y"}) == []
    assert check.import_circle({**modules, "c": "if TYPE_CHECKING:\n    from a import y"}) == []


@pytest.mark.parametrize(
    "source", ["import torch", "def f():\n    from torch import nn", "import torch.nn.functional as F"]
)
def test_the_torch_check_catches(source: str) -> None:
    assert check.torch_problems(source)
    assert not check.torch_problems("import numpy\nimport torchless")


@pytest.mark.parametrize(
    "source",
    [
        "import z_image",
        "x = 'Tongyi-MAI/Z-Image-Turbo'",
        "class ZImageTransformer: ...",
        "def f(zimage): ...",
        "f(z_image=1)",
    ],
)
def test_the_family_name_check_catches(source: str) -> None:
    assert check.family_name_problems(source, ["z_image"])


def test_the_family_name_check_passes_comments_docstrings_and_longer_words() -> None:
    source = '"""As in Z-Image and Wan."""\n# Wan does this\nwanted = "we wanted an image"\n"""wan"""\n'
    assert check.family_name_problems(source, ["z_image", "wan"]) == []


def make_models(folder: Path, table: str, families: dict[str, int]) -> Path:
    """A models folder whose families have pipeline files of the given numbers of lines."""
    (folder / "__init__.py").write_text(table)
    for name, lines in families.items():
        (folder / name).mkdir()
        for file in ("spec.py", "transformer.py", "weights.py"):
            (folder / name / file).write_text("x\n")
        (folder / name / "pipeline.py").write_text("x\n" * lines)
    return folder


def test_the_model_folder_check_passes_one_folder_with_one_line(tmp_path: Path) -> None:
    table = 'TABLE = {"OnePipeline": "omnimuse.models.one"}'
    assert check.model_folder_problems(make_models(tmp_path, table, {"one": 300})) == []


def _break(name: str) -> Callable[[Path], None]:
    return lambda models: (models / "one" / name).unlink()


@pytest.mark.parametrize(
    ("table", "lines", "harm"),
    [
        ("TABLE = {}", 3, None),
        ('TABLE = {"One": "omnimuse.models.one", "Two": "omnimuse.models.one"}', 3, None),
        ('TABLE = {"One": "omnimuse.models.one", "Two": "omnimuse.models.two"}', 3, None),
        ('TABLE = {"One": "omnimuse.models.one"}', 301, None),
        ('TABLE = {"One": "omnimuse.models.one"}', 3, _break("weights.py")),
        ('TABLE = {"One": "omnimuse.models.one"}', 3, lambda models: (models / "stray.py").write_text("")),
    ],
)
def test_the_model_folder_check_catches(
    tmp_path: Path, table: str, lines: int, harm: Callable[[Path], object] | None
) -> None:
    models = make_models(tmp_path, table, {"one": lines})
    if harm is not None:
        harm(models)
    assert len(check.model_folder_problems(models)) == 1


def test_every_folder_of_tests_is_one_that_pytest_enters(pytestconfig: pytest.Config) -> None:
    skipped = pytestconfig.getini("norecursedirs")
    folders = {part for path in (ROOT / "tests").rglob("test_*.py") for part in path.relative_to(ROOT).parent.parts}
    assert not [name for name in folders if any(fnmatch(name, pattern) for pattern in skipped)]


def test_what_a_page_shows_is_waited_for() -> None:
    """Playwright's questions are answered at once, a race with the page's scripts; what it `expect`s it waits for."""
    at_once = re.compile(r"\.(input_value|is_(hidden|visible|enabled|disabled|checked|editable))\((timeout=.*)?\)")
    tests = {path: text for path, text in sources("tests").items() if "tests.server.browser" in text}
    assert tests
    assert not {path: found[0] for path, text in tests.items() if (found := at_once.search(text))}
