"""Tensors and tokens shared out to two, three and four ranks give what one rank gives, for every registered pipeline.

What is tried of a family with so many ranks is one test, in one start of them. All requests of a family are in flight
together: guidance, pictures to start from, rows of many lengths.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.caches import Fits
from omnimuse.core.config import (
    AXES,
    CacheConfig,
    CompileConfig,
    Config,
    DecodeConfig,
    HostConfig,
    ModelConfig,
    OffloadConfig,
    ParallelConfig,
    QuantConfig,
    ScheduleConfig,
)
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME, write_fits
from omnimuse.models import REGISTRY
from omnimuse.pipeline.picture_codes import WriteCodes
from omnimuse.pipeline.stage import Loop
from omnimuse.worker.find import pipeline_for
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.families import SHARING
from tests.invariants.conftest import Subject, run, with_params
from tests.invariants.test_caches import SKIPPING, asks_of
from tests.ranks import play
from tests.skipping import ENOUGH, counting

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

NAMES = [family.name for family in SHARING]
EVERYWHERE = ParallelConfig(tensor=2)
"""What every family is run with: its plan of how weights are cut is the family's own."""


@dataclass(frozen=True)
class Feature:
    """Something else that is switched on, and must give with several ranks what it gives with one."""

    name: str = ""
    cache: CacheConfig = CacheConfig()
    caches: tuple[str, ...] = ()
    offload: OffloadConfig = OffloadConfig()
    load: Literal["weights", "dummy"] = "weights"
    tier: Literal["fast", "exact"] = "fast"
    decode: DecodeConfig = DecodeConfig()
    output: Literal["latent", "pt"] = "latent"
    adapters: bool = False
    quantize: QuantConfig = QuantConfig()
    compile: CompileConfig = CompileConfig()
    twice: bool = False


def cached(threshold: float) -> Feature:
    """A threshold that lets something be skipped of each request of a family, and not all that may be."""
    return Feature("TeaCache", cache=CacheConfig("teacache", threshold))


PLAIN = Feature()
BOTH_ENDS = Feature("DBCache", cache=CacheConfig("dbcache", 9.0, first=1, warm_up=2, order=1))
ALL_CACHES = Feature("every step cache", caches=SKIPPING)
KINDS = ("TeaCache", "DBCache", "TaylorSeer", "MagCache", "step masks")
"""What that shows: a request of each."""
WAITING = Feature("layers", offload=OffloadConfig("layers"))
DUMMY = Feature("dummy", load="dummy")
WORN = Feature("LoRA", adapters=True)
EXACT = Feature("exact", tier="exact")
COMPILED = Feature("compile", compile=CompileConfig("blocks"))
PACKED = Feature("int8", quantize=QuantConfig({"": "int8"}))
PACKED_AND_WORN = Feature("int8 and LoRA", quantize=QuantConfig({"": "int8"}), adapters=True)
PACKED_DUMMY = Feature("int8 dummy", quantize=QuantConfig({"": "int8"}), load="dummy")
TILED = Feature("tiles", decode=DecodeConfig(tiling=True), output="pt")

TEAMS = Feature("teams", twice=True)
"""Each request comes with another one of its size, so that it pays to divide."""

Z, FLUX, FLUX2, WAN, QWEN = "ZImagePipeline", "FluxPipeline-dev", "Flux2Pipeline", "WanPipeline-5B", "QwenImagePipeline"
VACE = "WanVACEPipeline"
ALLROUND = "BagelForConditionalGeneration-wide"
SOME: dict[int, tuple[tuple[str, ParallelConfig, Feature], ...]] = {
    2: (
        *((name, ParallelConfig(ring=2), PLAIN) for name in (Z, FLUX, WAN, VACE, "StableAudioPipeline")),
        *(
            (name, ParallelConfig(pipe=2), PLAIN)
            for name in (Z, FLUX, FLUX2, WAN, VACE, "StableAudioPipeline", "GlmImagePipeline")
        ),
        *((name, ParallelConfig(ulysses=2, shard=2), PLAIN) for name in (Z, FLUX, FLUX2, WAN, VACE)),
        (Z, ParallelConfig(tensor=2), cached(1.0)),
        (FLUX, ParallelConfig(ulysses=2), cached(1e6)),
        (WAN, ParallelConfig(pipe=2), cached(0.3)),
        (WAN, ParallelConfig(ring=2, shard=2), cached(0.3)),
        (Z, ParallelConfig(tensor=2), BOTH_ENDS),
        (FLUX, ParallelConfig(ulysses=2), BOTH_ENDS),
        (QWEN, ParallelConfig(cfg=2), BOTH_ENDS),
        (ALLROUND, ParallelConfig(cfg=2), PLAIN),
        (ALLROUND, ParallelConfig(ulysses=2), cached(0.15)),
        (ALLROUND, ParallelConfig(cfg=2, vae_tiles=2), TILED),
        (FLUX, ParallelConfig(pipe=2), BOTH_ENDS),
        (Z, ParallelConfig(tensor=2), WAITING),
        (FLUX, ParallelConfig(ring=2), WAITING),
        (FLUX2, ParallelConfig(pipe=2), WAITING),
        (FLUX2, ParallelConfig(tensor=2), DUMMY),
        (Z, ParallelConfig(ulysses=2, shard=2), DUMMY),
        (QWEN, ParallelConfig(pipe=2), DUMMY),
        (QWEN, ParallelConfig(tensor=2), EXACT),
        (Z, ParallelConfig(ulysses=2, vae_tiles=2), TILED),
        (FLUX2, ParallelConfig(tensor=2), TILED),
    ),
    3: (
        *((name, ParallelConfig(tensor=3), PLAIN) for name in (Z, "Lumina2Pipeline", "StableAudioPipeline", ALLROUND)),
        (Z, ParallelConfig(ulysses=3), PLAIN),
        (FLUX, ParallelConfig(ring=3), PLAIN),
        (FLUX, ParallelConfig(pipe=3), PLAIN),
        (WAN, ParallelConfig(ring=3, shard=3), PLAIN),
        (FLUX2, ParallelConfig(ring=3, vae_tiles=3), TILED),
        *(
            (name, ParallelConfig(cfg=3), PLAIN)
            for name in ("StableDiffusion3Pipeline-3.5-medium", "LTX2Pipeline", ALLROUND)
        ),
        (ALLROUND, ParallelConfig(ring=3), PLAIN),
    ),
    4: (
        (FLUX, ParallelConfig(ulysses=2, ring=2), PLAIN),
        (WAN, ParallelConfig(ulysses=2, ring=2, shard=4), PLAIN),
        ("StableAudioPipeline", ParallelConfig(tensor=2, ulysses=2, shard=2), PLAIN),
        (Z, ParallelConfig(tensor=2, ring=2), PLAIN),
        (Z, ParallelConfig(cfg=2, ulysses=2), PLAIN),
        (QWEN, ParallelConfig(cfg=2, tensor=2), PLAIN),
        (ALLROUND, ParallelConfig(tensor=2, ulysses=2), PLAIN),
        (FLUX, ParallelConfig(cfg=2, ring=2, vae_tiles=4), TILED),
        (WAN, ParallelConfig(pipe=2, tensor=2), PLAIN),
        (FLUX, ParallelConfig(pipe=2, ulysses=2), PLAIN),
        (FLUX, ParallelConfig(pipe=2, ring=2, shard=2), PLAIN),
        (QWEN, ParallelConfig(pipe=2, cfg=2, vae_tiles=4), TILED),
        (Z, ParallelConfig(tensor=2, ring=2, vae_tiles=4), TILED),
        (QWEN, ParallelConfig(cfg=2, ulysses=2, shard=2, vae_tiles=4), TILED),
    ),
}
"""By the number of ranks: parts that are not equal, what needs more heads than most checkpoints have, products, and
other features.
"""


@dataclass(frozen=True)
class Job:
    """One family in one division of the work, with one feature: where its checkpoint is, and where results go."""

    family: str
    parallel: ParallelConfig
    feature: Feature
    folder: Path
    results: Path

    @property
    def name(self) -> str:
        return f"{self.family}, {self.parallel}, {self.feature.name}"

    @property
    def adapter(self) -> Path:
        """A file beside the results; the last request wears it, and the others do not."""
        return self.results.with_name(f"{self.family} adapter.safetensors")

    def config(self, parallel: ParallelConfig) -> Config:
        return Config(
            ModelConfig(str(self.folder), dtype="float32", device="cpu", load=self.feature.load),
            cache=self.feature.cache,
            quantize=self.feature.quantize,
            offload=self.feature.offload,
            compile=self.feature.compile if parallel.ranks > 1 else CompileConfig(),  # with one, it has its own tests
            parallel=parallel,
            decode=self.feature.decode,
            schedule=ScheduleConfig(tier=self.feature.tier, company="always"),
            host=HostConfig(threads=1),
        )

    def asks(self, engine: Engine) -> list[Ask]:
        """Everything that the family is asked for in tests; with step caches, so that each skips a step."""
        [family] = [family for family in SHARING if family.name == self.family]
        subject = Subject(family, self.folder)
        if self.feature.caches:
            asks = asks_of(subject, engine, *self.feature.caches)
        else:
            asks = subject.asks(**({} if self.feature.cache.off else ENOUGH))
        if self.feature.twice:
            asks += [with_params(ask, seed=99) for ask in asks]
        if self.feature.adapters:
            asks[-1] = with_params(asks[-1], loras=[f"{self.adapter}:0.8"])
        return [with_params(ask, output_type=self.feature.output) for ask in asks]

    def draw(self, parallel: ParallelConfig) -> list[Tensor]:
        """All of them, in flight together; SystemExit on ranks that follow."""
        engine = start(self.config(parallel))
        with counting(engine) as skipped:
            found = run(engine, *self.asks(engine))
        assert not engine.runner.forwards.retries
        skips = {bool(self.feature.caches) or not self.feature.cache.off}
        assert {count > 0 for count in skipped.values()} == skips, "each skips a step, or none does"
        assert (2 in engine.runner.forwards.divided) == parallel.elastic
        engine.close()
        return found


Asked = tuple[str, ParallelConfig, Feature]
"""A family, a division of the work, a feature."""


def shown(asked: Sequence[Asked]) -> list[pytest.MarkDecorator]:
    """What a test that runs all of these shows."""
    known = ("TeaCache", "layers", "exact", "tiles", "int8", "LoRA", "DBCache", "compile")
    found = []
    for name, parallel, feature in asked:
        axes = [axis for axis in AXES if getattr(parallel, axis) > 1]
        named = ["tiles on ranks" if axis == "vae_tiles" else axis for axis in axes]
        named += ["teams"] if parallel.elastic else []
        also = [each for each in feature.name.split(" and ") if each in known]
        if feature.caches:
            found += [pytest.mark.shows(*named, kind, "company", families=[name]) for kind in KINDS]
        else:
            found.append(pytest.mark.shows(*named, *also, "company", families=[name], wishes=True))
    return found


WRITING = [
    family.name
    for family in SHARING
    if any(
        isinstance(stage, WriteCodes) or (isinstance(stage, Loop) and stage.grows)
        for stage in pipeline_for(REGISTRY.spec(family.arch)).stages
    )
]
"""What writes before it draws: of that every rank has all, and none divide."""
TILING = [family.name for family in SHARING if REGISTRY.spec(family.arch).medium in ("image", "video")]


def asked_of(ranks: int, name: str) -> list[Asked]:
    """Everything that is tried of a family with so many ranks."""
    everywhere: list[Asked] = [(name, EVERYWHERE, PLAIN)] if ranks == EVERYWHERE.ranks else []
    return [*everywhere, *(asked for asked in SOME[ranks] if asked[0] == name)]


def otherwise(name: str) -> list[Asked]:
    """What two ranks share in ways that a family is tried with besides. Along a ring, layouts are cut as
    they are for Ulysses, and only attention differs.
    """
    tiles = name in TILING
    ring = ParallelConfig(ring=2, shard=2, vae_tiles=2 if tiles else 1)
    besides = [asked for asked in BESIDES if asked[0] == name]
    ulysses, pipe = ParallelConfig(ulysses=2), ParallelConfig(pipe=2)
    both = [(name, parallel, feature) for parallel in (ulysses, pipe) for feature in (PLAIN, ALL_CACHES)]
    teams = [] if name in WRITING else [(name, ParallelConfig(ulysses=2, elastic=True), TEAMS)]
    return [*both, (name, ring, TILED if tiles else PLAIN), *teams, *besides]


BESIDES: list[Asked] = [
    (Z, ParallelConfig(tensor=2), ALL_CACHES),
    (FLUX, ParallelConfig(ring=2), ALL_CACHES),
    (QWEN, ParallelConfig(cfg=2), ALL_CACHES),
    (FLUX, ParallelConfig(ulysses=2), WORN),
    (QWEN, ParallelConfig(cfg=2), WORN),
    (Z, ParallelConfig(ulysses=2), PACKED_AND_WORN),
    (FLUX, ParallelConfig(pipe=2), PACKED_AND_WORN),
    (FLUX, ParallelConfig(ulysses=2), PACKED),
    (Z, ParallelConfig(ring=2), PACKED),
    (Z, ParallelConfig(pipe=2), PACKED),
    (WAN, ParallelConfig(ulysses=2, shard=2), PACKED),
    (QWEN, ParallelConfig(cfg=2), PACKED),
    *((name, ParallelConfig(tensor=2), PACKED_AND_WORN) for name in (FLUX, QWEN)),
    *((name, ParallelConfig(tensor=2), PACKED) for name in (FLUX2, WAN, "StableAudioPipeline")),
    (Z, ParallelConfig(tensor=2), PACKED_DUMMY),
]


def worn_along(name: str) -> list[Asked]:
    """In which ways ranks have some of the weights that a family's adapters are for."""
    some = EVERYWHERE, ParallelConfig(pipe=2), ParallelConfig(ulysses=2, shard=2)
    return [(name, parallel, WORN) for parallel in some]


COMPILING: dict[str, Asked] = {
    "tensor": (Z, ParallelConfig(tensor=2), COMPILED),
    "pipe": (Z, ParallelConfig(pipe=2), COMPILED),
    "ulysses": (Z, ParallelConfig(ulysses=2), COMPILED),
    "ring": (FLUX, ParallelConfig(ring=2), COMPILED),
    "shard": (Z, ParallelConfig(ulysses=2, shard=2), COMPILED),
    "allround": (ALLROUND, ParallelConfig(tensor=2), COMPILED),
    "allround along ulysses": (ALLROUND, ParallelConfig(ulysses=2), COMPILED),
}
"""Each takes as long as all that a family shares otherwise; how graphs are cut and what is in them are tested quickly
elsewhere (`tests/dist/test_compiled_across.py`).
"""
TRIED = {f"{ranks}-{name}": asked for ranks in SOME for name in NAMES if (asked := asked_of(ranks, name))}


def on_rank(rank: int, ranks: int, jobs: list[Job], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, the others follow each until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    for job in jobs:
        try:
            found = job.draw(job.parallel)
        except SystemExit:
            continue
        save_file({str(i): tensor.contiguous() for i, tensor in enumerate(found)}, job.results)


def wrong_of(
    asked: Sequence[Asked], tiny: Callable[[str], Path], alone: Callable[[Job], list[Tensor]], results: Path
) -> list[str]:
    """Runs everything that is asked, in one start of its ranks, and tells what differs from the work of one."""

    def folder_of(number: int) -> Path:
        name, _, feature = asked[number]
        return measured(tiny(name), results / f"{number}") if feature.caches else tiny(name)

    jobs = [
        Job(name, parallel, feature, folder_of(number), results / f"{number}.safetensors")
        for number, (name, parallel, feature) in enumerate(asked)
    ]
    for job in jobs:
        if job.feature.adapters:
            write(job.adapter, layers_of(job.folder))
    [ranks] = {job.parallel.ranks for job in jobs}
    play(on_rank, ranks, jobs, results / "meeting", ranks=ranks)
    wrong = []
    for job in jobs:
        found = load_file(job.results)
        for index, tensor in enumerate(alone(job)):
            error = float((found[str(index)] - tensor).norm() / tensor.norm())
            if not error <= 1e-5:
                wrong.append(f"{job.name}, request {index}: {error:.1e}")
    return wrong


def measured(folder: Path, made: Path) -> Path:
    """A copy of a checkpoint of which it is known that residuals do not grow: MagCache goes by it."""
    write_fits(shutil.copytree(folder, made) / NAME, Fits(ratios=(1.0,), auto="none"), {})
    return made


@pytest.fixture(scope="module")
def alone() -> Iterator[Callable[[Job], list[Tensor]]]:
    """What one rank gives of a family with a feature, once each."""
    threads, known = torch.get_num_threads(), dict[tuple[str, str], list[Tensor]]()

    def draw(job: Job) -> list[Tensor]:
        key = (job.family, job.feature.name)
        if key not in known:
            known[key] = job.draw(ParallelConfig())
        return known[key]

    torch.set_num_threads(1)
    yield draw
    torch.set_num_threads(threads)


def test_every_axis_is_tried_beside_every_other() -> None:
    together = [{axis for axis in AXES if getattr(parallel, axis) > 1} for _, parallel, _ in SOME[4]]
    pairs = {frozenset(pair) for axes in together for pair in combinations(axes, 2)}
    assert pairs == {frozenset(pair) for pair in combinations(AXES, 2)}


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize("asked", [pytest.param(asked, id=id_, marks=shown(asked)) for id_, asked in TRIED.items()])
def test_shared_work_is_the_work_of_one(
    asked: Sequence[Asked], tiny: Callable[[str], Path], alone: Callable[[Job], list[Tensor]], tmp_path: Path
) -> None:
    assert not wrong_of(asked, tiny, alone, tmp_path)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [pytest.param(otherwise(name), id=name, marks=shown(otherwise(name))) for name in NAMES]
)
def test_work_shared_in_other_ways_is_the_work_of_one_for_every_family(
    asked: Sequence[Asked], tiny: Callable[[str], Path], alone: Callable[[Job], list[Tensor]], tmp_path: Path
) -> None:
    assert not wrong_of(asked, tiny, alone, tmp_path)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [pytest.param(worn_along(name), id=name, marks=shown(worn_along(name))) for name in NAMES]
)
def test_adapters_are_worn_by_ranks_as_by_one_for_every_family(
    asked: Sequence[Asked], tiny: Callable[[str], Path], alone: Callable[[Job], list[Tensor]], tmp_path: Path
) -> None:
    assert not wrong_of(asked, tiny, alone, tmp_path)


@pytest.mark.crossed
@pytest.mark.slow
@pytest.mark.parametrize(
    "asked", [pytest.param([asked], id=id_, marks=shown([asked])) for id_, asked in COMPILING.items()]
)
def test_compiled_blocks_that_ranks_share_do_the_work_of_one(
    asked: Sequence[Asked], tiny: Callable[[str], Path], alone: Callable[[Job], list[Tensor]], tmp_path: Path
) -> None:
    assert not wrong_of(asked, tiny, alone, tmp_path)
