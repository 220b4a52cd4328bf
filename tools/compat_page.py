"""`make compat`: the names of both guides as the second half of `docs/compat.md`, from the tables in the code.

What people wrote above the mark stays. A test makes the page again and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from omnimuse.compat.composed import table as sglang
from omnimuse.compat.composed.sampling import OPTIONS as SGLANG_OPTIONS
from omnimuse.compat.composed.sampling import SAMPLING, Meaning
from omnimuse.compat.contract.settings import ENVIRONMENT, FLAGS, METHODS, OPTIONS, PARALLEL, TOLD, Setting
from omnimuse.compat.contract.table import NAMES
from omnimuse.compat.tables import Argument, Known, Refused
from omnimuse.core.foreign import SETTINGS, Foreign

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compat.md"
MARK = "<!-- what follows is made by `make compat`; do not change it by hand -->\n"


def page(written: str) -> str:
    """The page: what is written above the mark, and the tables below it."""
    above = written.partition(MARK)[0].rstrip("\n")
    settings = (
        ("Options of `Omni` and `AsyncOmni`", OPTIONS),
        ("Methods of `Omni` and `AsyncOmni`", METHODS),
        ("Fields of `DiffusionParallelConfig`, and our options", PARALLEL),
        ("Fields of `OmniDiffusionConfig`, as a pipeline finds them", TOLD),
        ("Options of `vllm serve MODEL --omni`, which `omnimuse serve MODEL` takes", FLAGS),
        ("Environment variables", ENVIRONMENT),
    )
    tables = [
        known("Names", NAMES.known),
        known("What pipelines, networks and plugins have", NAMES.declared, of="of"),
        refused("Names that are refused", NAMES.refused),
        arguments("Arguments that the documents give", NAMES.arguments),
        *(chosen(title, rows) for title, rows in settings),
        foreign("Settings of stages in deploy files, and other options of `Omni`", SETTINGS),
        known("Names of SGLang Diffusion", sglang.NAMES.known),
        refused("Names of SGLang Diffusion that are refused", sglang.NAMES.refused),
        arguments("Arguments that SGLang Diffusion's pipelines give", sglang.NAMES.arguments),
        meanings("Sampling parameters of SGLang Diffusion", SAMPLING.items()),
        meanings("Options of SGLang Diffusion", SGLANG_OPTIONS.items()),
    ]
    return f"{above}\n\n{MARK}\n" + "\n".join(tables)


def known(title: str, rows: Sequence[Known], of: str = "module") -> str:
    """Every name that is here, and the module, or what else, it is `of`."""
    lines = [f"## {title}", "", f"| {of} | names | documented in | what ours does | test |", "|---|---|---|---|---|"]
    alike = groupby(rows, key=lambda row: (row.module, row.where, row.does, row.test))
    lines += [_line(list(each)) for _, each in alike]
    return "\n".join(lines) + "\n"


def _line(rows: list[Known]) -> str:
    row, names = rows[0], ", ".join(f"`{each.name}`" for each in rows)
    path, _, test = row.test.partition("::")
    of = row.module if " " in row.module else f"`{row.module}`"
    return f"| {of} | {names} | {row.where} | {row.does} | `{Path(path).name}`: {test.replace('_', ' ')} |"


def refused(title: str, rows: Sequence[Refused]) -> str:
    """Every name that is not, and why."""
    lines = [f"## {title}", "", "| module | name | documented in | why |", "|---|---|---|---|"]
    for row in rows:
        name = "all of it" if row.name == "*" else f"`{row.name}`"
        lines.append(f"| `{row.module}` | {name} | {row.where} | {row.why} |")
    return "\n".join(lines) + "\n"


def arguments(title: str, rows: Sequence[Argument]) -> str:
    """Every argument, and what it does."""
    lines = [f"## {title}", "", "| of | arguments | documented in | what ours does |", "|---|---|---|---|"]
    for (module, owner, where, does), alike in groupby(
        rows, key=lambda row: (row.module, row.owner, row.where, row.does)
    ):
        names = ", ".join(f"`{row.name}`" for row in alike)
        lines.append(f"| `{module}.{owner}` | {names} | {where} | {does} |")
    return "\n".join(lines) + "\n"


def chosen(title: str, rows: Sequence[Setting]) -> str:
    """Names that people choose, or that a pipeline is told."""
    lines = [f"## {title}", "", "| name | what it does here |", "|---|---|"]
    for row in rows:
        lines.append(f"| `{row.name}` | {'not taken: ' if row.refused else ''}{row.does} |")
    return "\n".join(lines) + "\n"


def foreign(title: str, rows: Mapping[str, Foreign]) -> str:
    """Settings that choose nothing, alike ones in a line: what is taken, and why no more."""
    lines = [f"## {title}", "", "| name | taken | what it is here |", "|---|---|---|"]
    for (why, anyway, void), alike in groupby(rows.items(), key=lambda row: (row[1].why, row[1].anyway, row[1].void)):
        names = ", ".join(f"`{name}`" for name, _ in alike)
        taken = "any value, and the log says so" if void else " or ".join(f"`{each!r}`" for each in anyway)
        lines.append(f"| {names} | {taken} | {why} |")
    return "\n".join(lines) + "\n"


def meanings(title: str, rows: Iterable[tuple[str, Meaning]]) -> str:
    """What each name means here, or why it is refused."""
    lines = [f"## {title}", "", "| name | what it is here |", "|---|---|"]
    for name, meaning in rows:
        told = f"refused: {meaning.refused}" if meaning.refused else meaning.about
        lines.append(f"| `{name}` | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
