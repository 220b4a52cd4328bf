"""Finished pictures as the answer itself: one as it is, several in a ZIP. Read and sent a piece at a time."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, cast

from omnimuse.deploy.wire import MadeFile
from omnimuse.server.http.download import MEDIA, Sent
from omnimuse.server.jobs.files import Files


async def picture_file(
    files: Files, made: Sequence[MadeFile], opened: Sequence[BinaryIO], headers: Mapping[str, str]
) -> Sent:
    """The answer that is the pictures `made`, whose files are `opened`; they are closed when it has been sent."""
    suffix = made[0].name.rpartition(".")[2]
    if len(made) == 1:
        [file], size, kind, name = opened, made[0].bytes, MEDIA[suffix], f"picture-{made[0].seed}.{suffix}"
    else:
        file, size = await asyncio.to_thread(_zipped, files.spool, made, opened)
        kind, name = "application/zip", "pictures.zip"
    told = {"content-type": kind, "content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
    return Sent(file, size, 200, {**headers, **told})


def _zipped(folder: Path, made: Sequence[MadeFile], opened: Sequence[BinaryIO]) -> tuple[BinaryIO, int]:
    """A ZIP, on the disk of `folder` and without a name there, and its bytes. Pictures are compressed already."""
    with ExitStack() as closing:
        for file in opened:
            closing.enter_context(file)
        made_of = closing.enter_context(ExitStack())
        whole = cast(BinaryIO, made_of.enter_context(tempfile.TemporaryFile(dir=folder)))
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
            for number, (one, file) in enumerate(zip(made, opened, strict=True), start=1):
                name = f"picture-{number}-seed-{one.seed}.{one.name.rpartition('.')[2]}"
                with archive.open(zipfile.ZipInfo(name), "w") as place:
                    shutil.copyfileobj(file, place)
        size = whole.seek(0, 2)
        whole.seek(0)
        made_of.pop_all()
        return whole, size
