"""Loading takes what stays and one tensor, for every family: as it is stored, converted, packed, and where it waits."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest
from torch import Tensor, nn

from omnimuse.cli.models import known_by
from omnimuse.core.config import Config, OffloadConfig, QuantConfig, ScheduleConfig
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.models import REGISTRY
from omnimuse.observe.profile import allocated, recorded_events
from omnimuse.quant.schemes import SCHEMES
from omnimuse.worker.pack import pack_checkpoint
from tests.checkpoints import eight_bits, parts, z_image
from tests.checkpoints.eight_bits import LAYOUTS
from tests.checkpoints.families import ALLROUNDERS, ANSWERERS, FAMILIES, SPEAKERS, WRITERS
from tests.checkpoints.wishes import Answerer, Family, Speaker, Writer
from tests.dist.test_packed_files import PACKED, Pack, Z
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


@dataclass(frozen=True)
class Taken:
    """Bytes of starting an engine: the `most` that there were at once, what `stays`, and the `largest` tensor that it
    has, where it waits, too.
    """

    most: int
    stays: int
    largest: int


def taken(asked: Config, folder: Path) -> Taken:
    """What starting `asked` takes, whose files are in `folder`."""
    made = list[Engine]()
    gc.collect()  # what is freed meanwhile was not allocated meanwhile
    most = most_own(recorded_events(lambda: made.append(start(asked))), folder)
    [engine] = made
    storages = [each.untyped_storage() for each in kept(engine) if not each.is_meta]
    held = {each.data_ptr(): each.nbytes() for each in storages}
    found = Taken(most, sum(held.values()), max(each.nbytes for each in kept(engine)))
    engine.close()
    return found


FAST = ScheduleConfig(tier="fast")
"""What other tiers try is gone before weights come."""


@pytest.mark.parametrize("way", ["float32", "bfloat16", "int8", "int4", "fp8", "layers"])
@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_loading_takes_what_stays_and_one_tensor(
    family: Family | Writer | Speaker | Answerer, way: str, once: Once, tmp_path: Path
) -> None:
    folder = once.folder(family.name, family.build)
    packed, waits = {"": way} if way in SCHEMES else {}, OffloadConfig("layers", tmp_path)
    asked = config(
        folder,
        schedule=FAST,
        quantize=QuantConfig(packed),
        offload=waits if way == "layers" else OffloadConfig(),
    )
    if way == "bfloat16":
        asked = replace(asked, model=replace(asked.model, dtype=way))
    found = taken(asked, folder)
    assert found.stays <= found.most <= found.stays + found.largest
    assert (found.stays < found.largest) == (way == "layers"), "what waits is in a file"


def by_us(scheme: str, folder: Path, made: Path) -> None:
    pack_checkpoint(config(folder, quantize=QuantConfig({"": scheme})), made)


def in_eight_bits(kind: str, folder: Path, made: Path) -> None:
    shutil.copytree(folder, made)
    eight_bits.pack(made / "transformer", kind)


def wide(heads: int, folder: Path) -> None:
    """A checkpoint of which every layer of a block is larger than all else."""
    z_image.build(folder)
    parts.save_module(folder, "transformer", 0, lambda: z_image.transformer(heads=heads))


IN_FILES: dict[str, tuple[int, Pack]] = {
    **{kind: (12, pack) for kind, (name, pack) in PACKED.items() if name == Z},
    "nf4 of rows that are no whole groups": (11, PACKED["nf4"][1]),
    "tiles of rows that are no whole groups": (11, PACKED["tiles of torchao"][1]),
    **{f"{kind} of 8 bits": (12, partial(in_eight_bits, kind)) for kind in LAYOUTS},
    **{f"{scheme} of ours": (12, partial(by_us, scheme)) for scheme in SCHEMES},
}
"""How files are packed, of so many heads of 32 numbers."""


@pytest.mark.parametrize("how", IN_FILES)
def test_loading_what_files_have_packed_takes_what_stays_and_one_tensor(how: str, once: Once, tmp_path: Path) -> None:
    folder, (heads, pack) = tmp_path / "packed", IN_FILES[how]
    pack(once.folder(f"wide-{heads}", partial(wide, heads)), folder)
    found = taken(config(folder, schedule=FAST), folder)
    assert found.stays <= found.most <= found.stays + found.largest
