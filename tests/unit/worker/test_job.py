"""What is kept of finished outputs takes the room of these outputs, and no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from omnimuse.worker.blocks import Ran, held_of, seconds_of
from omnimuse.worker.clock import Elapsed
from omnimuse.worker.job import Job, placed


def job(*, blocks: bool = False) -> Job:
    request: Any = SimpleNamespace(blocks=blocks)
    return Job(request, {})


def state(output: int, stride: int = 1) -> Any:
    return SimpleNamespace(id=f"r/{output}", stride=stride)


DENOISE: Any = SimpleNamespace(name="denoise")


def test_the_only_output_is_kept_as_it_is_and_several_have_one_tensor_from_the_first_on() -> None:
    made = [torch.full((3, 2, 2), float(index)) for index in range(3)]
    alone = placed(None, made[0], 0, 1)
    assert alone.shape == (1, 3, 2, 2) and alone.data_ptr() == made[0].data_ptr()
    together = placed(None, made[2], 2, 3)
    for index in (0, 1):
        assert placed(together, made[index], index, 3) is together
    assert torch.equal(together, torch.stack(made))


def test_outputs_of_other_shapes_and_what_is_no_tensor_are_kept_one_beside_the_other() -> None:
    small, wide = torch.ones(3, 2, 2), torch.ones(3, 2, 4)
    first, second, third = placed(placed(placed(None, small, 0, 3), wide, 1, 3), "words", 2, 3)
    assert torch.equal(first, small) and torch.equal(second, wide) and third == "words"
    assert placed(None, "words", 1, 2) == [None, "words"]


def test_a_stage_took_as_long_as_in_the_output_that_took_longest_and_as_many_bytes_as_any() -> None:
    told = job()
    told.timed = {"encode": 1.0}
    told.spend(state(0), DENOISE, 10, Elapsed(4.0))
    told.spend(state(0), DENOISE, 12, Elapsed(0.5), Elapsed(0.5))
    told.spend(state(1, stride=2), DENOISE, 15, Elapsed(6.0))
    told.spend(state(2), DENOISE, 30, Elapsed(1.0))
    assert told.timings() == {"encode": (1.0,), "denoise": (3.0, 3.0)}, "what came in one stride took equal parts"
    assert told.held() == {"denoise": (30, 15)}


def test_a_block_took_as_long_as_in_the_output_that_took_longest_and_as_many_bytes_as_any() -> None:
    told = job(blocks=True)
    told.see(state(0), [Ran("net", "net.0", Elapsed(1.0), 30), Ran("net", "net.0", Elapsed(1.0), 10)])
    told.see(state(1), [Ran("net", "net.0", Elapsed(3.0), 20), Ran("net", "net.0", Elapsed(0.5), 20)])
    assert seconds_of(told.blocks) == {"net.0": (3.0, 0.5)}
    assert held_of(told.blocks) == {"net.0": (30, 20)}


def test_blocks_are_noted_for_who_wants_to_know() -> None:
    for wanted in (False, True):
        told, ran = job(blocks=wanted), [Ran("net", "net.0", Elapsed(1.0)), Ran("net", "net.0", Elapsed(2.0))]
        told.see(state(0), ran)
        assert told.blocks == ({("net.0", "r/0"): ran} if wanted else {})
