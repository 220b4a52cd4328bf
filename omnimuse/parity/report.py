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
    where = part.where
    if part.kind == "result":
        where += ", and nothing that was compared before it: look at what becomes of the last latents"
    return f"{outcome.arch} parts from diffusers at: {where} ({_figure(part)}; at most {tolerance:g} is agreement)."


def rows(outcome: Outcome, tolerance: float) -> Iterator[tuple[str, str, str]]:
    """Of each kind of part how many were compared, the worst, and where the first is that is too far apart; where all
    agree, where the worst is.
    """
    for kind in get_args(Kind):
        parts = [part for part in outcome.parts if part.kind == kind]
        if parts:
            worst, first = max(parts, key=lambda part: part.apart), first_apart(parts, tolerance)
            most = f"agrees, least at: {worst.where}" if len(parts) > 1 and worst.apart else "agrees"
            yield f"{kind} ({len(parts)})", _figure(worst), most if first is None else first.where
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
    lines += [f"    {command}", "", f"Computed in {outcome.dtype} by {outcome.made_by}. Apart: {how}.", ""]
    lines += ["| part | apart at most | |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(outcome, tolerance)]
    if absent := [kind for kind in get_args(Kind) if all(part.kind != kind for part in outcome.parts)]:
        lines += ["", f"Not compared, for the two have nothing alike: {', '.join(absent)}."]
    ours, theirs = outcome.ours.seconds, outcome.theirs.seconds
    lines += ["", f"Seconds, notes taken: ours {ours:.2f}, diffusers {theirs:.2f} ({ours / theirs:.2f})."]
    lines += ["Whoever wants the speed measures it without notes: `omnimuse bench`.", ""]
    lines += ["| asked | |", "|---|---|", *(_asked(*each) for each in outcome.asked.items()), ""]
    if drawn:
        lines += [_pixels(*(_still(each) for each in (outcome.ours.result, outcome.theirs.result) if each is not None))]
        lines += [
            "",
            "| ours | diffusers |",
            "|---|---|",
            f"| {' | '.join(f'![]({path.name})' for path in drawn)} |",
            "",
        ]
    file.write_text("\n".join(lines), encoding="utf-8")
    return [*drawn, file]


def _asked(name: str, value: object) -> str:
    """A line of the table of what was drawn."""
    told = str(value).replace("|", "\\|").replace("\n", " ")
    return f"| {name} | `{told}` |"


def _pixels(ours: Tensor, theirs: Tensor) -> str:
    """How far the two pictures are apart as they are saved, in 255 parts of white."""
    apart = (ours - theirs).abs().mul(255).round()
    return f"Pixels: at most {int(apart.max())} of 255 apart, {float((apart == 0).float().mean()):.2%} of them equal."


def _still(result: Tensor) -> Tensor:
    """A picture [3, h, w], or the middle frame of a video [F, 3, h, w]."""
    return result[len(result) // 2] if result.ndim == 4 else result


def _figure(part: Part) -> str:
    figure = "other sizes" if part.apart == float("inf") else f"{part.apart:.1e}"
    return f"{figure}, {part.how}" if part.how else figure
