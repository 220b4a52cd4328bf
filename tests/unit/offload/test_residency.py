"""Components take turns on the device: who is in follows from what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from omnimuse.loader.tensors import stored_tensors
from omnimuse.offload.parcels import Away
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import FileStore

CPU = torch.device("cpu")


class Reader(FileStore):
    """A store that remembers what it was told to read ahead."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ahead: list[int] = []

    def read_ahead(self, arena: int) -> None:
        self.ahead.append(arena)
        super().read_ahead(arena)


@pytest.fixture
def store(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


@pytest.fixture
def residency(store: Reader) -> Residency:
    """Three networks that wait, and a tokenizer."""
    parts: dict[str, nn.Module] = {}
    parcels = {}
    for number, name in enumerate(("encoder", "denoiser", "decoder")):
        parts[name] = nn.Linear(4, 4, device="meta").requires_grad_(False)
        home = Away(parts[name], stored_tensors(parts[name]), CPU, store)
        home.space("weight", parts[name].weight).fill_(number)
        home.space("bias", parts[name].bias).fill_(number)
        home.seal()
        parcels[name] = home.rest
    return Residency({**parts, "tokenizer": "words"}, parcels)


def inside(residency: Residency) -> list[str]:
    parts = {name: residency.wherever(name) for name in residency}
    return [name for name, part in parts.items() if isinstance(part, nn.Module) and not part.weight.is_meta]


def test_a_component_is_in_when_it_was_asked_for_and_the_one_before_has_left(residency: Residency) -> None:
    assert inside(residency) == []
    for number, name in ((0, "encoder"), (1, "denoiser"), (0, "encoder"), (2, "decoder")):
        weight = residency[name].weight
        assert torch.equal(weight, torch.full((4, 4), float(number)))
        assert not weight.requires_grad
        assert inside(residency) == [name]


def test_a_tokenizer_and_a_look_from_outside_move_nobody(residency: Residency) -> None:
    residency["denoiser"]
    assert residency["tokenizer"] == "words"
    assert residency.wherever("decoder").weight.is_meta
    assert inside(residency) == ["denoiser"]
    assert set(residency) == {"encoder", "denoiser", "decoder", "tokenizer"} and len(residency) == 4


def test_what_a_stage_uses_stays_in_together_until_it_ends(residency: Residency) -> None:
    residency["denoiser"]
    with residency.using(("encoder", "decoder")):
        assert inside(residency) == ["denoiser"], "nobody moves before somebody is asked for"
        residency["encoder"]
        residency["decoder"]
        assert inside(residency) == ["encoder", "decoder"]
    residency["denoiser"]
    assert inside(residency) == ["denoiser"]


def test_a_memory_that_was_handed_out_is_not_taken_back(residency: Residency) -> None:
    weight = residency["denoiser"].weight
    residency["decoder"]
    assert torch.equal(weight, torch.ones(4, 4))


def test_what_is_expected_and_not_in_is_read_ahead(residency: Residency, store: Reader) -> None:
    residency["encoder"]
    residency.expect(("encoder", "decoder", "tokenizer", "unknown"))
    assert store.ahead == [2]


def test_what_is_expected_comes_behind_what_a_stage_uses_that_runs(residency: Residency, store: Reader) -> None:
    with residency.using(("encoder",)):
        residency.expect(("denoiser",))
        assert store.ahead == [], "the encoder is waited for"
        residency["encoder"]
        assert store.ahead == [1]
    residency["denoiser"]
    residency.expect(("decoder",))
    assert store.ahead == [1, 2]
    residency.leave()
    residency["encoder"]
    assert store.ahead == [1, 2], "nobody is expected any more"
