"""The yard-stick of films: prompts with known answers, films of them from any engine, judged by code.

python -m tools.train_shapes.film_grade omnimuse/shapes-film [--engine omnimuse|diffusers|truth|vae]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from omnimuse.loader.resolve import resolve
from tools.train_shapes.captions import article
from tools.train_shapes.data import Renderer
from tools.train_shapes.film import FRAMES, TOLD_MOTION, Film, draw_films, frames
from tools.train_shapes.film_judge import judge_film
from tools.train_shapes.grade import save_sheet, shares_of
from tools.train_shapes.judge import Verdict

Frames = Sequence[Image.Image]
Generate = Callable[[list[str], list[int]], list[Frames]]


@dataclass(frozen=True)
class FilmTask:
    """A prompt, a film that answers it (its place is one example), and whether the prompt tells the background."""

    prompt: str
    film: Film
    background_asked: bool
    seed: int


@dataclass(frozen=True)
class FilmReport:
    """The share of right films, 0..1, and that of every aspect."""

    right: float
    aspects: dict[str, float]
    failures: list[str]


def draw_film_tasks(count: int, seed: int = 2026, held_share: float = 0.0) -> list[FilmTask]:
    """`count` tasks, all prompts different, the same for a seed; with `held_share` of combinations held out alone."""
    rng, tasks = random.Random(seed), dict[str, FilmTask]()
    for film in draw_films(f"tasks {seed}", held_share or 1.0, held=True):
        if len(tasks) == count:
            break
        asked = rng.random() < 0.6
        prompt = f"{article(f'{film.colour} {film.shape}')} {TOLD_MOTION[film.motion]}"
        prompt += f" on {article(film.background)} background" if asked else ""
        tasks.setdefault(prompt, FilmTask(prompt, film, asked, rng.randrange(2**31)))
    return list(tasks.values())


def judge_film_task(shown: Frames, task: FilmTask) -> Verdict:
    """The verdict on a film as an answer to `task`."""
    return judge_film(shown, task.film, task.background_asked)


def grade(generate: Generate, tasks: list[FilmTask]) -> tuple[FilmReport, list[Frames]]:
    """Generates the film of every task and judges it."""
    films = generate([task.prompt for task in tasks], [task.seed for task in tasks])
    verdicts = [judge_film_task(film, task) for film, task in zip(films, tasks, strict=True)]
    failures = [
        f"{task.prompt} (seed {task.seed}): {'; '.join(verdict.notes)}"
        for task, verdict in zip(tasks, verdicts, strict=True)
        if not verdict.right
    ]
    right = sum(verdict.right for verdict in verdicts) / len(verdicts)
    return FilmReport(round(right, 4), shares_of(verdicts), failures), films


def as_frames(film: np.ndarray) -> Frames:
    """uint8 [T, h, w, 3] as pictures."""
    return [Image.fromarray(frame) for frame in film]


def draw_film_truth(tasks: Sequence[FilmTask]) -> np.ndarray:
    """The true films, uint8 [n, T, h, w, 3]: the ceiling of the grader itself."""
    renderer = Renderer()
    return np.stack([frames(task.film, renderer) for task in tasks])


def _generator(options: argparse.Namespace, tasks: list[FilmTask]) -> Generate:
    if options.engine == "omnimuse":
        return by_omnimuse(options.model, options.steps, options.guidance)
    folder = str(resolve(options.model).path)
    if options.engine == "diffusers":
        return by_diffusers(folder, options.steps, options.guidance)
    films = draw_film_truth(tasks)
    if options.engine == "vae":
        films = through_autoencoder(folder, films)
    return lambda prompts, seeds: [as_frames(film) for film in films]


def by_omnimuse(model: str, steps: int | None, guidance: float | None) -> Generate:
    """The engine's public API."""

    def generate(prompts: list[str], seeds: list[int]) -> list[Frames]:
        from omnimuse import DiffusionParams, Omni

        with Omni(model) as omni:
            results = omni.generate(
                prompts,
                [DiffusionParams(num_inference_steps=steps, guidance_scale=guidance, seed=seed) for seed in seeds],
            )
        return [result.videos[0].frames for result in results]

    return generate


def by_diffusers(model: str, steps: int | None, guidance: float | None) -> Generate:
    """The reference's own pipeline, each film from a generator of its seed."""

    def generate(prompts: list[str], seeds: list[int]) -> list[Frames]:
        import torch
        from diffusers import WanPipeline

        pipeline = WanPipeline.from_pretrained(model, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        usual = json.loads((Path(model) / "training.json").read_text())["defaults"]
        asked = {name: usual[name] for name in ("height", "width", "num_frames", "max_sequence_length")}
        films = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            found = pipeline(
                prompt,
                **asked,
                negative_prompt="",
                num_inference_steps=steps or usual["num_inference_steps"],
                guidance_scale=guidance or usual["guidance_scale"],
                generator=torch.Generator().manual_seed(seed),
                output_type="pil",
            )
            films.append(found.frames[0])
        return films

    return generate


def through_autoencoder(model: str, films: np.ndarray) -> np.ndarray:
    """Films uint8 [n, T, h, w, 3] through the autoencoder in `model`/vae and back, by the mean latent."""
    import torch
    from diffusers import AutoencoderKLWan

    from tools.train_shapes.film_vae import from_pixels, to_pixels

    vae = AutoencoderKLWan.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32)
    with torch.no_grad():
        parts = [
            vae.decode(vae.encode(to_pixels(part)).latent_dist.mode()).sample for part in np.split(films, len(films))
        ]
    return from_pixels(torch.cat(parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="omnimuse/shapes-film", help="its id or folder")
    parser.add_argument("--engine", choices=("omnimuse", "diffusers", "truth", "vae"), default="omnimuse")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, help="default: what the model's folder says")
    parser.add_argument("--guidance", type=float, help="default: what the model's folder says")
    parser.add_argument("--seed", type=int, default=2026, help="of the prompts")
    parser.add_argument("--held-share", type=float, default=0.0, help="prompt only combinations held out")
    parser.add_argument("--sheet", type=Path, help="write all frames to this PNG, a film a row")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args()
    tasks = draw_film_tasks(options.count, options.seed, options.held_share)
    report, films = grade(_generator(options, tasks), tasks)
    print("\n".join(report.failures))
    print(f"{options.engine}: right {report.right:.1%} of {len(tasks)}; {report.aspects}")
    if options.sheet:
        save_sheet([frame for film in films for frame in film], options.sheet, columns=FRAMES)
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
