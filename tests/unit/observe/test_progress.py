"""Progress is counted right, shown as lines where there is no terminal and as a moving bar where there is one."""

from __future__ import annotations

import io

import pytest

from omnimuse.core.errors import CapacityError
from omnimuse.core.output import Failed, Progress
from omnimuse.observe.progress import Lines, Live, ProgressDisplay, Silent, Tracker, display, duration


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_part_done_and_the_time_left_follow_the_steps() -> None:
    clock = Clock()
    tracker = Tracker(1, clock)
    assert tracker.seconds_left is None
    tracker.see(Progress("r", 0, "encode", 1, 1))
    assert (tracker.fraction, tracker.line()) == (0.0, "encode")
    clock.now = 2.0
    tracker.see(Progress("r", 0, "denoise", 1, 4))
    assert tracker.fraction == 0.225, "what comes behind the drawing is a tenth"
    assert tracker.line() == "denoise 1/4", "what came before the first step says nothing of how long one takes"
    clock.now = 4.0
    tracker.see(Progress("r", 0, "denoise", 2, 4))
    assert tracker.line() == "denoise 2/4, 4.9 s left"


def test_a_loop_before_the_drawing_has_its_part_and_nothing_goes_back() -> None:
    tracker, seen = Tracker(1, Clock()), []
    for stage, step, steps in (
        ("read brief", 1, 1),
        *(("write prior", step, 4) for step in (1, 2, 4)),
        ("encode prompt", 1, 1),
        *(("denoise", step, 3) for step in (1, 3, 1)),  # the worker was lost, and another begins again
        ("decode", 1, 1),
    ):
        tracker.see(Progress("r", 0, stage, step, steps))
        seen.append(round(tracker.fraction, 3))
    assert seen == [0, 0.075, 0.15, 0.3, 0.3, 0.5, 0.9, 0.9, 1.0]


def test_several_outputs_and_requests_share_one_measure() -> None:
    tracker = Tracker(2, Clock())
    tracker.see(Progress("r", 0, "denoise", 4, 4))
    tracker.see(Progress("r", 1, "denoise", 2, 4))
    assert tracker.fraction == pytest.approx(0.3375)
    tracker.see(Failed("r", CapacityError("full")))
    assert tracker.fraction == 0.5
    assert "1 of 2 done" in tracker.line()


def test_a_log_gets_a_line_per_stage_and_per_quarter() -> None:
    stream = io.StringIO()
    lines = Lines(Tracker(1, Clock()), stream)
    with lines as shown:
        shown.say("loading x")
        shown(Progress("r", 0, "encode", 1, 1))
        for step in range(1, 101):
            shown(Progress("r", 0, "denoise", step, 100))
    text = stream.getvalue().splitlines()
    assert text[:2] == ["loading x", "encode"]
    assert [line.split(",")[0] for line in text[2:]] == [f"denoise {n}/100" for n in (1, 25, 50, 75, 100)]


def test_a_log_of_many_requests_tells_what_is_done_and_of_long_ones_what_goes_on() -> None:
    stream, clock = io.StringIO(), Clock()
    with Lines(Tracker(3, clock), stream) as shown:
        for request, pace in (("r", 0.1), ("s", 0.1), ("t", 4.0)):
            for step in range(1, 5):
                clock.now += pace
                shown(Progress(request, 0, "denoise", step, 4))
            shown(Failed(request, CapacityError("full")))
    told = [", ".join(line.split(", ")[:2]) for line in stream.getvalue().splitlines()]
    assert told == [
        *(f"denoise {step}/4, 0 of 3 done" for step in (1, 2, 3, 4)),
        "denoise 1/4, 1 of 3 done",
        "denoise 1/4, 2 of 3 done",
        "denoise 4/4, 2 of 3 done",
    ]


def test_a_terminal_gets_a_bar_that_goes_at_the_end() -> None:
    stream = Terminal()
    with display(1, stream) as shown:
        assert isinstance(shown, Live)
        shown.say("loading [x]")
        shown(Progress("r", 0, "denoise", 2, 4))
    assert "denoise 2/4" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_requests_that_nobody_announced_are_counted_as_they_come() -> None:
    tracker = Tracker(None, Clock())
    assert tracker.fraction == 0
    tracker.see(Progress("r", 0, "denoise", 2, 4))
    assert tracker.fraction == 0.45
    tracker.see(Progress("s", 0, "denoise", 2, 4))
    tracker.see(Failed("r", CapacityError("full")))
    assert (tracker.requests, tracker.fraction) == (2, 0.725)


def test_the_display_of_the_python_api_is_a_bar_on_a_terminal_and_silent_elsewhere() -> None:
    with ProgressDisplay(1, Terminal()) as shown:
        assert isinstance(shown, Live)
    log = io.StringIO()
    with ProgressDisplay(stream=log) as shown:
        shown(Progress("r", 0, "denoise", 2, 4))
    assert log.getvalue() == ""


def test_the_display_fits_the_stream() -> None:
    assert isinstance(display(1, io.StringIO()), Lines)
    assert type(display(1, Terminal(), quiet=True)) is Silent


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (185, "3 min 5 s")])
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
