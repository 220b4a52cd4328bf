"""Blocks are timed by name while somebody looks, whoever calls them; otherwise there is nothing on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omnimuse.attention.layout import Layout
from omnimuse.layers.compiled import CompiledRunner
from omnimuse.layers.stack import Block, BlockStack, ChainedStack
from omnimuse.offload.residency import Residency
from omnimuse.worker.blocks import Blocks, named_blocks
from omnimuse.worker.clock import HostClock


@dataclass(frozen=True)
class Plain:
    layout: Layout
    dense: bool = True


class Double(Block[Plain]):
    def forward(self, hidden: Tensor, cond: Plain) -> Tensor:
        if hidden.isnan().any():
            raise ValueError("no numbers")
        return 2 * hidden


class Twice(Block[Plain]):
    def forward(self, hidden: Tensor, cond: Plain) -> Tensor:
        return 2 * hidden


class Net(nn.Module):
    def __init__(self, stack: BlockStack) -> None:
        super().__init__()
        self.blocks = stack


COND = Plain(Layout((3,)))


def asking(wanted: bool) -> Any:
    """A state whose request wants to know, or does not."""
    return SimpleNamespace(request=SimpleNamespace(blocks=wanted))


def bare(module: nn.Module) -> bool:
    return not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_each_block_is_timed_under_its_path_and_nothing_stays_on_it() -> None:
    net, ticks, sizes = Net(BlockStack([Double(), Double()])), count(), count(10)
    watch = Blocks(HostClock(lambda: float(next(ticks))), lambda: next(sizes))
    with watch.watched(Residency({"net": net, "words": object()}), [asking(True)]) as ran:
        net.blocks(torch.ones(1, 3, 2), COND)
    assert [(each.component, each.name, each.span.seconds(), each.held) for each in ran] == [
        ("net", "net.blocks.0", 1.0, 10),
        ("net", "net.blocks.1", 1.0, 11),
    ]
    assert bare(net)


def test_nobody_who_looks_costs_nothing_and_a_recording_looks_always() -> None:
    net, watch = Net(BlockStack([Double()])), Blocks(HostClock(), lambda: 0)
    with watch.watched(Residency({"net": net}), [asking(False)]) as ran:
        assert bare(net)
        net.blocks(torch.ones(1, 3, 2), COND)
    assert not ran
    watch.recorded = True
    with watch.watched(Residency({"net": net}), [asking(False)]) as ran:
        net.blocks(torch.ones(1, 3, 2), COND)
    assert [each.name for each in ran] == ["net.blocks.0"]


def test_a_block_that_fails_ends_its_own_label_and_is_let_go() -> None:
    net, watch = Net(BlockStack([Double(), Double()])), Blocks(HostClock(), lambda: 0)
    with watch.watched(Residency({"net": net}), [asking(True)]) as ran:
        with pytest.raises(ValueError, match="no numbers"):
            net.blocks(torch.full((1, 3, 2), torch.nan), COND)
        net.blocks(torch.ones(1, 3, 2), COND)
    assert [each.name for each in ran] == ["net.blocks.0", "net.blocks.0", "net.blocks.1"]
    assert bare(net)


def test_of_a_compiled_block_what_is_called_in_its_place_is_timed() -> None:
    stack = BlockStack([Twice(), Twice()])
    net, watch = Net(stack), Blocks(HostClock(), lambda: 0)
    changes, compilations = [False], list[None]()

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compilations.append(None)
        return graph

    runner = CompiledRunner(stack.blocks(), backend=backend, changed=lambda: changes[0])
    stack.runner, stack.instead = runner, runner.instead
    net.blocks(torch.ones(1, 3, 2), COND)
    made = len(compilations)
    for changed in (False, True, False):
        with watch.watched(Residency({"net": net}), [asking(True)]) as ran:
            for changes[0] in (changed, not changed):  # who wears something has a forward of its own
                assert torch.equal(net.blocks(torch.ones(1, 3, 2), COND), torch.full((1, 3, 2), 4.0))
        assert [each.name for each in ran] == ["net.blocks.0", "net.blocks.1"] * 2
    assert bare(net) and len(compilations) == made, "what looks is not compiled"


def test_lists_of_a_library_have_blocks_and_what_it_compiles_whole_has_none() -> None:
    library = nn.Module()
    library.encoder = nn.Module()
    library.encoder.layer = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    library.decoder = nn.Module()
    library.decoder.up = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])
    chained = Net(ChainedStack({"two": [Double()], "one": [Double()]}))
    found = {name: [path for path, _ in named_blocks(name, part)] for name, part in (("a", library), ("b", chained))}
    assert found == {
        "a": ["a.encoder.layer.0", "a.encoder.layer.1", "a.decoder.up.0"],
        "b": ["b.blocks.two.0", "b.blocks.one.0"],
    }
    library.decoder.compile(backend="eager")
    assert [path for path, _ in named_blocks("a", library)] == ["a.encoder.layer.0", "a.encoder.layer.1"]
