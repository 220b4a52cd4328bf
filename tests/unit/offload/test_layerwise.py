"""Layerwise offload changes where weights are, and nothing else."""

import gc
import weakref

import pytest
import torch

from omnimuse.attention.layout import Layout
from omnimuse.cache.stepcache import StepCache
from omnimuse.core.caches import CacheConfig
from omnimuse.core.errors import EngineDeadError
from omnimuse.layers.stack import Memory
from omnimuse.loader.tensors import stored_tensors
from omnimuse.offload.host import DeviceLanes, HostStore
from omnimuse.offload.layerwise import LayerwiseOffload
from omnimuse.offload.parcels import Away
from omnimuse.offload.stores import FileStore
from tests.toy_stack import ToyCond, toy_rows, toy_stack

CPU = torch.device("cpu")


@pytest.fixture
def case():
    parts, shift = toy_rows((4, 6))
    layout = Layout((4, 6))
    return layout.pack(parts), ToyCond(layout, shift)


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path)


def offloaded(store, device=CPU):
    """The toy stack, its weights written straight to where they wait."""
    stack, weights = toy_stack().to_empty(device="meta"), toy_stack().state_dict()
    home = Away(stack, stored_tensors(stack), device, store, stack.blocks())
    for name, tensor in weights.items():
        home.space(name, tensor).copy_(tensor)
    home.seal()
    stack.runner = LayerwiseOffload(home.blocks)
    return stack


def absent(stack):
    return all(tensor.is_meta for tensor in (*stack.parameters(), *stack.buffers()))


def test_offloaded_blocks_compute_bit_for_bit_what_resident_blocks_compute(store, case):
    stack, resident = offloaded(store), toy_stack()
    for _ in range(2):
        assert torch.equal(stack(*case), resident(*case))


def test_weights_are_absent_between_runs_and_their_memory_is_gone(store, case):
    stack = offloaded(store)
    storages = []
    for block in stack:
        forward = block.forward
        block.forward = lambda *args, forward=forward, block=block: (
            storages.append(weakref.ref(block.linear.weight.untyped_storage())),
            forward(*args),
        )[1]
    assert absent(stack)
    stack(*case)
    assert absent(stack)
    gc.collect()
    assert len(storages) == 3 and not any(storage() for storage in storages)


def test_only_the_running_block_has_weights(store, case):
    stack = offloaded(store)
    seen = []
    for block in stack:
        forward = block.forward
        block.forward = lambda *args, forward=forward: (
            seen.append([not other.linear.weight.is_meta for other in stack]),
            forward(*args),
        )[1]
    stack(*case)
    assert seen == [[True, False, False], [False, True, False], [False, False, True]]


def test_a_failing_block_leaves_the_weights_where_they_were(store, case):
    stack = offloaded(store)
    stack[1].broken = True
    with pytest.raises(ArithmeticError):
        stack(*case)
    assert absent(stack)
    stack[1].broken = False
    assert torch.equal(stack(*case), toy_stack()(*case))


def test_some_of_the_blocks_can_be_run_alone(store, case):
    stack, resident = offloaded(store), toy_stack()
    hidden, cond = case
    first = stack.runner(stack.blocks()[:1], hidden, cond)
    assert torch.equal(stack.runner(stack.blocks()[1:], first, cond), resident(hidden, cond))


def test_a_step_cache_can_look_at_a_block_whose_weights_are_away(store, case):
    stack, resident = offloaded(store), toy_stack()
    stack.runner = StepCache(CacheConfig("teacache", 0.1), inner=stack.runner)
    resident.runner = StepCache(CacheConfig("teacache", 0.1))
    memories, others = ([Memory(steps=4), Memory(steps=4)] for _ in range(2))
    for step in range(4):
        for memory in (*memories, *others):
            memory.step = step
        assert torch.equal(stack(*case, memories), resident(*case, others))
    assert [memory.data["stepcache"].skipped for memory in memories] == [2, 2]
    assert absent(stack)


class Listener(FileStore):
    """A store that writes down in which order it was asked."""

    def __init__(self, folder):
        super().__init__(folder)
        self.asked = []

    def lend(self, arena):
        self.asked.append(("lend", arena))
        return super().lend(arena)

    def expect(self, arena):
        self.asked.append(("expect", arena))
        super().expect(arena)


def test_the_next_block_is_expected_before_one_runs_and_the_first_while_the_last_does(tmp_path, case):
    store = Listener(tmp_path)
    stack = offloaded(store)
    first, second, third = (parcel.arena for parcel in stack.runner._parcels.values())
    stack(*case)
    blocks = [("lend", first), ("expect", second), ("lend", second), ("expect", third), ("lend", third)]
    assert store.asked == [*blocks, ("expect", first)]


def test_a_closed_store_says_so(store, case):
    stack = offloaded(store)
    store.close()
    store.close()
    with pytest.raises(EngineDeadError, match="close"):
        stack(*case)
    assert absent(stack)


def test_a_tensor_that_blocks_share_is_with_the_rest():
    stack = toy_stack().to_empty(device="meta")
    stack[1].linear.weight = stack[0].linear.weight
    store = FileStore()
    home = Away(stack, stored_tensors(stack), CPU, store, stack.blocks())
    assert list(home.rest.entries) == ["0.linear.weight"]
    home.rest.enter()
    assert stack[1].linear.weight is stack[0].linear.weight and not stack[0].linear.weight.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_weights_in_pinned_memory_compute_what_resident_weights_compute(case):
    device = torch.accelerator.current_accelerator()
    hidden, cond = case[0].to(device), ToyCond(case[1].layout, case[1].shift.to(device))
    stack, resident = offloaded(HostStore(DeviceLanes(device)), device), toy_stack().to(device)
    for _ in range(3):
        assert torch.equal(stack(hidden, cond), resident(hidden, cond))
    assert absent(stack)
