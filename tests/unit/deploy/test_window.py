"""A window is over with its time, or once the requests that it is for have ended."""

from __future__ import annotations

from threading import Thread

from omnimuse.deploy.window import Window


def over(window: Window, seconds: float = 0.05) -> bool:
    waiting = Thread(target=window.wait, daemon=True)
    waiting.start()
    waiting.join(seconds)
    return not waiting.is_alive()


def test_a_window_of_time_is_over_with_it_whoever_comes_and_goes() -> None:
    short, long = Window(0.0), Window(60.0)
    for each in (short, long):
        each.came("a")
        each.ended("a")
    assert over(short, 10.0) and not over(long)


def test_a_window_of_requests_is_over_with_the_first_that_came_within() -> None:
    window = Window(60.0, 2)
    window.ended("before")
    for name in "abc":
        window.came(name)
    window.ended("c")
    window.ended("b")
    assert not over(window)
    window.ended("a")
    assert over(window, 10.0)


def test_a_window_of_a_request_waits_for_one_that_has_not_come() -> None:
    window = Window(60.0, 2)
    window.came("a")
    window.ended("a")
    assert not over(window)
