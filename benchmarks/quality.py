"""What step caches cost and save on the demo model: `python -m benchmarks.quality --write docs/quality.md`.

The grader of `tools/train_shapes` gives its prompts, which are drawn with every choice, several at a time, and judges
the pictures. Time is processor seconds, of some of them drawn alone and up to the finished latents, as a ratio to exact
drawing in turns with it; other work on the machine disturbs it less than the clock.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median

import numpy as np

from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.core.caches import PRESETS
from omnimuse.core.output import Done, Failed, Result
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import present, start
from tools.train_shapes.data import SIZE
from tools.train_shapes.grade import Task, draw_tasks, judge_task

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TOGETHER = 20
"""Pictures in flight, where none is timed."""
OTHERS = ("dbcache", "taylorseer", "teacache", "dbcache,mask=fast,forced=true")
"""Choices that are graded beside the presets."""


@dataclass
class Tally:
    """What was found of one choice: right pictures, seconds, and by how much pixels differ from exact ones."""

    right: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)


def main() -> None:
    """Print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="prompts (default: 200)")
    parser.add_argument("--timed", type=int, default=8, help="of these are timed, too (default: 8)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--caches", nargs="+", default=[*PRESETS, *OTHERS], metavar="CHOICE")
    parser.add_argument("--fewer", type=int, nargs="*", default=[10], metavar="STEPS", help="fewer steps, exact")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    engine = start(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu")))
    exact = DiffusionParams(args.steps, args.guidance, width=SIZE, height=SIZE, cache="none")
    choices = {"exact": exact}
    choices |= {f"`{choice}`": replace(exact, cache=choice) for choice in args.caches}
    choices |= {f"{steps} steps": replace(exact, num_inference_steps=steps) for steps in args.fewer}
    tasks = draw_tasks(args.count)
    found = {name: Tally() for name in choices}
    draw(engine, tasks[:1], replace(exact, output_type="latent"))  # the first warms up
    for task in tasks[: args.timed]:
        for name, params in choices.items():
            began = time.process_time()
            draw(engine, [task], replace(params, output_type="latent"))
            found[name].seconds.append(time.process_time() - began)
    for first in range(0, len(tasks), TOGETHER):
        measure(engine, tasks[first : first + TOGETHER], choices, found)
    engine.close()
    table = rows(found)
    print(table)
    if args.write is not None:
        said = f"`python -m benchmarks.quality {' '.join(sys.argv[1:])}`, float32 on a CPU:"
        before, _, rest = args.write.read_text(encoding="utf-8").partition(BEGIN)
        args.write.write_text(f"{before}{BEGIN}\n{said}\n\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measure(
    engine: Engine, tasks: Sequence[Task], choices: Mapping[str, DiffusionParams], found: Mapping[str, Tally]
) -> None:
    """Some prompts with every choice."""
    exact: list[np.ndarray] = []
    for name, params in choices.items():
        pictures = [present(result, engine.door.limits).images[0] for result in draw(engine, tasks, params)]
        pixels = [np.asarray(picture, dtype=np.float32) for picture in pictures]
        exact = exact or pixels
        found[name].right += [judge_task(picture, task).right for picture, task in zip(pictures, tasks, strict=True)]
        found[name].pixels += [float(np.abs(new - old).mean()) for new, old in zip(pixels, exact, strict=True)]


def draw(engine: Engine, tasks: Sequence[Task], params: DiffusionParams) -> list[Result]:
    """All tasks together, in order."""
    asks = [Ask(task.prompt, replace(params, seed=task.seed)) for task in tasks]
    ids = [engine.submit(engine.make_request(ask)) for ask in asks]
    done: dict[str, Result] = {}
    while len(done) < len(ids):
        for event in engine.tick():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                done[event.request_id] = event.result
    return [done[each] for each in ids]


def rows(found: Mapping[str, Tally]) -> str:
    """The table, in Markdown."""
    exact = found["exact"]
    lines = ["| choice | speed-up | right pictures | pixels differ, of 255 |", "|---|---|---|---|"]
    for name, tally in found.items():
        ratio = median(a / b for a, b in zip(exact.seconds, tally.seconds, strict=True))
        lines.append(f"| {name} | {ratio:.2f} | {mean(tally.right):.1%} | {mean(tally.pixels):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
