"""What `omnimuse serve` prints when it is ready: lines for the model that it serves, which work as pasted."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from omnimuse.server.greeting import greeting, task_of
from omnimuse.server.options import ServeOptions
from tests.server.picture_server import MODEL, picture_server
from tests.server.video_rig import MODEL as FILMS
from tests.server.video_rig import listening, rig


def lines(url: str, model: str, task: str) -> tuple[str, str]:
    """The curl line and the Python lines for a server at `url`."""
    port = int(url.rpartition(":")[2])
    text = greeting(("127.0.0.1", port), ServeOptions(Path(), model), {"dtype": "float32"}, 1.0, task)
    assert f"page    {url}/" in text
    found = re.search(r"curl    (curl.*?)\n  python  (from openai.*?)\n\n", text, re.S)
    assert found is not None
    return found[1], "\n".join(line.strip() for line in found[2].splitlines())


def paste(folder: Path, curl: str, python: str) -> None:
    """Run both where `folder` is."""
    for command in (["bash", "-ec", curl], [sys.executable, "-c", python]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["text-to-image", "image-to-image"])
def test_the_lines_of_a_model_of_pictures_draw_one(task: str, tmp_path: Path) -> None:
    if task == "image-to-image":
        Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    with picture_server(tmp_path / "data") as running:
        paste(tmp_path, *lines(running.url, MODEL, task))
        assert len(running.workers.started) == 2
        assert [bool(request.images) for request in running.workers.started] == [task == "image-to-image"] * 2
    if task == "image-to-image":
        assert json.loads((tmp_path / "answer.json").read_text())["data"]


def test_the_lines_of_a_model_of_videos_make_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path / "data") as found, listening(found.app) as url:
            await asyncio.to_thread(paste, tmp_path, *lines(url, FILMS, "text-to-video"))
            assert len(found.workers.started) == 2

    asyncio.run(main())
    assert (tmp_path / "video.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_lines_are_for_the_first_task_that_there_are_lines_for() -> None:
    assert task_of(("image-to-image", "text-to-image")) == "text-to-image"
    assert task_of(("text-to-video", "image-to-video")) == "text-to-video"
    assert task_of(("image-to-image",)) == "image-to-image"
