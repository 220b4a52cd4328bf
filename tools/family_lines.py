"""`make lines`: how large the families' folders are, beside what we aim at, as a table in `docs/add-a-model.md`.

Lines that are not empty are counted. A family is to have at most `FAMILY` of them, and one that builds on another
family's modules `VARIANT`; each task beyond the first may take `TASK` more. Several networks in one folder, as models
that speak have, allow no more: what they need beyond that is for other families to share.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from omnimuse.core.spec import Spec
from omnimuse.models import REGISTRY
from tools.models_page import table

FAMILY, VARIANT, TASK = 450, 120, 120
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "add-a-model.md"
BEGIN, END = "<!-- made by `make lines` -->\n", "<!-- to here -->\n"
HEAD = ("folder", "lines", "of networks", "of weights", "we aim at")


@dataclass(frozen=True)
class Lines:
    """How many lines a folder has, in all and in the files that define networks and that name weights, and how many it
    should have.
    """

    family: str
    all: int
    networks: int
    weights: int
    aim: int

    @property
    def over(self) -> int:
        """Lines beyond what we aim at."""
        return max(0, self.all - self.aim)


def lines_of(spec: Spec) -> Lines:
    """Those of a family's folder."""
    folder = ROOT / "omnimuse" / "models" / spec.family
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    counts = {name: sum(bool(line.strip()) for line in text.splitlines()) for name, text in texts.items()}
    networks = sum(
        counts[name] for name, text in texts.items() if re.search(r"^from torch import .*\bnn\b", text, re.M)
    )
    others = re.compile(rf"^(?:from|import) omnimuse\.models\.(?!{spec.family}\b)\w", re.M)
    own = VARIANT if any(others.search(text) for text in texts.values()) else FAMILY
    aim = own + TASK * (len(spec.tasks) - 1)
    return Lines(spec.family, sum(counts.values()), networks, counts.get("weights.py", 0), aim)


def lines() -> list[Lines]:
    """Of all families, the largest first."""
    return sorted(map(lines_of, REGISTRY.specs()), key=lambda each: (-each.all, each.family))


def written() -> str:
    """The table."""
    rows = [
        (
            f"`{each.family}`",
            *map(str, (each.all, each.networks, each.weights)),
            f"{each.aim}{' (over)' * bool(each.over)}",
        )
        for each in lines()
    ]
    return table(HEAD, rows)


def main() -> int:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{written()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(f"wrote the table of {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
