"""Networks and encoders whose files are packed draw, write and say what these stand for: for every family."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnimuse.core.config import OffloadConfig
from omnimuse.core.errors import ModelError
from omnimuse.core.request import Ask
from omnimuse.engine.engine import Engine
from omnimuse.engine.local import start
from omnimuse.layers.network import Network
from omnimuse.loader.named import rules_of
from omnimuse.loader.rules import apply_rules
from omnimuse.parallel.mesh import Mesh
from omnimuse.quant.linear import quantized_layers
from omnimuse.worker.build import Build, begin, construct, formats
from omnimuse.worker.build import run as build
from omnimuse.worker.quantize import packable
from tests.checkpoints import library_text, talk_and_draw
from tests.checkpoints.adapters import layers_of, telling, write
from tests.checkpoints.families import ALLROUNDERS, FAMILIES
from tests.checkpoints.packed import FILES, IN_ONE_FILE, Found, as_floats, fits
from tests.dist.test_telling_together import check, spread
from tests.distance import distance
from tests.invariants.conftest import Subject, config, drain, results, run, submit, with_params
from tests.invariants.test_quantized import check_all_is_packed
from tests.invariants.test_telling import SPEAKING, WRITING, Teller, asks
from tests.once import Once

pytestmark = pytest.mark.crossed

ANY = [how for how in FILES if how not in ("bitsandbytes", "GGUF")]
"""Those that take rows of any length."""


def shown(how: str) -> pytest.MarkDecorator:
    """The mark of what is shown of files that are packed so."""
    return pytest.mark.shows(how.split(",")[0], "LoRA", "layers")


CASES = [
    pytest.param(family, how, id=f"{how}-{family.name}", marks=shown(how))
    for how in FILES
    for family in (FAMILIES if how in IN_ONE_FILE else (*FAMILIES, *ALLROUNDERS))
]
"""Weights of BAGEL are in no single file that is read."""
TELLERS: Mapping[str, Teller] = {str(each.id): each.values[0] for each in (*WRITING, *SPEAKING)}  # type: ignore[misc]
DRAWING = talk_and_draw.WRITERS
"""Those that have a network of diffusers beside, which may be in a single file."""
TELLING = [
    *(
        pytest.param(teller, how, id=f"{how}-{name}", marks=shown(how))
        for how in FILES
        for name, teller in TELLERS.items()
        if how not in IN_ONE_FILE or teller in DRAWING
    ),
    *(
        pytest.param(each, how, id=f"{how}-writes-{each.name}")
        for how in ("bitsandbytes", "torchao")
        for each in library_text.EVERY[1:]
        if each.kind != "GPT2"
    ),
]
"""Layers of GPT-2 are no linear ones."""


@pytest.mark.parametrize(("subject", "how"), CASES, indirect=["subject"])
def test_packed_files_draw_what_they_stand_for_wherever_they_wait_and_whatever_is_worn(
    subject: Subject, how: str, tmp_path: Path
) -> None:
    found = both(how, subject.folder, tmp_path)
    adapter = write(tmp_path / "worn.safetensors", layers_of(subject.folder))
    wanted = [subject.ask(0), with_params(subject.ask(0), loras=[f"{adapter}:0.8"])]
    drawn = [run(engine, *wanted) for engine in engines(how, found, tmp_path)]
    for expected, here, waiting in zip(*drawn, strict=True):
        assert distance(here, expected) < 1e-5
        assert bool((waiting == here).all())


@pytest.mark.parametrize(("teller", "how"), TELLING)
def test_packed_files_tell_what_they_stand_for_wherever_they_wait_and_whatever_is_worn(
    teller: Teller, how: str, once: Once, tmp_path: Path
) -> None:
    found = both(how, once.folder(teller.name, teller.build), tmp_path)
    wanted = drawing(asks(teller, max_tokens=12), tmp_path) if teller in DRAWING else asks(teller)
    if adapter := telling(tmp_path / "floats"):
        wanted.append(with_params(wanted[0], loras=[f"{adapter}:0.8"]))
    expected, here, waiting = (told(engine, wanted) for engine in engines(how, found, tmp_path))
    check(here, expected)
    assert here.keys() == waiting.keys() and all(torch.equal(waiting[name], each) for name, each in here.items())
    assert teller not in DRAWING or "0.image" in expected


def both(how: str, folder: Path, home: Path) -> Found:
    """Beside each other in `home`, the checkpoint in `folder` with files that are packed so, and with floats that these
    stand for.
    """
    found = FILES[how](folder, home / "packed")
    as_floats(folder, found, home / "floats")
    return found


def engines(how: str, found: Found, home: Path) -> Iterator[Engine]:
    """Over floats, over what is packed, and over that where blocks come in one at a time."""
    for name, mode in (("floats", "none"), ("packed", "none"), ("packed", "layers")):
        waits = OffloadConfig("layers", home) if mode == "layers" else OffloadConfig()
        with contextlib.closing(start(config(home / name, offload=waits))) as engine:
            if name == "packed":
                check_is_packed(engine, how, found, home / "floats")
            yield engine
            assert not engine.runner.forwards.retries


def told(engine: Engine, wanted: Sequence[Ask]) -> dict[str, Tensor]:
    """What all of them are told, in flight together."""
    ids = submit(engine, *wanted)
    return spread(results(engine, drain(engine), ids))


def drawing(wanted: Sequence[Ask], home: Path) -> list[Ask]:
    """The same, of which the first has a picture drawn: what is written there has the marks of one."""
    shape = {**talk_and_draw.DEFAULTS, "output_type": "pt"}
    wanted = [with_params(ask, **shape) for ask in wanted]
    with contextlib.closing(start(config(home / "floats"))) as engine:
        written = told(engine, wanted[:1])["0.tokens"].tolist()
    for name in ("floats", "packed"):
        talk_and_draw.mark(home / name, written)
    return wanted


def check_is_packed(engine: Engine, how: str, found: Found, floats: Path) -> None:
    """In memory those linear layers of blocks are packed whose rows are whole groups in the files, and no others: of
    every network that is in these.
    """
    under = build(begin(config(floats), Mesh.single()), (construct, formats))
    checkpoint, count = under.found.checkpoint, 0
    for name in under.modules:
        for whole, tensors in found.items():
            if checkpoint.weights(name) == checkpoint.weights(whole):
                network, expected = (
                    engine.runner.pipeline.ctx.components.wherever(name),
                    packed(under, name, how, tensors),
                )
                assert quantized_layers(network).keys() == expected, name
                count += len(expected)
                if isinstance(network, Network) and network.stacks() and name in found and how in ANY:
                    check_all_is_packed(network)
    assert bool(count) == any(fits(how, *each) for tensors in found.values() for each in tensors.items())
    under.resources.close()


def packed(under: Build, name: str, how: str, tensors: Mapping[str, Tensor]) -> set[str]:
    """The layers of a network that is made of these `tensors`, and perhaps of others, of which all rows fit."""
    module, whole = under.modules[name], defaultdict[str, set[bool]](set)
    rules = rules_of(under.found.spec.components[name], under.found.checkpoint, name, module)
    for source, weight in tensors.items():
        whole[apply_rules(source, rules).name].add(fits(how, source, weight))
    return {path for path in packable(module, under.formats[name]) if whole[f"{path}.weight"] == {True}}


@pytest.mark.parametrize("how", IN_ONE_FILE)
@pytest.mark.parametrize("name", [name for name, teller in TELLERS.items() if teller not in DRAWING])
def test_what_writes_and_speaks_is_read_from_no_single_file(name: str, how: str, once: Once, tmp_path: Path) -> None:
    folder = once.folder(TELLERS[name].name, TELLERS[name].build)
    with pytest.raises(ModelError, match="what writes or speaks is read from folders"):
        FILES[how](folder, tmp_path / "packed")
