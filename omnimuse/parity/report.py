"""What a comparison found, in a few lines for a terminal and as the page that a pull request needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from torch import Tensor

from omnimuse.media.image import to_image
from omnimuse.parity.compare import Kind, Part, first_apart
from omnimuse.parity.run import Outcome


def verdict(outcome: Outcome, tolerance: float) -> str:
    """One sentence: that all agrees, or which part is the first that does not."""
    if (part := first_apart(outcome.parts, tolerance)) is None:
        return f"{outcome.arch} agrees with diffusers in every part, within {tolerance:g}."
    return (
        f"{outcome.arch} parts from diffusers at: {part.where} ({_figure(part)}; at most {tolerance:g} is agreement)."
    )


def rows(outcome: Outcome, tolerance: float) -> Iterator[tuple[str, str, str]]:
    """Of each kind of part how many were compared, the worst, and where the first is that is too far apart."""
    for kind in get_args(Kind):
        parts = [part for part in outcome.parts if part.kind == kind]
        if parts:
            worst, first = max(parts, key=lambda part: part.apart), first_apart(parts, tolerance)
            yield f"{kind} ({len(parts)})", _figure(worst), "agrees" if first is None else first.where
    agrees = "agrees" if outcome.company <= tolerance else "differs from alone"
    yield "in company of two", f"{outcome.company:.1e}", agrees


def pictures_of(file: Path) -> list[Path]:
    """Where the pictures beside a report are: ours, and the reference's."""
    return [file.with_name(f"{file.stem}-{name}.png") for name in ("ours", "diffusers")]


def write_report(outcome: Outcome, tolerance: float, file: Path, command: str) -> list[Path]:
    """Write the page, and beside it what both sides drew; the files, the page last."""
    drawn = pictures_of(file) if outcome.medium in ("image", "video") else []
    for path, result in zip(drawn, (outcome.ours.result, outcome.theirs.result), strict=False):
        assert result is not None
        to_image(_still(result)).save(path)
    lines = [f"# {outcome.arch} beside diffusers", "", verdict(outcome, tolerance), ""]
    how = 'the norm of the difference over that of the reference; "in order of size" where the library packs otherwise'
    lines += [f"    {command}", "", f"Computed in {outcome.dtype}. Apart: {how}.", ""]
    lines += ["| part | apart at most | |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(outcome, tolerance)]
    ours, theirs = outcome.ours.seconds, outcome.theirs.seconds
    lines += ["", f"Seconds, notes taken: ours {ours:.2f}, diffusers {theirs:.2f} ({ours / theirs:.2f}).", ""]
    if drawn:
        lines += ["| ours | diffusers |", "|---|---|", f"| {' | '.join(f'![]({path.name})' for path in drawn)} |", ""]
    file.write_text("\n".join(lines), encoding="utf-8")
    return [*drawn, file]


def _still(result: Tensor) -> Tensor:
    """A picture [3, h, w], or the middle frame of a video [F, 3, h, w]."""
    return result[len(result) // 2] if result.ndim == 4 else result


def _figure(part: Part) -> str:
    figure = "other sizes" if part.apart == float("inf") else f"{part.apart:.1e}"
    return f"{figure}, {part.how}" if part.how else figure
