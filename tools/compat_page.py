"""`make compat`: the names of the contract as the second half of `docs/compat.md`, from the table in the code.

What people wrote above the mark stays. A test makes the page again and compares.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from omnimuse.compat.contract.table import KNOWN, REFUSED, Known

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compat.md"
MARK = "<!-- what follows is made by `make compat`; do not change it by hand -->\n"


def page(written: str) -> str:
    """The page: what is written above the mark, and the tables below it."""
    above = written.partition(MARK)[0].rstrip("\n")
    return f"{above}\n\n{MARK}\n{known()}\n{refused()}"


def known() -> str:
    """Every name that is here."""
    lines = ["## Names", "", "| module | names | documented in | what ours does | test |", "|---|---|---|---|---|"]
    alike = groupby(KNOWN, key=lambda row: (row.module, row.where, row.does, row.test))
    lines += [_line(list(rows)) for _, rows in alike]
    return "\n".join(lines) + "\n"


def _line(rows: list[Known]) -> str:
    row, names = rows[0], ", ".join(f"`{each.name}`" for each in rows)
    path, _, test = row.test.partition("::")
    return f"| `{row.module}` | {names} | {row.where} | {row.does} | `{Path(path).name}`: {test.replace('_', ' ')} |"


def refused() -> str:
    """Every name that is not, and why."""
    lines = ["## Names that are refused", "", "| module | name | documented in | why |", "|---|---|---|---|"]
    for row in REFUSED:
        name = "all of it" if row.name == "*" else f"`{row.name}`"
        lines.append(f"| `{row.module}` | {name} | {row.where} | {row.why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
