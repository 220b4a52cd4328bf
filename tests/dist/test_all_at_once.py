"""Everything that goes together is switched on together, on one rank and on two: what promises to change nothing of
what is drawn changes nothing of what the others make.

Each case is a set of features by their names in `tools/feature_list.py`, whose words for requests and engines are
taken; together the cases have every pair that goes together and that no other test has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnimuse.core.config import Config, HostConfig, ParallelConfig, ScheduleConfig
from omnimuse.core.output import Done, Event, Preview
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from tests.carrying import three
from tests.checkpoints.adapters import layers_of, write
from tests.checkpoints.families import FAMILIES
from tests.checkpoints.wishes import Family
from tests.compiling import Counter, compile_with
from tests.distance import distance
from tests.invariants.conftest import drain, nap, outputs, tick, with_params
from tests.invariants.test_pools import through
from tests.invariants.test_quantized import FAR
from tests.once import Once
from tests.ranks import play
from tests.skipping import ENOUGH, counting
from tools.feature_list import (
    ATTENDING,
    ATTENTION,
    FEATURES,
    PACKED_FILES,
    PACKS,
    Feature,
    Stand,
    Teller,
    measured,
)
from tools.features_page import asked, attempt, ranks, topics

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]

PICTURE, SOUND, VIDEO = "ZImagePipeline", "StableAudioPipeline", "WanVACEPipeline"
HARMLESS = frozenset(
    {
        *("several", "previews", "company", "components", "layers", "sleep", "compile"),
        *("tensor", "ulysses", "ring", "shard", "pipe", "cfg", "teams"),
        *("pools", "block timings", "recording"),
    }
)
"""What promises to change nothing; "tiles on ranks" are those of one rank. Nor does another backend of attention, but
for the last bits.
"""
NARROW = 0.05
"""By how much of its size what is made may differ in bfloat16 that is added up in another order."""
ASKED = ("picture in", "mask", "pad", "several", "previews", "scheduler", "company", "LoRA")
"""What the request of a picture has in every case."""
ALONE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (PICTURE, (*ASKED, "exact", "DBCache", "int4", "layers", "tiles", "sleep")),
    (PICTURE, (*ASKED, "exact", "TeaCache", "int8", "components", "tiles", "sleep")),
    (PICTURE, (*ASKED, "invariant", "DBCache", "int4", "components", "tiles", "sleep")),
    (PICTURE, (*ASKED, "exact", "TeaCache", "int4", "compile", "tiles", "sleep")),
    (PICTURE, (*ASKED, "DBCache", "int8", "compile", "sleep")),
    (SOUND, ("sound in", "several", "company", "DBCache", "int8", "sleep")),
    (SOUND, ("sound in", "several", "company", "int4", "compile", "sleep")),
    (VIDEO, ("video in", "mask", "several", "company", "LoRA", "DBCache", "int8", "layers", "sleep")),
    (VIDEO, ("video in", "several", "company", "TeaCache", "int4", "compile", "sleep")),
)
SHARED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (PICTURE, (*ASKED, "tensor", "components", "tiles on ranks", "sleep")),
    (PICTURE, (*ASKED, "ulysses", "exact", "DBCache", "int4", "components", "tiles on ranks", "sleep")),
    (PICTURE, (*ASKED, "ulysses", "TeaCache", "int8", "layers", "tiles on ranks", "sleep")),
    (PICTURE, (*ASKED, "ring", "exact", "DBCache", "int4", "components", "sleep")),
    (PICTURE, (*ASKED, "ulysses", "shard", "exact", "DBCache", "int4", "sleep")),
    (PICTURE, (*ASKED, "pipe", "exact", "DBCache", "int4", "components", "sleep")),
    (PICTURE, (*ASKED, "cfg", "exact", "DBCache", "int4", "components", "sleep")),
    (PICTURE, (*ASKED, "cfg", "layers", "sleep")),
    (SOUND, ("sound in", "several", "company", "cfg", "DBCache", "int8", "sleep")),
    (VIDEO, ("video in", "mask", "several", "company", "cfg", "LoRA", "int8", "sleep")),
)
SKIPS = ("MagCache", "TaylorSeer", "step masks")
NAPS = (*ASKED, "tiles", "sleep")
PACKED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (PICTURE, (*NAPS, "exact", *SKIPS, "int8-dynamic", "components")),
    (PICTURE, (*NAPS, "invariant", "DBCache", "TaylorSeer", "step masks", "int8-dynamic", "layers")),
    (PICTURE, (*NAPS, "exact", "TeaCache", "TaylorSeer", "step masks", "int8-dynamic")),
    (PICTURE, (*NAPS, "exact", *SKIPS, "fp8", "layers")),
    (PICTURE, (*NAPS, "invariant", "TeaCache", "fp8", "components")),
    (PICTURE, (*NAPS, "DBCache", "fp8")),
    (PICTURE, (*NAPS, "exact", "DBCache", "fp8-dynamic", "components")),
    (PICTURE, (*NAPS, "invariant", "TeaCache", "fp8-dynamic", "layers")),
    (PICTURE, (*NAPS, *SKIPS, "fp8", "compile")),
    (PICTURE, (*NAPS, "invariant", *SKIPS, "int8")),
    (VIDEO, ("video in", "mask", "several", "company", "LoRA", *SKIPS, "int4", "sleep")),
    (PICTURE, (*ASKED, "int8-dynamic", "compile")),
    (PICTURE, (*ASKED, "fp8-dynamic", "compile")),
)
SHARED_PACKED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (PICTURE, (*ASKED, "tensor", *SKIPS, "fp8", "tiles on ranks")),
    (PICTURE, (*ASKED, "ulysses", "shard", *SKIPS, "fp8", "tiles on ranks")),
    (PICTURE, (*ASKED, "ring", *SKIPS, "fp8")),
    (PICTURE, (*ASKED, "pipe", *SKIPS, "int8-dynamic")),
    (PICTURE, (*ASKED, "cfg", *SKIPS, "fp8-dynamic")),
    (PICTURE, (*ASKED, "ulysses", "shard", "int8-dynamic", "tiles on ranks")),
    (PICTURE, (*ASKED, "ulysses", "shard", "fp8-dynamic", "tiles on ranks")),
    (PICTURE, (*ASKED, "tensor", "int8-dynamic")),
    (PICTURE, (*ASKED, "tensor", "fp8-dynamic")),
    (PICTURE, (*ASKED, "ring", "int8-dynamic")),
    (PICTURE, (*ASKED, "ring", "fp8-dynamic")),
    (SOUND, ("sound in", "several", "company", "cfg", *SKIPS, "int8-dynamic")),
    (SOUND, ("sound in", "several", "company", "pipe", "fp8")),
    (SOUND, ("sound in", "several", "company", "cfg", "fp8-dynamic")),
    (VIDEO, ("video in", "several", "company", "pipe", "int8-dynamic")),
    (VIDEO, ("video in", "several", "company", "cfg", "fp8")),
    (VIDEO, ("video in", "several", "company", "pipe", "fp8-dynamic")),
    (VIDEO, ("video in", "several", "company", "tensor", "fp8")),
)
FILES_ALONE: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (PICTURE, (*NAPS, files, *others))
    for files in PACKED_FILES
    for others in (
        ("exact", *SKIPS, "components"),
        ("invariant", "TeaCache", "layers"),
        ("DBCache", "compile"),
    )
)
FILES_SHARED: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (family, (*names, files))
    for files in PACKED_FILES
    for family, names in (
        (PICTURE, (*ASKED, "tensor", "tiles on ranks")),
        (PICTURE, (*ASKED, "ulysses", "shard")),
        (PICTURE, (*ASKED, "ring")),
        (SOUND, ("sound in", "several", "company", "cfg")),
        (VIDEO, ("video in", "several", "company", "pipe")),
    )
)
LONG = {**ENOUGH, "num_inference_steps": 8}
"""Parameters of a request that has enough steps for a mask, too, where a picture stands in for the first three."""
COMPILED = (PICTURE, (*ASKED, "cfg", "compile", "tiles on ranks", "sleep"))


@dataclass(frozen=True)
class Case:
    """A family's checkpoint with features, by name; an `adapter` to wear, where the results of several ranks go, and
    which `output` is asked for. Families and features are those of `among` and `named`.
    """

    among: ClassVar[Sequence[Family | Teller]] = FAMILIES
    named: ClassVar[Mapping[str, Feature]] = {feature.name: feature for feature in (*FEATURES, *ATTENTION)}
    family: str
    names: tuple[str, ...]
    folder: Path
    adapter: Path
    results: Path
    output: str = "pt"

    @property
    def stand(self) -> Stand:
        [family] = [family for family in self.among if family.name == self.family]
        return Stand(family, self.folder, files=files_of(self.names))

    @property
    def features(self) -> list[Feature]:
        return [self.named[name] for name in self.names]

    @property
    def tipping(self) -> str:
        """The scheme that rounds inputs, where others add up in another order: a last bit rounds some input otherwise,
        and from there on all are others.
        """
        reordered = {"tensor", "ring", "teams", "compile", *ATTENDING} & set(self.names) and not self.steady
        return next((name for name in self.names if name.endswith("-dynamic") and reordered), "")

    @property
    def steady(self) -> bool:
        """Whether nothing adds up in another order than without what promises to change nothing."""
        chosen = set(self.names)
        return bool({"exact", "invariant"} & chosen) and self.parallel.ranks == 1 and "compile" not in chosen

    @property
    def plain(self) -> Case:
        """The same without what promises to change nothing; in floats, where packed weights are `tipping`. What is
        `steady` keeps its backend of attention.
        """
        dropped = {*HARMLESS, self.tipping, *(() if self.steady else ATTENDING)}
        kept = [name for name in self.names if name not in dropped]
        return replace(self, names=tuple("tiles" if name == "tiles on ranks" else name for name in kept))

    @property
    def parallel(self) -> ParallelConfig:
        return ranks(self.features)

    def config(self) -> Config:
        started = topics(self.features)
        schedule = replace(started.pop("schedule", ScheduleConfig()), company="always")
        return replace(
            self.stand.config({**started, "schedule": schedule, "parallel": self.parallel}), host=HostConfig(threads=1)
        )

    def ask(self) -> Ask:
        ask = with_params(asked(self.stand, self.features), output_type=self.output, guidance_scale=4.0, **LONG)
        return with_params(ask, loras=[f"{self.adapter}:0.8"]) if "LoRA" in self.names else ask

    def started(self) -> list[Engine]:
        """An engine, or one for each pool."""
        config, deploy = self.config(), three(self.stand.pipeline.stages)
        if "pools" not in self.names:
            return [start(config)]
        return [start(replace(config, deploy=replace(deploy, pool=pool.name))) for pool in deploy.pools]

    def asks(self) -> list[Ask]:
        """What is asked for, and what is in flight with it; of one size where ranks divide for that."""
        if "teams" in self.names:
            return [self.ask(), with_params(self.ask(), seed=99, num_outputs_per_prompt=1)]
        wish = self.stand.family.wishes[-1]
        return [self.ask(), with_params(Ask(wish.asked, wish.params), output_type="pt", **LONG)]

    def draw(self, engines: Sequence[Engine]) -> list[Tensor]:
        """What is asked for, by output: of one request in the company of another one, or of a request for each."""
        ask, other = self.asks()
        if "several" not in self.names:
            seed = ask.params.seed or 0
            events, singles = self.sent(engines, *(with_params(ask, seed=seed + number) for number in range(3)))
            return [outputs(events, id_)[0] for id_ in singles]
        with ExitStack() as stack:
            skipped = [stack.enter_context(counting(engine)) for engine in engines]
            events, (mine, _) = self.sent(engines, ask, other)
        states = {name for counts in skipped for name in counts if name.startswith(mine)}
        skipping = {any(counts[name] for counts in skipped) for name in states}
        assert skipping == {any(each.cache or each.name == "auto" for each in self.features)}
        assert any(isinstance(event, Preview) for event in events) == ("previews" in self.names)
        assert not any(engine.runner.forwards.retries for engine in engines)
        assert any(2 in engine.runner.forwards.divided for engine in engines) == ("teams" in self.names)
        [result] = [event.result for event in events if isinstance(event, Done) and event.request_id == mine]
        assert bool(result.blocks) == ("block timings" in self.names)
        return list(outputs(events, mine))

    def sent(self, engines: Sequence[Engine], *asks: Ask) -> tuple[list[Event], list[str]]:
        """All that comes of these, in flight together, and what they are called."""
        requests = [engines[0].make_request(ask) for ask in asks]
        ids = [request.id for request in requests]
        if len(engines) > 1:
            return through(engines, requests), ids
        [engine] = engines
        for request in requests:
            engine.submit(request)
        with self.recorded(engine):
            return self.events(engine), ids

    @contextmanager
    def recorded(self, engine: Engine) -> Iterator[None]:
        """A trace is left of what runs meanwhile, if that is asked for."""
        if "recording" not in self.names:
            yield
            return
        engine.recordings.begin()
        yield
        assert all(trace.stat().st_size for trace in engine.recordings.end(self.results.with_suffix(".json.gz")))

    def events(self, engine: Engine) -> list[Event]:
        """All that comes of what is in flight, of which some has begun when the weights leave."""
        begun = [event for _ in range(3) for event in tick(engine)]
        if "sleep" in self.names:
            nap(engine)
        return begun + drain(engine)

    def wrong(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[str]:
        """What differs from what it is without them: nothing by a bit, if nothing adds up in another order. What is
        `tipping` is as near to floats as that of one rank.
        """
        narrow = NARROW if "bfloat16" in self.names else 0.0
        near = 1e-4 if "compile" in self.names else 1e-5
        bound = 0.0 if self.steady else FAR[self.tipping] if self.tipping else narrow or near
        errors = [distance(a, b) for a, b in zip(found, expected, strict=True)]
        return [f"{self.family}, {' '.join(self.names)}: {error:.1e}" for error in errors if not error <= bound]


def files_of(names: Iterable[str]) -> str:
    """How the files are packed of what has these features; empty where they are not."""
    return next((name for name in names if name in PACKS), "")


Fitted = Callable[..., Path]


@pytest.fixture
def fitted(tiny: Callable[[str], Path], once: Once) -> Fitted:
    """The tiny checkpoint of a family, by its name and how its files are packed, once it is measured for step caches
    (read only).
    """

    def folder(name: str, files: str = "") -> Path:
        return once.folder(f"measured {name} {files}".strip(), partial(make, name, files))

    def make(name: str, files: str, made: Path) -> None:
        PACKS.get(files, copytree)(tiny(name), made)
        measured(made)

    return folder


def cases(asked: Iterable[tuple[str, tuple[str, ...]]], fitted: Fitted, folder: Path) -> list[Case]:
    """All of these, with adapters to wear. What adds up in another order ends with latents where packed weights tip or
    a decoder of sound would magnify that.
    """
    made = []
    for number, (family, names) in enumerate(asked):
        adapter = folder / f"{family}.safetensors"
        if not adapter.exists():
            write(adapter, layers_of(fitted(family)))
        case = Case(family, names, fitted(family, files_of(names)), adapter, folder / f"{number}.safetensors")
        sounds = family == SOUND and not {*ATTENDING, "bfloat16"}.isdisjoint(names)
        made.append(replace(case, output="latent") if case.tipping or sounds else case)
    return made


def shown(asked: Iterable[tuple[str, tuple[str, ...]]]) -> list[pytest.MarkDecorator]:
    """That these are switched on together."""
    return [pytest.mark.shows(*names, families=[family]) for family, names in asked]


def on_rank(rank: int, several: list[Case], meeting: Path) -> None:
    """Rank 0 drives one engine after the other, the other follows each until it closes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for case in several:
        try:
            engine = start(case.config())
        except SystemExit:
            continue
        save_file({str(i): tensor.contiguous() for i, tensor in enumerate(case.draw([engine]))}, case.results)
        engine.close()


def wrong_on_two(several: list[Case], folder: Path) -> list[str]:
    """What differs of what two ranks make of all these from what one makes of each by itself."""
    play(on_rank, several, folder / "meeting", ranks=2)
    wrong = list[str]()
    for case in several:
        found = load_file(case.results)
        wrong += case.wrong([found[str(i)] for i in range(len(found))], on_one(case.plain))
    return wrong


def on_one(case: Case) -> list[Tensor]:
    """What one rank draws; blocks are compiled by a compiler that makes no code."""
    engines = case.started()
    if "compile" in case.names:
        torch._dynamo.reset()
        for engine in engines:
            compile_with(engine, Counter())
    found = case.draw(engines)
    for engine in engines:
        engine.close()
    return found


@pytest.mark.crossed
@pytest.mark.parametrize(
    "asked",
    [*ALONE, *SHARED, *PACKED, *SHARED_PACKED, COMPILED, *FILES_ALONE, *FILES_SHARED],
    ids=lambda asked: " ".join(asked[1]),
)
def test_what_is_tried_is_let_in(asked: tuple[str, tuple[str, ...]], fitted: Fitted, tmp_path: Path) -> None:
    [case] = cases([asked], fitted, tmp_path)
    assert attempt(case.stand, case.features) is None


@pytest.mark.costly("all at once")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize(
    "asked",
    [
        *(pytest.param(asked, id=str(number), marks=shown([asked])) for number, asked in enumerate(ALONE)),
        *(pytest.param(asked, id=f"packed-{number}", marks=shown([asked])) for number, asked in enumerate(PACKED)),
        *(
            pytest.param(asked, id=f"files-{number}", marks=[pytest.mark.costly("files at once"), *shown([asked])])
            for number, asked in enumerate(FILES_ALONE)
        ),
    ],
)
def test_what_changes_nothing_changes_nothing_of_what_the_others_make(
    asked: tuple[str, tuple[str, ...]], fitted: Fitted, tmp_path: Path
) -> None:
    [case] = cases([asked], fitted, tmp_path)
    assert not case.wrong(on_one(case), on_one(case.plain))


@pytest.mark.costly("all at once")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(SHARED, id="all", marks=shown(SHARED)),
        pytest.param(SHARED_PACKED, id="packed", marks=[pytest.mark.costly("packed at once"), *shown(SHARED_PACKED)]),
        pytest.param(FILES_SHARED, id="files", marks=[pytest.mark.costly("files on ranks"), *shown(FILES_SHARED)]),
        pytest.param([COMPILED], id="compiled", marks=[pytest.mark.costly("compiled at once"), *shown([COMPILED])]),
    ],
)
def test_neither_do_two_ranks(asked: Sequence[tuple[str, tuple[str, ...]]], fitted: Fitted, tmp_path: Path) -> None:
    assert not wrong_on_two(cases(asked, fitted, tmp_path), tmp_path)
