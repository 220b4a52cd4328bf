"""A stack runs its blocks in order, through whatever runner it was given."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from omnimuse.attention.layout import Layout
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import CacheConfig
from omnimuse.layers.stack import BlockStack, ChainedStack, Memory, PlainRunner
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.stores import FileStore
from omnimuse.parallel.mesh import Axis
from omnimuse.parallel.shard import ShardRunner
from omnimuse.worker.rest import written
from tests.toy_stack import CountingCond, RowByRow, ToyCond, toy_rows, toy_stack


class Backwards(PlainRunner):
    """Runs the blocks in reverse."""

    def __call__(self, blocks, hidden, cond, memories=None):
        return super().__call__(list(reversed(blocks)), hidden, cond, memories)


def test_the_plain_runner_runs_the_blocks_in_order():
    (part,), shift = toy_rows((4,))
    stack, cond = toy_stack(), ToyCond(Layout((4,)), shift)
    hidden = expected = part[None]
    for block in stack:
        expected = block(expected, cond)
    assert torch.equal(stack(hidden, cond), expected)


def test_a_stack_hands_its_blocks_to_the_runner_that_was_set():
    (part,), shift = toy_rows((4,))
    stack, cond = toy_stack(), ToyCond(Layout((4,)), shift)
    reversed_stack = BlockStack(reversed(list(stack)))
    stack.runner = Backwards()
    assert torch.equal(stack(part[None], cond), reversed_stack(part[None], cond))


def test_a_chained_stack_runs_its_lists_in_turn_and_keeps_their_names():
    (part,), shift = toy_rows((4,))
    first, second, cond = toy_stack(2), toy_stack(1, seed=1), ToyCond(Layout((4,)), shift)
    stack = ChainedStack({"wide": list(first), "narrow": list(second)})
    assert stack.blocks() == [*first, *second]
    assert torch.equal(stack(part[None], cond), second(first(part[None], cond), cond))
    names = {name.rpartition(".linear")[0] for name, _ in stack.named_parameters()}
    assert names == {"wide.0", "wide.1", "narrow.0"}


def cached(stack: BlockStack) -> StepCache:
    """The first block, and then the others."""
    return StepCache(CacheConfig("dbcache", 0.1, first=1))


def waiting(stack: BlockStack) -> LayerwiseOffload:
    store = FileStore()
    return LayerwiseOffload({block: written(block, store, lent=True) for block in stack})


def in_parts(stack: BlockStack) -> ShardRunner:
    """One part each."""
    return ShardRunner({block: [] for block in stack}, Axis())


@pytest.mark.parametrize("runner", [cached, waiting, in_parts])
def test_what_counts_blocks_is_told_which_of_them_are_run(
    runner: Callable[[BlockStack], StepCache | LayerwiseOffload | ShardRunner],
):
    parts, shift = toy_rows((4, 6))
    stack, layout = toy_stack(), Layout((4, 6))
    hidden = layout.pack(parts)
    expected = stack(hidden, CountingCond(layout, shift, torch.zeros(1)))
    stack.runner = runner(stack)
    stack.runner.inner = RowByRow()
    found = stack(hidden, CountingCond(layout, shift, torch.zeros(1)), [Memory(steps=4, of=4) for _ in parts])
    torch.testing.assert_close(found, expected)


@dataclass
class Note:
    """Something remembered that holds a tensor."""

    tensor: torch.Tensor

    def to(self, device):
        return Note(self.tensor.to(device))


def test_moving_a_memory_moves_its_tensors_and_keeps_the_rest():
    memory = Memory(step=2, steps=5, data={"tensor": torch.zeros(2), "note": Note(torch.zeros(2)), "count": 3})
    memory.to(torch.device("meta"))
    assert memory.data["tensor"].is_meta
    assert memory.data["note"].tensor.is_meta
    assert (memory.step, memory.steps, memory.data["count"]) == (2, 5, 3)
