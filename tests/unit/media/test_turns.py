"""Turns: few at once, and no tenant waits for all that another has sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from omnimuse.core.errors import CapacityError
from omnimuse.media.turns import Turns


class Scene:
    """Tenants who take turns; each works until it is told to end."""

    def __init__(self, together: int, waiting: int) -> None:
        self.turns = Turns(together, waiting)
        self.working: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    async def come(self, name: str) -> asyncio.Task[None]:
        """`a3` is the third piece of work of tenant `a`."""
        self.ends[name] = asyncio.Event()
        task = asyncio.create_task(self._work(name))
        await settle()
        return task

    async def _work(self, name: str) -> None:
        async with self.turns.one(name[0]):
            self.working.append(name)
            try:
                await self.ends[name].wait()
            finally:
                self.working.remove(name)

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(work: Callable[[Scene], Awaitable[None]], together: int = 1, waiting: int = 64) -> None:
    async def main() -> None:
        await work(Scene(together, waiting))

    asyncio.run(main())


def test_who_waits_is_served_tenant_by_tenant() -> None:
    async def work(scene: Scene) -> None:
        for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
            await scene.come(name)
        served = []
        while scene.working:
            [now] = scene.working
            served.append(now)
            await scene.end(now)
        assert served[0] == "a1" and {name[0] for name in served[1:3]} == {"b", "c"}
        assert [name for name in served if name[0] == "a"] == ["a1", "a2", "a3"]
        assert len(served) == 6

    play(work)


def test_a_tenant_with_nothing_at_work_goes_before_one_that_has_something() -> None:
    async def work(scene: Scene) -> None:
        for name in ("a1", "a2", "a3", "a4", "b1", "b2"):
            await scene.come(name)
        assert scene.working == ["a1", "a2"]
        await scene.end("a1")
        assert scene.working == ["a2", "b1"]
        await scene.end("a2")
        assert scene.working == ["b1", "a3"]

    play(work, together=2)


def test_a_tenant_who_has_had_much_time_goes_after_one_who_has_had_little() -> None:
    async def work(scene: Scene) -> None:
        for name in ("a1", "b1", "a2", "b2"):
            await scene.come(name)
        await asyncio.sleep(0.05)
        await scene.end("a1")  # has had long
        assert scene.working == ["b1"]
        await scene.come("a3")
        await scene.end("b1")  # had hardly anything
        assert scene.working == ["b2"]

    play(work)


def test_when_too_many_wait_the_longest_line_gives_way_to_a_tenant_with_less() -> None:
    async def work(scene: Scene) -> None:
        tasks = {name: await scene.come(name) for name in ("a1", "a2", "a3", "a4")}
        refused = await scene.come("a5")
        assert isinstance(refused.exception(), CapacityError), "a tenant does not push itself away"
        await scene.come("b1")
        assert isinstance(tasks["a4"].exception(), CapacityError), "the last in the longest line"
        third = await scene.come("b2")
        assert isinstance(third.exception(), CapacityError), "lines of two and one are as fair as they get"
        await scene.end("a1")
        assert scene.working == ["b1"]

    play(work, waiting=3)


def test_who_no_longer_waits_takes_no_turn_and_loses_none() -> None:
    async def work(scene: Scene) -> None:
        await scene.come("a1")
        gone, late = await scene.come("b1"), await scene.come("c1")
        gone.cancel()
        await scene.end("a1")
        assert scene.working == ["c1"]
        for name in ("d1", "e1"):
            await scene.come(name)
        scene.ends["c1"].set()
        await asyncio.sleep(0)
        assert not scene.working, "the turn is given away, and whoever got it is cancelled before it knows"
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await settle()
        assert late.done()
        last = await scene.come("f1")
        assert scene.working == ["f1"], "the place came back"
        await scene.end("f1")
        assert last.done() and not scene.turns._tenants, "and nobody is remembered"

    play(work)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_a_place_comes_back_whatever_ends_the_work(error: type[BaseException]) -> None:
    async def work(scene: Scene) -> None:
        for _ in range(3):
            with pytest.raises(error):
                async with scene.turns.one("a"):
                    raise error
        await scene.come("a1")
        assert scene.working == ["a1"]

    play(work)
