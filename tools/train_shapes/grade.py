"""The yard-stick: 200 prompts, pictures of them from any engine, judged by code.

``grade(generate)`` takes any callable from prompts and seeds to pictures.  Report beside every score the
ceiling on true drawn pictures (``draw_truth``) and on reconstructions by the model's autoencoder.

    python -m tools.train_shapes.grade omnimuse/bundled/shapes [--engine omnimuse|diffusers|truth|vae]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from tools.train_shapes.captions import TOLD_RELATION, background_words, name_thing, place_words
from tools.train_shapes.data import Renderer, Scene, draw_scene, held_out
from tools.train_shapes.judge import Verdict, judge

Generate = Callable[[list[str], list[int]], list[Image.Image]]
DEFAULT_COUNT = 200


@dataclass(frozen=True)
class Task:
    """A prompt, the scene that answers it (positions are one example), and what it mentions."""

    prompt: str
    scene: Scene
    background_asked: bool
    place_asked: bool
    seed: int


@dataclass(frozen=True)
class Report:
    """Shares right, 0..1.  ``aspects`` are over the tasks that ask for the aspect."""

    single: float
    pair: float
    aspects: dict[str, float]
    counts: dict[str, int]
    failures: list[str]

    def table(self) -> str:
        """The figures as lines of text."""
        lines = [f"single object  {self.single:6.1%}  of {self.counts['single']}"]
        lines.append(f"two objects    {self.pair:6.1%}  of {self.counts['pair']}")
        lines += [f"  {name:12} {share:6.1%}  of {self.counts[name]}" for name, share in self.aspects.items()]
        return "\n".join(lines)


def _task(rng: random.Random, count: int, held_share: float) -> Task:
    """One task; with ``held_share`` its combination is one that such a training run never saw."""
    scene = draw_scene(rng, count)
    while held_share and not held_out(scene, held_share):
        scene = draw_scene(rng, count)
    names = [name_thing(thing, rng, sized=False) for thing in scene.things]
    prompt = names[0] if count == 1 else f"{names[0]} {TOLD_RELATION[scene.relation]} {names[1]}"
    place_asked = count == 1 and rng.random() < 0.25
    if place_asked:
        prompt += f" {place_words(scene.things[0])}"
    background_asked = rng.random() < 0.6
    if background_asked:
        prompt += background_words(scene.background, rng)
    return Task(prompt, scene, background_asked, place_asked, rng.randrange(2**31))


def draw_tasks(count: int = DEFAULT_COUNT, seed: int = 2026, held_share: float = 0.0) -> list[Task]:
    """``count`` tasks, half of one thing and half of two, all prompts different; the same for a seed."""
    rng = random.Random(seed)
    tasks: dict[str, Task] = {}
    while len(tasks) < count:
        task = _task(rng, 1 if len(tasks) < count // 2 else 2, held_share)
        tasks.setdefault(task.prompt, task)
    return list(tasks.values())


def judge_task(image: Image.Image, task: Task) -> Verdict:
    """The verdict on ``image`` as an answer to ``task``."""
    place = place_words(task.scene.things[0]) if task.place_asked else ""
    return judge(image, task.scene, task.background_asked, place)


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 1.0


def _failure(task: Task, verdict: Verdict) -> str:
    wrong = ", ".join(name for name, right in verdict.aspects.items() if not right)
    return f"{task.prompt} (seed {task.seed}): wrong {wrong}; {'; '.join(verdict.notes)}"


def summarise(tasks: list[Task], verdicts: list[Verdict]) -> Report:
    """All verdicts as one report."""
    single = [v.right for t, v in zip(tasks, verdicts, strict=True) if len(t.scene.things) == 1]
    pair = [v.right for t, v in zip(tasks, verdicts, strict=True) if len(t.scene.things) == 2]
    failures = [_failure(t, v) for t, v in zip(tasks, verdicts, strict=True) if not v.right]
    counts = {"single": len(single), "pair": len(pair)}
    counts |= {name: len(found) for name, found in _by_aspect(verdicts).items()}
    return Report(round(_share(single), 4), round(_share(pair), 4), shares_of(verdicts), counts, failures)


def _by_aspect(verdicts: Sequence[Verdict]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for verdict in verdicts:
        for name, right in verdict.aspects.items():
            found.setdefault(name, []).append(right)
    return found


def shares_of(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Of every aspect the share of those right that are asked for it, 0..1."""
    return {name: round(_share(found), 4) for name, found in sorted(_by_aspect(verdicts).items())}


def grade(generate: Generate, tasks: list[Task]) -> tuple[Report, list[Image.Image]]:
    """Generates every task's picture and judges it.  Raises ValueError when pictures are missing."""
    pictures = generate([task.prompt for task in tasks], [task.seed for task in tasks])
    if len(pictures) != len(tasks):
        raise ValueError(f"generate returned {len(pictures)} pictures for {len(tasks)} prompts; return one for each")
    verdicts = [judge_task(picture, task) for picture, task in zip(pictures, tasks, strict=True)]
    return summarise(tasks, verdicts), pictures


def draw_truth(tasks: list[Task]) -> list[Image.Image]:
    """The true drawn pictures: the ceiling of the grader itself."""
    renderer = Renderer()
    return [Image.fromarray(renderer.paint(task.scene)) for task in tasks]


def save_sheet(pictures: list[Image.Image], path: Path, columns: int = 20) -> None:
    """All pictures on one PNG."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for row, picture in enumerate(pictures):
        sheet.paste(picture, (row % columns * width, row // columns * height))
    sheet.save(path)


def _generator(options: argparse.Namespace, tasks: list[Task]) -> Generate:
    from tools.train_shapes import engines

    settings = engines.Settings(options.steps, options.guidance, options.batch, options.dtype, options.quantize)
    if options.engine == "omnimuse":
        return engines.omnimuse(options.model, settings)
    if options.engine == "diffusers":
        return engines.diffusers(options.model, settings)
    truth = draw_truth(tasks)
    pictures = truth if options.engine == "truth" else engines.reconstruct(options.model, truth, settings)
    return lambda prompts, seeds: pictures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="omnimuse/bundled/shapes", help="the model's folder")
    parser.add_argument("--engine", choices=("omnimuse", "diffusers", "truth", "vae"), default="omnimuse")
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0, help="c + g * (c - u)")
    parser.add_argument("--seed", type=int, default=2026, help="of the prompts")
    parser.add_argument("--held-share", type=float, default=0.0, help="prompt only combinations held out")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quantize", default="", help="how omnimuse packs the weights, such as int8")
    parser.add_argument("--sheet", type=Path, help="write all pictures to this PNG")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    return parser.parse_args()


def main() -> int:
    options = _options()
    tasks = draw_tasks(options.count, options.seed, options.held_share)
    report, pictures = grade(_generator(options, tasks), tasks)
    print("\n".join(report.failures))
    print(f"{options.engine} steps={options.steps} guidance={options.guidance} {options.dtype}\n{report.table()}")
    if options.sheet:
        save_sheet(pictures, options.sheet)
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
