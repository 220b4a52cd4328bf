"""What every approximation costs and saves: `python -m benchmarks.quality`, which writes `docs/quality.md`.

The demo models, of pictures and of videos, draw the prompts of the graders in `tools/train_shapes`, several at a time,
and the graders judge what they drew. What is calibrated has the thresholds that `omnimuse calibrate` finds
with prompts that are like the graded ones, but others.

Time is processor seconds of one thread, of some prompts drawn alone and up to the finished latents, as a ratio to exact
drawing in turns with it; other work on the machine disturbs it less than the clock (several threads wait for each other
in processor time). Figures are kept in `docs/quality.json`, where a run replaces those that it measured
(`--only int8`).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from hashlib import sha256
from math import inf, log
from pathlib import Path
from shutil import rmtree
from statistics import mean, median
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.frontier import Panel, Point, write_svg
from omnimuse import Ask, Config, DiffusionParams, ModelConfig
from omnimuse.cache.row import Row
from omnimuse.cli.calibrate import DIFFERENCE
from omnimuse.core.caches import PRESETS, Fits, cache_named, completed
from omnimuse.core.config import LEAST_TILE, QUANT, CompileConfig, DecodeConfig, QuantConfig
from omnimuse.core.output import Done, Failed, Result
from omnimuse.engine.calibrate import calibrate, fit
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import present, start
from omnimuse.layers.native import native_bfloat16
from omnimuse.loader.resolve import resolve
from omnimuse.loader.tensors import stored_tensors
from omnimuse.worker.find import find
from tests.checkpoints.gguf_file import of_32
from tests.checkpoints.packed import FILES, in_ggufs
from tools.train_shapes.data import SIZE
from tools.train_shapes.film_grade import FilmTask, as_frames, draw_film_tasks, judge_film_task
from tools.train_shapes.grade import Task, draw_tasks, judge_task
from tools.train_shapes.lora import STYLES, Course, plan_of, shipped

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TRAINED = Path("runs") / "loras"
"""Adapters of ranks that no model comes with; git ignores it."""
RANKS = {"night": (1, 4, 8), "hearts": (7,), "dusk": (4,)}
TOGETHER = 20
"""Pictures in flight, where none is timed."""
EXACT = "exact"
SUBJECTS = {"demo": "demo model", "film": "demo model of videos"}
MODELS = {"demo": "shapes", "film": "shapes-film"}
STEPS = 20
LIKE = (12, 47)
"""How many prompts a model is calibrated with, and the seed that they are drawn by: others than the graded ones."""
FORECASTS = ("dbcache", "taylorseer")
PACKED = {**FILES, "GGUF": partial(in_ggufs, kind_of=of_32)}
"""How files are packed; blocks of 256 gguf does not make, and few rows of these models would be whole ones."""
FILED = {
    "GGUF files, blocks of 32": "GGUF",
    "bitsandbytes files, `nf4`": "bitsandbytes",
    "bitsandbytes files, 8 bits": "bitsandbytes, 8 bits",
    "torchao files, 8 bits": "torchao",
    "`fp8` files, by blocks": "fp8 files",
    "`fp8` files, scaled": "scaled fp8",
}
ENCODED = "transformer=int8,text_encoder=int8"
TILES = f"tiles of {LEAST_TILE} pixels"
RIGHT = (0, 40, 60, 70, 80, 90, 95, 98, 100)
"""Shares of right pictures, in percent, that the picture's axis may name."""


@dataclass(frozen=True)
class Choice:
    """One way to draw: how the engine is started, and what requests ask for. `calibrated` caches know what was measured
    of the model. `adapters` are styles, at a `rank` (0: of those which come with the model); what is drawn with them is
    judged as they have it. `files` that are packed so are made of the model's own; `tile` is the side of the tiles that
    pictures are decoded in.
    """

    group: str
    quantize: str = ""
    compiled: bool = False
    dtype: str = "float32"
    cache: str = "none"
    calibrated: bool = False
    steps: int | None = None
    adapters: tuple[str, ...] = ()
    rank: int = 0
    files: str = ""
    tile: int | None = None

    def config(self, model: str) -> Config:
        """The engine's configuration."""
        return Config(
            ModelConfig(model, dtype=self.dtype, device="cpu"),
            compile=CompileConfig("blocks" if self.compiled else "none"),
            quantize=QuantConfig.of(self.quantize),
            decode=DecodeConfig(self.tile is not None, self.tile),
        )

    def asked(self, exact: DiffusionParams) -> DiffusionParams:
        """`exact` with what this changes."""
        steps = self.steps or exact.num_inference_steps
        loras = [str(adapter_of(style, self.rank)) for style in self.adapters] or None
        return replace(exact, cache=self.cache, num_inference_steps=steps, loras=loras)

    @property
    def exactly(self) -> Choice:
        """What is drawn exactly with the same adapters: what this is compared with."""
        return Choice(EXACT, adapters=self.adapters, rank=self.rank)


def choices() -> dict[str, Choice]:
    """Every choice by its name: `exact` first, each approximation alone, common pairs, what is compiled last."""
    caches = (*PRESETS, *(f"{kind},threshold={Fits.dbcache}" for kind in FORECASTS), "dbcache,mask=fast,forced=true")
    calibrated = (*FORECASTS, "magcache", "auto")
    found = {EXACT: Choice("exact")}
    found |= {f"{steps} steps": Choice("steps", steps=steps) for steps in (14, 10, 7)}
    found |= {f"`{cache}`": Choice("caches", cache=cache) for cache in caches}
    found |= {f"`{cache}`, calibrated": Choice("caches", cache=cache, calibrated=True) for cache in calibrated}
    found |= {f"`{scheme}`": Choice("weights", quantize=scheme) for scheme in QUANT}
    found |= {"`int8`, the text encoder too": Choice("weights", quantize=ENCODED)}
    found |= {name: Choice("files", files=how) for name, how in FILED.items()}
    found |= {TILES: Choice("tiles", tile=LEAST_TILE)}
    found |= {
        "`bfloat16`": Choice("weights", dtype="bfloat16"),
        **{
            f"`{style}`, rank {rank}": Choice(
                "adapters", adapters=(style,), rank=0 if rank == own_rank(style) else rank
            )
            for style, ranks in RANKS.items()
            for rank in ranks
        },
        "`int8` and 10 steps": Choice("pairs", quantize="int8", steps=10),
        "`int8` and `careful`": Choice("pairs", quantize="int8", cache="careful"),
        "`int4` and `careful`": Choice("pairs", quantize="int4", cache="careful"),
        "`int8-dynamic` and `careful`": Choice("pairs", quantize="int8-dynamic", cache="careful"),
        "`fp8` and `careful`": Choice("pairs", quantize="fp8", cache="careful"),
        **{f"`careful` and {steps} steps": Choice("pairs", cache="careful", steps=steps) for steps in (14, 10)},
        **{f"`{style}` and `int8`": Choice("pairs", adapters=(style,), quantize="int8") for style in RANKS},
        **{f"`{style}` and `careful`": Choice("pairs", adapters=(style,), cache="careful") for style in RANKS},
        **{f"`{style}` and 10 steps": Choice("pairs", adapters=(style,), steps=10) for style in RANKS},
        "`night` and `hearts`": Choice("pairs", adapters=("night", "hearts")),
        "`night`, `int8` and `careful`": Choice("pairs", adapters=("night",), quantize="int8", cache="careful"),
        "`dusk`, `int8` and `careful`": Choice("pairs", adapters=("dusk",), quantize="int8", cache="careful"),
        "`bfloat16` and `careful`": Choice("pairs", dtype="bfloat16", cache="careful"),
        "`bfloat16` and `int8`": Choice("pairs", dtype="bfloat16", quantize="int8"),
        **{
            f"`bfloat16` and `{style}`": Choice("pairs", dtype="bfloat16", adapters=(style,))
            for style in ("night", "dusk")
        },
        "`bfloat16` and compiled": Choice("pairs", dtype="bfloat16", compiled=True),
        "compiled": Choice("compiled", compiled=True),
        "compiled and `int8`": Choice("pairs", quantize="int8", compiled=True),
        "compiled and `careful`": Choice("pairs", cache="careful", compiled=True),
        **{f"compiled and `{style}`": Choice("pairs", adapters=(style,), compiled=True) for style in RANKS},
    }
    return found


def own_rank(style: str) -> int:
    """That of the adapter which comes with the model."""
    return plan_of(shipped(style)).rank


def adapter_of(style: str, rank: int) -> Path:
    """The file of a style's adapter. One of a rank that no model comes with is trained first, as the other was."""
    if not rank:
        return shipped(style)
    plan = plan_of(shipped(style))
    file = TRAINED / f"{style}-{rank}.safetensors"
    if not file.exists() or file.with_suffix(".bench").exists():  # none, or one that is not done
        course = Course(replace(plan, rank=rank), file)
        if course.bench.exists():
            course.resume()
        course.sit(minutes=inf)
    return file


@dataclass
class Figures:
    """What was found of one choice on one model: the speed-up and the memory, as ratios to exact drawing.

    `score` is the share of right pictures or videos, in percent; `pixels` how far they are from exact ones with the
    same adapters, of 255; `count` of how many. `right` has a 1 for every prompt that is right, a 0 for the others;
    `source` is what all this was measured of, and `processor` on what. Earlier figures do not tell by which processor,
    and of adapters no `pixels`. What was `judged` again later, by that processor, has speed and memory of before.
    """

    speed: float
    memory: float
    score: float
    pixels: float | None
    count: int
    timed: int
    right: str = ""
    source: str = ""
    processor: str = ""
    judged: str = ""

    def against(self, exact: Figures) -> str:
        """How many prompts are right here and wrong exactly, and the other way round; empty where nobody knows."""
        pairs = list(zip(self.right, exact.right, strict=False))
        return f"{pairs.count(('1', '0'))}, {pairs.count(('0', '1'))}" if pairs else ""


@dataclass
class Tally:
    """What comes together of one choice while it is measured."""

    seconds: list[float] = field(default_factory=list)
    weights: int = 0
    kept: int = 0
    right: list[bool] = field(default_factory=list)
    pixels: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A model that is measured: its folder, exact parameters, what is asked of it, and what it is calibrated with,
    `like` that.
    """

    model: str
    exact: DiffusionParams
    tasks: Sequence[Task] | Sequence[FilmTask]
    timed: int
    like: Sequence[Task] | Sequence[FilmTask]

    @cached_property
    def packed(self) -> Path:
        """Where the model is with files that are packed, for as long as this is."""
        made = Path(mkdtemp())
        finalize(self, rmtree, made, ignore_errors=True)
        return made

    def folder(self, choice: Choice) -> str:
        """That of the model, with such files as `choice` has."""
        if not choice.files:
            return self.model
        made = self.packed / choice.files
        if not made.exists():
            PACKED[choice.files](resolve(self.model).path, made)
        return str(made)

    @cached_property
    def fits(self) -> Fits:
        """What `omnimuse calibrate` finds with prompts like these."""
        engine = start(Choice(EXACT).config(self.model))
        found = calibrate(engine, [ask_of(task, self.exact) for task in self.like], DIFFERENCE).fits
        engine.close()
        return found

    def engine(self, choice: Choice) -> Engine:
        """One that draws by `choice`."""
        engine = start(choice.config(self.folder(choice)))
        if choice.calibrated:
            fit(engine, self.fits)
        return engine

    def source(self, choice: Choice) -> str:
        """What figures of `choice` are measured of: a digest of weights, how files pack them, adapters and what caches
        go by, and what its cache means. Figures of another source are stale.
        """
        fits = self.fits if choice.calibrated else find(choice.config(self.model)).door.fits
        cache, digest = completed(cache_named(choice.cache), fits), sha256()
        for file in sorted(resolve(self.model).path.rglob("*.safetensors")):
            if file.parent.name != "loras":
                digest.update(file.read_bytes())
        digest.update(choice.files.encode())
        for style in choice.adapters:
            plan = replace(plan_of(shipped(style)), rank=choice.rank)
            digest.update(f"{plan}".encode() if choice.rank else shipped(style).read_bytes())
        if not cache.off:
            digest.update(" ".join(f"{each:.3g}" for each in (*fits.tea.coefficients, *fits.ratios)).encode())
        return f"{digest.hexdigest()[:16]} {cache}"


def main() -> None:
    """Measure what is asked for, keep it with what is known, and write the page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="prompts for a model; half of them for one of videos "
                        "(default: 200)")  # fmt: skip
    parser.add_argument("--timed", type=int, default=8, help="of these are timed, too (default: 8)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="choices whose name or group is one of these; "
                        "none: only write the page from what is known")  # fmt: skip
    parser.add_argument(
        "--missing", action="store_true", help="only choices of which there are no figures yet, of so many prompts, of "
        "these weights and adapters and of what caches now mean"
    )  # fmt: skip
    parser.add_argument(
        "--judge", action="store_true", help="only judge what is drawn, of choices that have speed and memory already: "
        "what a processor without units for it draws alike, but slower"
    )  # fmt: skip
    parser.add_argument(
        "--kept", type=Path, metavar="FOLDER", help="exact pictures are kept here, for a run that goes on"
    )
    parser.add_argument("--subject", choices=SUBJECTS, help="only this model")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="the folder of the page and the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = args.docs / "quality.json"
    known: Known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    wanted = {name: it for name, it in choices().items() if _chosen(name, it, args.only)}
    for name, make in subjects(args.count, args.timed).items():
        there = known.setdefault(name, {})
        some = suited(wanted, name) if args.subject in (None, name) else {}
        if not some:
            continue
        subject = make()
        if args.missing:
            some = missing(some, there, subject)
        before = {each: Figures(**there[each]) for each in some if each in there} if args.judge else None
        for each, figures in measure(subject, some, args.kept and args.kept / f"{name}.npy", before):
            there[each] = asdict(figures)
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    write_page(args.docs)


Known = dict[str, dict[str, dict[str, Any]]]


def write_page(docs: Path) -> None:
    """The tables and their picture, from the figures beside them."""
    figures, page = read_figures(docs / "quality.json"), docs / "quality.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{tables(figures)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    write_svg(docs / "images" / "quality.svg", panels(figures))


def subjects(count: int, timed: int) -> dict[str, Callable[[], Subject]]:
    """What is measured, by the name that the figures have for it; made when it is wanted."""

    def demo() -> Subject:
        exact = DiffusionParams(STEPS, 3.0, width=SIZE, height=SIZE, cache="none")
        return Subject(f"omnimuse/{MODELS['demo']}", exact, draw_tasks(count), timed, draw_tasks(*LIKE))

    def film() -> Subject:
        exact = DiffusionParams(STEPS, cache="none")
        tasks, like = draw_film_tasks(count // 2), draw_film_tasks(*LIKE)
        return Subject(f"omnimuse/{MODELS['film']}", exact, tasks, timed, like)

    return {"demo": demo, "film": film}


def missing(
    wanted: Mapping[str, Choice], there: Mapping[str, Mapping[str, Any]], subject: Subject
) -> dict[str, Choice]:
    """Those of which `there` has no figures of as many prompts and of the same source."""
    known = {name: (row["count"], row.get("source")) for name, row in there.items()}
    return {name: it for name, it in wanted.items() if known.get(name) != (len(subject.tasks), subject.source(it))}


def _chosen(name: str, choice: Choice, only: Sequence[str] | None) -> bool:
    return only is None or name.replace("`", "") in only or choice.group in only


def suited(wanted: Mapping[str, Choice], subject: str) -> dict[str, Choice]:
    """Those of a subject: an adapter is of one model, and videos are no larger than a tile."""
    return {
        name: it
        for name, it in wanted.items()
        if all(STYLES[style].model == MODELS[subject] for style in it.adapters) and not (it.tile and subject == "film")
    }


def measure(
    subject: Subject, wanted: Mapping[str, Choice], kept: Path | None, before: Mapping[str, Figures] | None = None
) -> Iterator[tuple[str, Figures]]:
    """Every wanted choice beside exact drawing, one after the other; what is drawn exactly is `kept`. Of those that
    have figures of `before`, where that is given, speed and memory stay, and the others are left out.
    """
    wanted = wanted if before is None else {name: it for name, it in wanted.items() if name in before}
    if not wanted:
        return
    base = Choice(EXACT)
    exact, worn = subject.engine(base), dict[Choice, list[np.ndarray]]()
    known = kept is not None and kept.exists()
    reference = list(np.load(kept)) if kept is not None and known else drawn(exact, subject, subject.exact)
    if kept is not None and not known:
        np.save(kept, np.stack(reference))
    worn[base] = reference
    for name, choice in wanted.items():
        engine = exact if choice == base else subject.engine(choice)
        base_tally = Tally(weights=held(exact))
        tally = Tally() if before else timed(exact, engine, subject, choice, base_tally)
        alike = choice.exactly
        if alike not in worn:
            dressed = subject.engine(base)  # whose layers are no longer those of the one that is timed
            worn[alike] = drawn(dressed, subject, alike.asked(subject.exact))
            dressed.close()
        itself = replace(choice, group=EXACT) == alike
        made = worn[alike] if itself else drawn(engine, subject, choice.asked(subject.exact))
        judged(subject, choice, worn[alike], made, tally)
        found = replace(
            replace(before[name], judged=processor()) if before else costs(base_tally, tally),
            score=round(100 * mean(tally.right), 2),
            pixels=round(mean(tally.pixels), 3),
            count=len(subject.tasks),
            right="".join(f"{right:d}" for right in tally.right),
            source=subject.source(choice),
        )
        print(name, found, flush=True)
        yield name, found
        if engine is not exact:
            engine.close()
    exact.close()


def costs(exact: Tally, tally: Tally) -> Figures:
    """The figures of what was timed, before anything is judged."""
    ratio = median(a / b for a, b in zip(exact.seconds, tally.seconds, strict=True))
    size = (tally.weights + tally.kept) / exact.weights
    return Figures(round(ratio, 3), round(size, 3), 0.0, None, 0, len(tally.seconds), processor=processor())


def timed(exact: Engine, engine: Engine, subject: Subject, choice: Choice, known: Tally) -> Tally:
    """Some prompts alone, up to their latents, in turns with exact drawing, whose seconds go to `known`."""
    tally = Tally(weights=held(engine))
    before = replace(subject.exact, output_type="latent")
    after = replace(choice.asked(subject.exact), output_type="latent")
    for number, task in enumerate([subject.tasks[0], *subject.tasks[: subject.timed]]):
        for here, params, into in ((exact, before, known), (engine, after, tally)):
            began = time.process_time()
            draw(here, [ask_of(task, params)], into)
            if number:  # the first warms up
                into.seconds.append(time.process_time() - began)
    return tally


def ask_of(task: Task | FilmTask, params: DiffusionParams) -> Ask:
    """What is asked for a task."""
    return Ask(task.prompt, replace(params, seed=task.seed))


def drawn(engine: Engine, subject: Subject, params: DiffusionParams) -> list[np.ndarray]:
    """What every task gives: a picture, or the frames of a video."""
    made: list[np.ndarray] = []
    for first in range(0, len(subject.tasks), TOGETHER):
        some = subject.tasks[first : first + TOGETHER]
        for result in draw(engine, [ask_of(task, params) for task in some], Tally()):
            shown = present(result, engine.door.limits)
            frames = shown.images or shown.videos[0].frames
            made.append(np.squeeze(np.stack([np.asarray(frame) for frame in frames])))  # [h, w, 3], or [F, h, w, 3]
    return made


def judged(
    subject: Subject, choice: Choice, exact: Sequence[np.ndarray], made: Sequence[np.ndarray], tally: Tally
) -> None:
    """The scores of what was `made`, and how far it is from what was drawn exactly."""
    for task, new, old in zip(subject.tasks, made, exact, strict=True):
        apart = new.astype(np.float32) - old.astype(np.float32)
        tally.pixels.append(float(np.abs(apart).mean()))
        asked = styled(task, choice.adapters)
        if isinstance(asked, FilmTask):
            tally.right.append(judge_film_task(as_frames(new), asked).right)
        else:
            tally.right.append(judge_task(Image.fromarray(new), asked).right)


def styled(task: Task | FilmTask, adapters: Sequence[str]) -> Task | FilmTask:
    """What styles make of a task; a background that they change is asked for."""
    for change in (STYLES[style].change for style in adapters):
        if isinstance(task, FilmTask):
            film = change(task.film)
            changed = film.background != task.film.background
            task = replace(task, film=film, background_asked=task.background_asked or changed)
        else:
            scene = change(task.scene)
            changed = scene.background != task.scene.background
            task = replace(task, scene=scene, background_asked=task.background_asked or changed)
    return task


def processor() -> str:
    """What this machine computes with, and whether it has units for bfloat16, as it says itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    units = "with" if native_bfloat16(torch.device("cpu"))[0] else "without"
    return f"{names[0] if names else platform.machine()}, {units} units for bfloat16"


def held(engine: Engine) -> int:
    """The bytes of all weights."""
    components = engine.runner.pipeline.ctx.components
    modules = [part for name in components if isinstance(part := components.wherever(name), nn.Module)]
    return sum(tensor.nbytes for module in modules for tensor, _ in stored_tensors(module).values())


def draw(engine: Engine, asks: Sequence[Ask], into: Tally) -> list[Result]:
    """All of them together, in order; `into` hears what step caches and adapters came to keep at most."""
    ids = [engine.submit(engine.make_request(ask)) for ask in asks]
    done: dict[str, Result] = {}
    while len(done) < len(ids):
        for event in engine.tick():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                done[event.request_id] = event.result
        memories = [it for state in engine.runner.states.values() for it in state.memories.values()]
        rows = [value for memory in memories for value in memory.data.values() if isinstance(value, Row)]
        kept = sum(row.nbytes for row in rows) + engine.runner.pipeline.ctx.adapters.nbytes
        into.kept = max(into.kept, kept)
    return [done[each] for each in ids]


def read_figures(file: Path) -> dict[str, dict[str, Figures]]:
    """Subject -> choice -> figures, in the order of `choices`. Those of other prompts than exact drawing has are left
    out: prompts are not equally hard.
    """
    stored: Known = json.loads(file.read_text(encoding="utf-8"))
    return {subject: _comparable(stored.get(subject, {})) for subject in SUBJECTS}


def _comparable(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Figures]:
    found = {name: Figures(**stored[name]) for name in choices() if name in stored}
    return {name: each for name, each in found.items() if EXACT in found and each.count == found[EXACT].count}


def tables(figures: Mapping[str, Mapping[str, Figures]]) -> str:
    """A table of each subject, in Markdown."""
    lines = [
        "`python -m benchmarks.quality`, float32 on a CPU where nothing else is said. Won is what is right and was",
        "wrong where it was drawn exactly with the same adapters, lost the other way round, and pixels differ from",
        "those; where nothing stands, an earlier run did not tell:",
    ]
    every, heads = choices(), "speed-up | memory | right | won, lost | pixels differ, of 255"
    for subject, found in figures.items():
        told = f"the {SUBJECTS[subject]}, {STEPS} steps, {_count(found)} prompts"
        lines += ["", f"| {told} | {heads} |", "|---" * 6 + "|"]
        for name, each in found.items():
            cells = [f"{each.speed:.2f}", f"{each.memory:.2f}", f"{each.score:.1f}%"]
            [exactly] = [one for one, it in every.items() if replace(it, group=EXACT) == every[name].exactly]
            cells.append(each.against(found[exactly]) if exactly in found else "")
            cells.append("" if each.pixels is None else f"{each.pixels:.1f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        if unknown := [name for name, each in found.items() if each.source and not each.processor]:
            lines += ["", f"By which processor is not known: {'; '.join(unknown)}."]
        for kind in sorted({each.processor for each in found.values()} - {""}):
            named = "; ".join(name for name, each in found.items() if each.processor == kind)
            lines += ["", f"By {kind}: {named}."]
        for kind in sorted({each.judged for each in found.values()} - {""}):
            named = "; ".join(name for name, each in found.items() if each.judged == kind)
            lines += ["", f"With speed and memory of an earlier run, and all else by {kind}: {named}."]
    for subject, found in figures.items():
        if left := [name for name in suited(choices(), subject) if name not in found]:
            lines += ["", f"Not measured yet on the {SUBJECTS[subject]}: {'; '.join(left)}."]
    return "\n".join(lines)


def _count(figures: Mapping[str, Figures]) -> int:
    return figures[EXACT].count if figures else 0


def panels(figures: Mapping[str, Mapping[str, Figures]]) -> list[Panel]:
    """What is plotted: speed to the right, score upwards. What is drawn with adapters is judged as they have it, and
    has a plot of its own.

    The fewer pictures are wrong, the more one of them means: upwards grows how rare they are.
    """
    names = {"demo": "right pictures, %", "film": "right videos, %"}
    return [
        Panel(
            f"the {SUBJECTS[subject]}{', with adapters' if worn else ''}",
            told,
            _points(figures.get(subject, {}), worn=worn),
            RIGHT,
            lambda score: -log(101.0 - score),
        )
        for subject, told in names.items()
        for worn in (False, True)
    ]


def _points(figures: Mapping[str, Figures], *, worn: bool) -> list[Point]:
    every = choices()
    return [
        Point(name.replace("`", ""), every[name].group, each.speed, each.score)
        for name, each in figures.items()
        if bool(every[name].adapters) is worn
    ]


if __name__ == "__main__":
    main()
