"""The unfinished picture that `omnimuse generate --preview` keeps beside the output while it is being drawn."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from omnimuse.core.output import Done, Event, Failed, Preview


class PreviewFile:
    """Writes the previews of one output at a time to `path` (nowhere if None), and removes the file at the end.

    The output that is seen first is followed until its request ends, then the next one.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._followed: tuple[str, int] | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Done | Failed) and self._followed is not None and self._followed[0] == event.request_id:
            self._followed = None
        if not isinstance(event, Preview) or self.path is None:
            return
        key = (event.request_id, event.output)
        self._followed = self._followed or key
        if key == self._followed:
            from omnimuse.media.destination import write_whole
            from omnimuse.media.image import encode_image, from_pixels

            write_whole(self.path, encode_image(from_pixels(event.image), "PNG", {"preview of step": event.step}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
