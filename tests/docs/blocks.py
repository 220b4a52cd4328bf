"""The fenced blocks of the pages: what they hold, and why one is not run where it says so.

A block is excused by a comment on the line above it: `<!-- not run: REASON -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")))
RUN = ("sh", "python")
"""Languages that are run; blocks of others show a file."""
FILES = ("nginx", "ini", "json", "toml", "yaml", "text", "")

_FENCE = re.compile(r"^```(\w*)\s*$")
_EXCUSE = re.compile(r"^<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """The lines of one block, its language and where it begins; `excuse` says why it is not run."""

    page: str
    line: int
    language: str
    text: str
    excuse: str = ""


def blocks(page: str) -> list[Block]:
    """Every fenced block of `page`, in order."""
    found: list[Block] = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    begun, language, excuse = 0, "", ""
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line.strip())
        if fence and not begun:
            above = _EXCUSE.match(lines[number - 2].strip()) if number > 1 else None
            begun, language, excuse = number, fence[1], above[1] if above else ""
        elif fence:
            found.append(Block(page, begun, language, "\n".join(lines[begun : number - 1]), excuse))
            begun = 0
    assert not begun, f"{page}: the block in line {begun} does not end"
    return found
