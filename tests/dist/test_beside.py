"""What changes how all is computed or where it stands is switched on beside everything else: a backend of attention,
bfloat16, a step cache that was measured, a folder that was packed once, pools, ranks that divide into teams, timings of
blocks and a recording.

Cases are those of `test_all_at_once.py`: together they have every pair with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from omnimuse.core.config import ParallelConfig
from omnimuse.core.output import Done, Preview
from omnimuse.core.pools import DeployConfig, PoolConfig
from omnimuse.deploy.pools import Pools
from omnimuse.pipeline.stage import Loop
from tests.dist import test_all_at_once
from tests.dist.test_all_at_once import (
    ASKED,
    NAPS,
    PICTURE,
    SKIPS,
    SOUND,
    VIDEO,
    Case,
    Fitted,
    cases,
    on_one,
    shown,
    wrong_on_two,
)
from tests.invariants.conftest import told
from tools.feature_list import ATTENDING, PACKED_FILES, SCHEMES
from tools.features_page import attempt

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]

Asked = tuple[str, tuple[str, ...]]
fitted = test_all_at_once.fitted
ALL: tuple[Asked, ...] = (
    (PICTURE, (*NAPS, "exact", *SKIPS, "int8", "components")),
    (PICTURE, (*NAPS, "invariant", "TeaCache", "int4", "layers")),
    (PICTURE, (*NAPS, "exact", "DBCache", "fp8", "compile")),
    (PICTURE, (*ASKED, "exact", "int8-dynamic")),
    (PICTURE, (*ASKED, "exact", "fp8-dynamic")),
    (SOUND, ("sound in", "several", "company")),
    (VIDEO, ("video in", "mask", "several", "company", "LoRA")),
    *((PICTURE, (*ASKED, files)) for files in PACKED_FILES),
)
"""All that one rank can have."""
ALL_SHARED: tuple[Asked, ...] = (
    (PICTURE, (*ASKED, "tensor", "tiles on ranks")),
    (PICTURE, (*ASKED, "ulysses", "shard")),
    (PICTURE, (*ASKED, "ring")),
    (PICTURE, (*ASKED, "pipe")),
    (PICTURE, (*ASKED, "cfg")),
)
"""All ways to share work."""
TOLD = ("block timings", "recording")
TEAMS: Mapping[str, tuple[Asked, ...]] = {
    "teams": (
        (
            PICTURE,
            (*ASKED, "teams", "components", "tiles on ranks", "sleep", "reference", "block timings", "recording"),
        ),
        (PICTURE, (*ASKED, "teams", "layers", "tiles", "sleep", "flex")),
        (PICTURE, (*ASKED, "teams", "bfloat16", "packed once")),
        (SOUND, ("sound in", "several", "company", "teams", "sdpa_flash")),
        (VIDEO, ("video in", "mask", "several", "company", "LoRA", "teams", "sdpa_math")),
    ),
    "packed teams": tuple(
        (PICTURE, (*ASKED, "teams", scheme, *(["per role"] if scheme == "int8" else []))) for scheme in SCHEMES
    ),
    "teams of files": tuple((PICTURE, (*ASKED, "teams", files)) for files in PACKED_FILES),
}
"""All that goes together with ranks that divide between two steps."""
CACHES = ("TeaCache", "DBCache", *SKIPS)
PACKED = ("int8", "int4", "fp8", "int8-dynamic", "fp8-dynamic", *PACKED_FILES)


def beside(asked: Iterable[Asked], *names: str, without: Iterable[str] = ()) -> tuple[Asked, ...]:
    """These with what is called `names`, and without what does not go with it."""
    left = {*without}
    return tuple(
        dict.fromkeys((family, (*(each for each in had if each not in left), *names)) for family, had in asked)
    )


EVERYTHING = ("auto", "bfloat16", "packed once", "block timings", "recording")
WITHOUT: Mapping[str, tuple[str, ...]] = {"flex": ("compile",), "sdpa_flash": ("ring",), "sdpa_math": ("ring",)}
"""Torch's compiler makes no code for the masks of flex on a CPU, and those kernels do not tell what keys weigh, by
which a ring merges what its ranks find.
"""
SEEN: Mapping[str, tuple[str, ...]] = {"reference": ("block timings",), "per role": ("recording",)}
"""What is seen of all that is computed with this backend."""
ALONE: Mapping[str, tuple[Asked, ...]] = {
    **{
        backend: (
            *beside(ALL, backend, *SEEN.get(backend, ()), without=WITHOUT.get(backend, ())),
            (PICTURE, (*ASKED, "exact", backend, *EVERYTHING)),
            (PICTURE, (*ASKED, "exact", backend, *EVERYTHING[:-1], "pools")),
        )
        for backend in ATTENDING
    },
    "pools": beside(ALL, "pools", without=("sleep",)),
    "auto": beside(ALL, "auto", without=CACHES),
    "bfloat16": beside(ALL, "bfloat16"),
    "packed once": beside(ALL, "packed once", without=PACKED),
}
SHARED: Mapping[str, tuple[Asked, ...]] = {
    **{backend: beside(ALL_SHARED, backend, without=WITHOUT.get(backend, ())) for backend in ATTENDING},
    **TEAMS,
    "others": (*beside(ALL_SHARED, *EVERYTHING[:2], "block timings"), *beside(ALL_SHARED, *EVERYTHING[2:])),
}
IN_TEAMS: Asked = (PICTURE, (*ASKED, "teams"))
POOLED = beside((*ALL_SHARED, IN_TEAMS), "pools")


@pytest.mark.crossed
@pytest.mark.parametrize(
    "asked",
    [each for several in (*ALONE.values(), *SHARED.values(), POOLED) for each in several],
    ids=lambda asked: " ".join(asked[1]),
)
def test_what_is_tried_is_let_in(asked: Asked, fitted: Fitted, tmp_path: Path) -> None:
    [case] = cases([asked], fitted, tmp_path)
    assert attempt(case.stand, case.features) is None


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # the compiler's own
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(asked, id=f"{name}-{number}", marks=[pytest.mark.costly(f"beside {name}"), *shown([asked])])
        for name, several in ALONE.items()
        for number, asked in enumerate(several)
    ],
)
def test_beside_all_else_it_changes_nothing(asked: Asked, fitted: Fitted, tmp_path: Path) -> None:
    [case] = cases([asked], fitted, tmp_path)
    assert not case.wrong(on_one(case), on_one(case.plain))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(several, id=name, marks=[pytest.mark.costly(f"{name} on ranks"), *shown(several)])
        for name, several in SHARED.items()
    ],
)
def test_nor_on_two_ranks(asked: Sequence[Asked], fitted: Fitted, tmp_path: Path) -> None:
    assert not wrong_on_two(cases(asked, fitted, tmp_path), tmp_path)


def on_two(case: Case) -> DeployConfig:
    """What comes before the loops in a pool of one rank, the others in one of several."""
    stages = case.stand.pipeline.stages
    first = next(number for number, stage in enumerate(stages) if isinstance(stage, Loop))
    before, behind = (tuple(stage.name for stage in part) for part in (stages[:first], stages[first:]))
    return DeployConfig(
        (PoolConfig("before", before, connector="local"), PoolConfig("behind", behind, parallel=case.parallel))
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(asked, id="-".join(alone[1][len(ASKED) :]), marks=[pytest.mark.costly, *shown([asked])])
        for asked, alone in zip(POOLED, (*ALL_SHARED, IN_TEAMS), strict=True)
    ],
)
def test_nor_in_pools_of_two_ranks(asked: Asked, fitted: Fitted, tmp_path: Path) -> None:
    [case] = cases([asked], fitted, tmp_path)
    with closing(Pools(replace(case.config(), parallel=ParallelConfig(), deploy=on_two(case)))) as pools:
        events, _ = told(pools, *case.asks())
    [result] = [event.result for event in events if isinstance(event, Done)]
    assert any(isinstance(event, Preview) for event in events)
    assert not case.wrong(list(result.output), on_one(case.plain))
