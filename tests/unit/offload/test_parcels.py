"""How tensors lie in the arenas where they wait, and what of a component is lent to its blocks."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from omnimuse.loader.tensors import stored_tensors
from omnimuse.offload.parcels import ALIGNMENT, Away
from omnimuse.offload.stores import FileStore

CPU = torch.device("cpu")


class Ledger(FileStore):
    """A store that writes down what it was given to keep, and who has pages of its file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.added: list[tuple[int, bool]] = []
        self.pages: list[weakref.ref[Tensor]] = []

    def add(self, size: int, *, lent: bool) -> int:
        self.added.append((size, lent))
        return super().add(size, lent=lent)

    def content(self, arena: int) -> Tensor:
        pages = super().content(arena)
        self.pages.append(weakref.ref(pages))
        return pages


@pytest.fixture
def store(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def test_tensors_begin_where_they_would_in_memory_of_their_own_and_keep_their_order(store: Ledger) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, device="meta"), nn.Linear(3, 7, device="meta")).requires_grad_(False)
    module[0].weight.data = module[0].weight.to(memory_format=torch.channels_last)
    weights = {name: torch.randn(tensor.shape) for name, (tensor, _) in stored_tensors(module).items()}
    home = Away(module, stored_tensors(module), CPU, store)
    for name, tensor in weights.items():
        home.space(name, tensor).copy_(tensor)
    home.seal()
    assert len(store.pages) == 1 and store.pages[0]() is None, "pages that were written are no memory of the process"
    home.rest.enter()
    for name, tensor in weights.items():
        found = module.get_parameter(name)
        assert torch.equal(found, tensor) and found.data_ptr() % ALIGNMENT == 0
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_what_blocks_have_is_lent_and_the_rest_is_kept_by_who_fetches_it(store: Ledger) -> None:
    module = nn.ModuleDict(
        {"a": nn.Linear(16, 16, False), "b": nn.Linear(16, 32, False), "c": nn.Linear(16, 48, False)}
    )
    module = module.to("meta")
    Away(module, stored_tensors(module), CPU, store, [module["a"], module["b"]])
    assert store.added == [(4 * 16 * 48, False), (4 * 16 * 16, True), (4 * 16 * 32, True)]
