"""Pictures from strangers: legal ones are decoded, hostile ones end their own child and nothing else."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from omnimuse.core.errors import CapacityError
from omnimuse.core.request import Picture
from omnimuse.media import sandbox as room
from omnimuse.media.picture import picture_of, pixels_of
from omnimuse.media.sandbox import PictureError, PictureLimits, Sandbox
from tests.processes import children
from tests.unit.media.hostile import BOMB, damaged, encoded, noise, png

ORIENTATION = 0x0112


def inside(work: Callable[[Sandbox], Awaitable[object]], **how: object) -> None:
    """Do `work` with a sandbox that is closed at the end."""

    async def main() -> None:
        box = Sandbox(**how)  # type: ignore[arg-type]
        try:
            await work(box)
        finally:
            await box.close()

    asyncio.run(main())


def boxes() -> set[int]:
    """The processes that this one has started and that still run."""
    return set(children(os.getpid()))


def test_pixels_survive_and_odd_modes_become_rgb() -> None:
    image = noise(50, 30)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))

    async def work(box: Sandbox) -> None:
        assert np.array_equal(pixels_of(await box.decode(encoded(image, "PNG"))), np.asarray(image))
        assert np.array_equal(pixels_of(await box.decode(encoded(image, "WEBP", lossless=True))), np.asarray(image))
        assert (pixels_of(await box.decode(encoded(clear, "PNG"))) == 255).all(), "white lies below what is clear"
        assert (pixels_of(await box.decode(encoded(deep, "PNG"))) == 128).all()
        for mode in ("P", "1", "L", "LA", "I;16"):
            file = encoded(deep if mode == "I;16" else image.convert(mode), "PNG")
            for limits in (PictureLimits(), PictureLimits(keep_pixels=40)):
                picture = await box.decode(file, limits)
                assert pixels_of(picture).shape == (picture.height, picture.width, 3)
                assert picture.width * picture.height <= limits.keep_pixels
        red = pixels_of(await box.decode(encoded(cmyk, "JPEG"))).mean(axis=(0, 1))
        assert red[0] > 200 and max(red[1:]) < 60

    inside(work)


def test_a_picture_is_turned_as_its_exif_says_and_scaled_down_in_proportion() -> None:
    image = Image.new("RGB", (400, 200), "blue")
    image.paste("red", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # what is left is to be up

    async def work(box: Sandbox) -> None:
        for kind in ("JPEG", "PNG", "WEBP"):
            for keep, size in ((10**6, (200, 400)), (5000, (50, 100))):
                picture = await box.decode(encoded(image, kind, exif=exif), PictureLimits(keep_pixels=keep))
                assert (picture.width, picture.height) == size, kind
                pixels = pixels_of(picture).astype(int)
                assert pixels[0, 0, 0] > 200 and pixels[-1, 0, 2] > 200, kind

    inside(work)


def test_the_first_frame_of_an_animation_is_the_picture() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]

    async def work(box: Sandbox) -> None:
        for kind in ("PNG", "WEBP"):
            file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
            assert pixels_of(await box.decode(file))[0, 0].tolist() == [255, 0, 0]

    inside(work)


def test_bombs_are_refused_by_their_header_and_what_is_no_picture_is_refused_at_all() -> None:
    async def work(box: Sandbox) -> None:
        for file in (BOMB, png(9000, 9000), png(20_000, 2)):
            began = time.monotonic()
            with pytest.raises(PictureError, match="64 megapixels") as caught:
                await box.decode(file)
            assert caught.value.code == "image_too_large"
            assert time.monotonic() - began < 10
        for name, file in damaged().items():
            with pytest.raises(PictureError) as caught:
                await box.decode(file)
            assert caught.value.code == "invalid_image", name
            assert "Image" not in str(caught.value) and "0x" not in str(caught.value)
        assert (await box.decode(encoded(noise(9, 7), "PNG"))).width == 9

    inside(work)


def test_what_a_picture_carries_besides_its_pixels_is_left_behind() -> None:
    secret = b"<script>alert(1)</script>PK\x03\x04"

    async def work(box: Sandbox) -> None:
        for kind in ("PNG", "JPEG"):
            picture = await box.decode(encoded(noise(16, 16), kind, comment="secret") + secret)
            assert secret not in picture.png and b"secret" not in picture.png
            assert room._size_of(picture.png) == (16, 16)

    inside(work)


SCRIPTS = {
    "hangs": "import time; time.sleep(60)",
    "kills itself": "import os, sys; sys.stdin.buffer.read(10); os.kill(os.getpid(), 9)",
    "fails": "raise SystemExit(3)",
    "says nothing": "import sys; sys.stdin.buffer.read()",
    "says something else": "import sys; sys.stdin.buffer.read(); print('ok'); print('<svg/>')",
    "never stops talking": "import sys\nwhile True: sys.stdout.buffer.write(bytes(2**20))",
    "never reads": "import sys, time; sys.stdout.close(); time.sleep(60)",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_child_that_misbehaves_is_an_unreadable_picture_and_is_gone(script: str) -> None:
    before = boxes()

    async def work(box: Sandbox) -> None:
        began = time.monotonic()
        with pytest.raises(PictureError, match="cannot be read"):
            await box.decode(encoded(noise(400, 400), "PNG"))
        assert time.monotonic() - began < 15

    inside(work, command=(sys.executable, "-c", script), seconds=1.5)
    assert boxes() <= before


def test_a_child_that_cannot_be_started_is_no_fault_of_the_picture() -> None:
    async def work(box: Sandbox) -> None:
        with pytest.raises(CapacityError):
            await box.decode(encoded(noise(4, 4), "PNG"))

    inside(work, command=("/nowhere/python",))


def test_cancelling_ends_the_child_and_too_many_pictures_are_refused() -> None:
    before = boxes()

    async def work(box: Sandbox) -> None:
        file = encoded(noise(4, 4), "PNG")
        waiting = [asyncio.create_task(box.decode(file)) for _ in range(room.WAITING)]
        await asyncio.sleep(0.5)
        assert len(boxes() - before) == 2
        with pytest.raises(CapacityError):
            await box.decode(file)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert boxes() <= before

    inside(work, command=(sys.executable, "-c", SCRIPTS["hangs"]), seconds=30)


def test_one_child_is_kept_ready_and_each_sees_one_picture() -> None:
    before = boxes()

    async def work(box: Sandbox) -> None:
        file = encoded(noise(4, 4), "PNG")
        await box.decode(file)
        [first] = boxes() - before
        await box.decode(file)
        [second] = boxes() - before
        assert first != second
        os.kill(second, 9)
        await asyncio.sleep(0.2)
        assert (await box.decode(file)).width == 4, "a spare that died is replaced"

    inside(work)
    assert boxes() <= before


CONFINED = """
import os, socket, sys
from omnimuse.media import sandbox
sandbox._confine()
sandbox._lock_in()
def fails(work, *expected):
    try:
        work()
    except expected:
        return
    raise SystemExit(f"{work} was possible")
fails(lambda: open("/etc/hostname"), OSError)
fails(lambda: socket.socket(), OSError)
fails(lambda: os.pipe(), OSError)
fails(lambda: bytearray(2**30), MemoryError)
"""


def test_a_child_that_is_ready_can_open_nothing_and_has_little_memory() -> None:
    told = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr


def test_a_child_knows_nothing_of_the_environment() -> None:
    os_environment = (
        "import os, sys; sys.exit(int(set(os.environ) - {'PYTHONPATH', 'OPENBLAS_NUM_THREADS', 'LC_ALL'} != set()))"
    )

    async def work(box: Sandbox) -> None:
        child = await box._start()
        assert await child.wait() == 0
        await room._end(child)

    inside(work, command=(sys.executable, "-c", os_environment))


def test_only_a_plain_png_is_believed() -> None:
    good = picture_of(noise(6, 5)).png
    limits = PictureLimits(keep_pixels=30)
    assert room._believed(b"ok\n" + good, limits) == Picture(6, 5, good)
    text = struct.pack(">I", 4) + b"tEXtxxxx" + struct.pack(">I", zlib.crc32(b"tEXtxxxx"))
    lies = {
        "nothing": b"",
        "no word": good,
        "another word": b"yes\n" + good,
        "a tail": b"ok\n" + good + b"x",
        "cut off": b"ok\n" + good[:-1],
        "a broken sum": b"ok\n" + good[:20] + b"\xff" + good[21:],
        "another chunk": b"ok\n" + good[:33] + text + good[33:],
        "a palette": b"ok\n" + encoded(noise(6, 5).convert("P"), "PNG"),
        "transparency": b"ok\n" + encoded(noise(6, 5).convert("RGBA"), "PNG"),
        "too many pixels": b"ok\n" + picture_of(noise(6, 6)).png,
        "no pixels": b"ok\n" + png(0, 0),
    }
    believed = []
    for name, answer in lies.items():
        with suppress(PictureError):
            room._believed(answer, limits)
            believed.append(name)
    assert not believed


def test_the_front_does_not_need_pillow_to_ask() -> None:
    script = "import sys, omnimuse.server.uploads; sys.exit(bool({'PIL', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_hostile_files_are_small() -> None:
    assert len(BOMB) < 1000
    assert all(len(file) < 10**5 for file in damaged().values())
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(BOMB))
