"""What is seen in a notebook while pictures are drawn: a bar, and the latest look at what is being made.

`observe/progress.py` chooses this where the program runs in one. IPython is never imported here: where it is not there
already, this is no notebook. What writes into the notebook is passed in, and so is the clock.
"""

from __future__ import annotations

import io
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from omnimuse.core.output import Event, Preview

if TYPE_CHECKING:
    from omnimuse.observe.progress import Tracker

PERIOD = 0.15
"""Seconds between two changes of the page: a notebook in a browser takes no more."""
PREVIEWS = 2
"""Every how many steps there is a look."""
WIDTH = 256

Show = Callable[[str], None]
"""Puts HTML where the last one was."""


def notebook() -> Show | None:
    """What shows HTML in the notebook that this program runs in; None where it runs in none."""
    library: Any = sys.modules.get("IPython")
    shell = library.get_ipython() if library is not None else None
    if shell is None or "IPKernelApp" not in shell.config:
        return None
    from importlib import import_module

    display = import_module("IPython.display")
    place: list[Any] = []

    def show(page: str) -> None:
        if place:
            place[0].update(display.HTML(page))
        else:
            place.append(display.display(display.HTML(page), display_id=True))

    return show


class Notebook:
    """A bar and a picture that change, and go when the work is done: then the results themselves are shown."""

    def __init__(self, tracker: Tracker, show: Show, clock: Callable[[], float] = time.monotonic) -> None:
        self.tracker = tracker
        self._show, self._clock = show, clock
        self._look = ""
        self._shown = -PERIOD

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("")

    def say(self, text: str) -> None:
        """One line, until the next event."""
        self._show(f"<p>{escape(text)}</p>")

    def __call__(self, event: Event) -> None:
        self.tracker.see(event)
        if isinstance(event, Preview):
            self._look = _as_html(event.image)
        if self._clock() - self._shown < PERIOD:
            return
        self._shown = self._clock()
        bar = f'<progress max="1" value="{self.tracker.fraction:.3f}" style="width: {WIDTH}px"></progress>'
        self._show(f"{self._look}<div>{bar} {escape(self.tracker.line())}</div>")


def _as_html(pixels: Any) -> str:
    """uint8 [H, W, 3] -> an image of the page."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return f'<img width="{WIDTH}" src="data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}">'
