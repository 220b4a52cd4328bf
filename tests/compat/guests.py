"""Pipelines from elsewhere, of every kind that doors let in: their tiny checkpoints, and what those are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omnimuse import Config, ModelConfig
from omnimuse.core.config import CacheConfig, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.core.request import Ask
from tests.checkpoints import flux, wan
from tests.checkpoints.foreign import FOREIGN, Foreign
from tests.checkpoints.wishes import Wish
from tests.compat.checkpoints import COMPOSED, PLUGIN, customised, renamed
from tests.compat.test_documented import CASES, Case
from tests.compat.test_sglang import WISHES
from tests.compat.test_sglang_stages import CHANGED, DRAWN, EVEN, FILMED, TOKENS, medium

WAYS: dict[str, dict[str, Any]] = {
    "resident": {},
    "components": {"offload": OffloadConfig("components")},
    "int8": {"quantize": QuantConfig({"": "int8"})},
    "layers": {"offload": OffloadConfig("layers")},
    "dbcache": {"cache": CacheConfig("dbcache", 1e9, first=1, last=0, warm_up=1)},
    "teacache": {"cache": CacheConfig("teacache", 0.7)},
}
"""Topics of the configuration: where weights wait, how they are packed, and what skips steps."""
ANY = ("resident", "components", "int8")
"""What is there for every pipeline; the others need blocks that it declares, a loop given away, an extractor."""


@dataclass(frozen=True)
class Guest:
    """A pipeline from elsewhere, which `plugins` have, its checkpoint, what it is asked, and the ways that are there
    for it. `loops`: its loop is the engine's. Two ranks are asked `even` wishes, if there are any.
    """

    arch: str
    plugins: tuple[str, ...]
    build: Callable[[Path], Path]
    wishes: tuple[Wish, ...]
    ways: tuple[str, ...] = ANY
    loops: bool = True
    even: tuple[Wish, ...] = ()

    @property
    def name(self) -> str:
        """What it is called among others."""
        return self.arch

    def made(self, folder: Path) -> Path:
        """Its checkpoint, in `folder` or beside it."""
        return renamed(self.build(folder), self.arch)

    def config(self, folder: Path, way: str = "resident") -> Config:
        model = ModelConfig(str(renamed(folder, self.arch)), "float32", "cpu", plugins=self.plugins)
        return Config(model, schedule=ScheduleConfig(strict_slots=True, company="always"), **WAYS[way])

    def asks(self, previews: int = 0, **choices: Any) -> list[Ask]:
        """All that it is asked, to the end."""
        more = {"output_type": "pt", **choices}
        return [Ask(wish.asked, replace(wish.params, **more), previews=previews) for wish in self.wishes]


def written(name: str, *, steps: bool) -> Guest:
    """One to the guide of vLLM-Omni."""
    case = CASES[name]
    build = partial(own_kind, case) if case.own else case.build
    ways = ("layers", *(["dbcache"] if steps else []), *(["teacache"] if name != "experts" else []))
    declared = () if name == "sound" else ways  # its network is diffusers' own
    return Guest(case.steps if steps else case.whole, (PLUGIN,), build, case.wishes, (*ANY, *declared), loops=steps)


def own_kind(case: Case, folder: Path) -> Path:
    return customised(case.build(folder), folder.with_name(f"{folder.name}-own"), case.whole)


def composed(
    arch: str,
    build: Callable[[Path], Path],
    wishes: tuple[Wish, ...],
    extra: dict[str, Any] | None = None,
    even: tuple[Wish, ...] = (),
    **more: Any,
) -> Guest:
    """One as SGLang Diffusion's guide has it."""
    own = {"max_sequence_length": None, **({} if extra is None else {"extra": extra})}
    asked, shared = (
        tuple(replace(wish, params=replace(wish.params, **own)) for wish in each) for each in (wishes, even)
    )
    return Guest(arch, (COMPOSED,), build, asked, even=shared, **more)


def foreign(entry: Foreign) -> Guest:
    """One of diffusers' own."""
    wish = Wish("" if entry.picture else "a red circle", entry.negative, entry.params, entry.picture)
    return Guest(entry.arch, (), entry.build, (wish, replace(wish, params=replace(wish.params, seed=8))), loops=False)


TOLD = {"sampling": {"empty_tokens": TOKENS}}
GUESTS = {
    **{f"{name}, whole": written(name, steps=False) for name in CASES},
    **{f"{name}, in steps": written(name, steps=True) for name in CASES},
    "composed": composed("ComposedSmallPipeline", flux.build, WISHES, ways=tuple(WAYS)),
    "composed, own stages": composed("ComposedMediumPipeline", medium, DRAWN, TOLD),
    "composed, own guidance": composed("ComposedMediumCombinedPipeline", medium, DRAWN, TOLD),
    "composed, own loop": composed("ComposedMediumWholePipeline", medium, DRAWN, TOLD, loops=False),
    "composed, pictures": composed("ComposedMediumEditPipeline", medium, CHANGED, TOLD),
    "composed, videos": composed(
        "ComposedMotionPipeline", partial(wan.build, kind="A14B"), FILMED, ways=(*ANY, "layers"), even=EVEN
    ),
}
"""Those written to others' guides."""
FROM_DIFFUSERS = {entry.arch: foreign(entry) for entry in FOREIGN}
