"""Loading takes what stays and one tensor, for every family: as it is stored, converted, packed, and where it waits."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from torch import Tensor, nn

from omnimuse.cli.models import known_by
from omnimuse.core.config import OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.models import REGISTRY
from omnimuse.observe.profile import allocated, recorded_events
from tests.checkpoints.families import ALLROUNDERS, ANSWERERS, FAMILIES, SPEAKERS, WRITERS
from tests.checkpoints.wishes import Answerer, Family, Speaker, Writer
from tests.invariants.conftest import config
from tests.once import Once

pytestmark = pytest.mark.crossed

EVERY: tuple[Family | Writer | Speaker | Answerer, ...] = (*FAMILIES, *ALLROUNDERS, *WRITERS, *SPEAKERS, *ANSWERERS)


def kept(engine: Engine) -> Iterator[Tensor]:
    """The tensors of its networks."""
    components = engine.runner.pipeline.ctx.components
    for module in map(components.wherever, components):
        if isinstance(module, nn.Module):
            yield from (*module.parameters(), *module.buffers())


def most_own(events: list[dict[str, object]], folder: Path) -> int:
    """The most that the process had of its own: what a file is mapped to, as one piece, the system can have back."""
    mapped = {path.stat().st_size for path in folder.rglob("*.safetensors")}
    return max(accumulate(size for _, size in sorted(allocated(events)) if abs(size) not in mapped))


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_what_a_folder_is_known_by_is_what_people_are_told(
    family: Family | Writer | Speaker | Answerer, once: Once
) -> None:
    checkpoint = Checkpoint(once.folder(family.name, family.build))
    told, (file, names, _) = known_by(REGISTRY.spec(checkpoint.arch)), checkpoint.why.partition(" names ")
    assert told.startswith(f"whose {file} names ") if names else told == f"that {checkpoint.why.removeprefix('it ')}"


@pytest.mark.parametrize("way", ["float32", "bfloat16", "int8", "layers"])
@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_loading_takes_what_stays_and_one_tensor(
    family: Family | Writer | Speaker | Answerer, way: str, once: Once, tmp_path: Path
) -> None:
    folder, made = once.folder(family.name, family.build), list[Engine]()
    packed, waits = {"": "int8"} if way == "int8" else {}, OffloadConfig("layers", tmp_path)
    asked = config(
        folder,
        schedule=ScheduleConfig(tier="fast"),  # what other tiers try is gone before weights come
        quantize=QuantConfig(packed),
        offload=waits if way == "layers" else OffloadConfig(),
    )
    if way == "bfloat16":
        asked = replace(asked, model=replace(asked.model, dtype=way))
    gc.collect()  # what is freed meanwhile was not allocated meanwhile
    most = most_own(recorded_events(lambda: made.append(start(asked))), folder)
    [engine] = made
    storages = [each.untyped_storage() for each in kept(engine) if not each.is_meta]
    held = {each.data_ptr(): each.nbytes() for each in storages}
    stays, largest = sum(held.values()), max(each.nbytes for each in kept(engine))
    engine.close()
    assert stays <= most <= stays + largest
    assert (stays < largest) == (way == "layers"), "what waits is in a file"
