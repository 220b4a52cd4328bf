"""Components take turns on the device: who is in follows from what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omnimuse.loader.tensors import stored_tensors
from omnimuse.offload.parcels import Away
from omnimuse.offload.residency import Residency
from omnimuse.offload.stores import FileStore

CPU = torch.device("cpu")


class Reader(FileStore):
    """A store that remembers what it was told to read ahead, which of that is dropped, and what is fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ahead: list[int] = []
        self.dropped: list[int] = []
        self.fetched: list[int] = []

    def fetch(self, arena: int) -> Tensor:
        self.fetched.append(arena)
        return super().fetch(arena)

    def drop(self, arena: int) -> None:
        self.dropped.append(arena)

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


def test_what_came_ahead_gives_its_room_to_who_is_asked_for_instead_and_to_all_when_everything_leaves(
    residency: Residency, store: Reader
) -> None:
    residency["encoder"]
    residency.expect(("denoiser",))
    store.dropped.clear()
    residency["decoder"]
    assert store.dropped == [], "the denoiser is expected, the decoder is asked for, and the encoder was in"
    residency.expect(("encoder",))
    residency["encoder"]
    assert store.dropped == [1], "the denoiser has its turn no more"
    residency.leave()
    assert store.dropped == [1, 0, 1, 2] and inside(residency) == []
    assert residency["encoder"] is residency["encoder"] and inside(residency) == ["encoder"]
    assert store.fetched == [0, 2, 0, 0], "who is in is not fetched again"


def test_what_came_ahead_leaves_where_there_is_no_room_for_it_and_who_is_in_stays(
    residency: Residency, store: Reader
) -> None:
    residency["denoiser"]
    residency.expect(("decoder",))
    store.dropped.clear()
    residency.forgo()
    assert store.dropped == [0, 2] and inside(residency) == ["denoiser"]
    residency["tokenizer"]
    assert store.ahead == [2], "and nobody is expected any more"
    assert torch.equal(residency["decoder"].weight, torch.full((4, 4), 2.0))


def test_who_takes_turns_does_not_stay(residency: Residency) -> None:
    assert residency.moves and [residency.stays(name) for name in ("encoder", "tokenizer")] == [False, True]
    settled = Residency({"tokenizer": "words"})
    assert not settled.moves and settled.stays("tokenizer")
