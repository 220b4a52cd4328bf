"""A call that stands still between its steps: it goes on, ends, fails and is unwound, always on one thread."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch

from omnimuse.compat.diffusers.call import Call, park, running


def steps(count: int, log: list[str]) -> Callable[[], str]:
    def work() -> str:
        try:
            for number in range(count):
                log.append(f"step {number}")
                park(torch.tensor(number), count)
            return "made"
        finally:
            log.append("unwound")

    return work


def test_a_call_goes_on_from_park_to_park_and_then_has_its_result() -> None:
    log: list[str] = []
    call = Call(steps(2, log))
    call.go_on()
    assert (log, call.total, int(call.latents), call.dead) == (["step 0"], 2, 0, False)  # type: ignore[arg-type]
    call.go_on()
    assert (log[-1], int(call.latents)) == ("step 1", 1)  # type: ignore[arg-type]
    call.go_on()
    assert (call.dead, call.result, call.latents) == (True, "made", None)


def test_several_calls_take_turns_on_the_thread_that_asks() -> None:
    where: set[int] = set()

    def work() -> None:
        where.add(threading.get_ident())
        park(None, 1)
        where.add(threading.get_ident())

    calls = [Call(work), Call(work)]
    for call in (*calls, *calls):
        call.go_on()
    assert all(call.dead for call in calls)
    assert where == {threading.get_ident()}


def test_what_the_work_raises_is_raised_where_it_was_asked_to_go_on() -> None:
    def work() -> None:
        park(None, 1)
        raise LookupError("no such word")

    call = Call(work)
    call.go_on()
    with pytest.raises(LookupError, match="no such word"):
        call.go_on()
    assert call.dead


def test_letting_go_of_a_parked_call_unwinds_it_and_frees_what_it_held() -> None:
    class Held:
        pass

    log: list[str] = []
    inner, held = steps(3, log), Held()
    gone = weakref.ref(held)

    def work(keep: Held = held) -> str:
        assert keep is not None
        return inner()

    call = Call(work)
    call.go_on()
    del work, held
    gc.disable()  # counting references alone must do it
    try:
        del call
        assert (log[-1], gone()) == ("unwound", None)
    finally:
        gc.enable()


def test_a_call_comes_back_to_whoever_lets_it_go_on() -> None:
    log: list[str] = []
    call = Call(steps(1, log))

    def other() -> None:
        call.go_on()
        log.append("back in the other")

    outer = Call(other)
    outer.go_on()
    call.go_on()
    assert log == ["step 0", "back in the other", "unwound"]


def test_parking_outside_of_a_call_is_a_fault() -> None:
    with pytest.raises(AssertionError, match="outside of a call"):
        running()
