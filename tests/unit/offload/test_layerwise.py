"""Layerwise offload changes where weights are, and nothing else."""

import weakref

import pytest
import torch

from omnimuse.attention.layout import Layout
from omnimuse.cache.teacache import TeaCache
from omnimuse.core.errors import ConfigError, EngineDeadError
from omnimuse.layers.stack import Memory
from omnimuse.offload.layerwise import LayerwiseOffload
from tests.toy_stack import ToyCond, toy_rows, toy_stack

CPU = torch.device("cpu")


@pytest.fixture
def case():
    parts, shift = toy_rows((4, 6))
    layout = Layout((4, 6))
    return layout.pack(parts), ToyCond(layout, shift)


def offloaded(folder, device=CPU):
    stack = toy_stack()
    stack.runner = LayerwiseOffload(stack.blocks(), device, folder)
    return stack


def absent(stack):
    return all(tensor.is_meta for tensor in (*stack.parameters(), *stack.buffers()))


def test_offloaded_blocks_compute_bit_for_bit_what_resident_blocks_compute(tmp_path, case):
    stack, resident = offloaded(tmp_path), toy_stack()
    for _ in range(2):
        assert torch.equal(stack(*case), resident(*case))


def test_weights_are_absent_between_runs_and_their_memory_is_gone(tmp_path, case):
    stack = toy_stack()
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in (*stack.parameters(), *stack.buffers())]
    stack.runner = LayerwiseOffload(stack.blocks(), CPU, tmp_path)
    assert absent(stack)
    assert not any(storage() for storage in storages)
    stack(*case)
    assert absent(stack)


def test_only_the_running_block_has_weights(tmp_path, case):
    stack = offloaded(tmp_path)
    seen = []
    for block in stack:
        forward = block.forward
        block.forward = lambda *args, forward=forward: (
            seen.append([not other.linear.weight.is_meta for other in stack]),
            forward(*args),
        )[1]
    stack(*case)
    assert seen == [[True, False, False], [False, True, False], [False, False, True]]


def test_a_failing_block_leaves_the_weights_where_they_were(tmp_path, case):
    stack = offloaded(tmp_path)
    stack[1].broken = True
    with pytest.raises(ArithmeticError):
        stack(*case)
    assert absent(stack)
    stack[1].broken = False
    assert torch.equal(stack(*case), toy_stack()(*case))


def test_some_of_the_blocks_can_be_run_alone(tmp_path, case):
    stack, resident = offloaded(tmp_path), toy_stack()
    hidden, cond = case
    first = stack.runner(stack.blocks()[:1], hidden, cond)
    assert torch.equal(stack.runner(stack.blocks()[1:], first, cond), resident(hidden, cond))


def test_a_step_cache_can_look_at_a_block_whose_weights_are_away(tmp_path, case):
    stack, resident = offloaded(tmp_path), toy_stack()
    stack.runner = TeaCache(0.1, inner=stack.runner)
    resident.runner = TeaCache(0.1)
    memories, others = ([Memory(steps=4), Memory(steps=4)] for _ in range(2))
    for step in range(4):
        for memory in (*memories, *others):
            memory.step = step
        assert torch.equal(stack(*case, memories), resident(*case, others))
    assert [memory.data["teacache"].skipped for memory in memories] == [2, 2]
    assert absent(stack)


def test_closing_removes_the_files_and_a_closed_stack_says_so(tmp_path, case):
    stack = offloaded(tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    stack.runner.close()
    stack.runner.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EngineDeadError, match="close"):
        stack(*case)


def test_files_go_with_the_stack_even_if_nobody_closes_it(tmp_path):
    stack = offloaded(tmp_path)
    del stack
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "occupied"
    path.write_text("")
    with pytest.raises(ConfigError, match="occupied"):
        LayerwiseOffload(toy_stack().blocks(), CPU, path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_weights_in_pinned_memory_compute_what_resident_weights_compute(case):
    device = torch.accelerator.current_accelerator()
    hidden, cond = case[0].to(device), ToyCond(case[1].layout, case[1].shift.to(device))
    stack, resident = offloaded(None, device), toy_stack().to(device)
    for _ in range(3):
        assert torch.equal(stack(hidden, cond), resident(hidden, cond))
    assert absent(stack)
