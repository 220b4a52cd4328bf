"""Workers with the bundled model, in processes of their own: pictures, previews, retries, cancelling, ranks.

Starting one takes seconds, so one pool serves most tests; each fault has a word of the prompt that calls it. How
deaths and hangs are handled in detail is in `tests/unit/deploy/test_pool.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnimuse.core.config import Config, ModelConfig, ParallelConfig
from omnimuse.core.errors import ModelError, NumericalError, PoisonError, RequestError
from omnimuse.core.loras import Lora
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask, Request
from omnimuse.deploy.child import read_settings
from omnimuse.deploy.pool import Pool, PoolPlan
from omnimuse.deploy.process import told_of
from omnimuse.deploy.wire import Finished, Form, MadeFile, Previewed, Stepped, Update
from omnimuse.media.image import read_settings as settings_in
from omnimuse.worker.find import Found, find
from tests.processes import children

PATIENCE = 600.0  # seconds: importing torch takes long on a busy machine
FAULTS = "worker.step:2:kill,worker.step:2:kill:deadly,worker.step:2:nan:undefined,worker.step:2:oom:huge"

pytestmark = pytest.mark.timeout(900)


@dataclass
class Served:
    """One pool on one event loop, for all tests of this file, and what it drew first, by a life that died of it."""

    runner: asyncio.Runner
    found: Found
    pool: Pool
    first: list[MadeFile] = field(default_factory=list)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def ask(self, prompt: str = "a red circle", steps: int = 4, outputs: int = 1, previews: int = 0) -> Request:
        return ask(self.found, prompt, steps, outputs, previews)

    async def draw(self, request: Request, form: Form) -> list[Update]:
        return [update async for update in self.pool.run(request, form)]

    def path(self, file: MadeFile) -> Path:
        return self.pool.plan.spool / file.name


def ask(found: Found, prompt: str, steps: int = 4, outputs: int = 1, previews: int = 0) -> Request:
    params = DiffusionParams(num_inference_steps=steps, seed=7, num_outputs_per_prompt=outputs)
    return found.door.make_request(
        Ask(prompt, params, previews=previews, timeout=PATIENCE), now=time.monotonic(), fresh_seed=0
    )


def files(updates: list[Update]) -> list[MadeFile]:
    last = updates[-1]
    assert isinstance(last, Finished)
    return last.files


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A pool whose first life dies in the second step of its first request."""
    found, spool = (
        find(Config(ModelConfig("omnimuse/shapes", dtype="float32", device="cpu"))),
        tmp_path_factory.mktemp("spool"),
    )
    with asyncio.Runner() as runner:
        pool = Pool(PoolPlan(found.config, found.spec, spool, faults=FAULTS))
        runner.run(pool.start())
        try:
            made = Served(runner, found, pool)
            made.first = files(made.do(made.draw(made.ask(previews=1), Form("PNG"))))
            yield made
        finally:
            runner.run(pool.close(10.0))
    assert list(spool.glob("*.part")) == []


def test_files_of_a_server_say_which_files_and_packages_made_them_by_the_last_part_of_their_names(
    tmp_path: Path,
) -> None:
    model = ModelConfig(str(tmp_path), plugins=("/opt/my_package",), files={"transformer": "/srv/z-Q4_K_M.gguf"})
    told = {"model": tmp_path.name, "files": {"transformer": "z-Q4_K_M.gguf"}, "plugins": ["my_package"]}
    assert told_of(Config(model)) == told
    assert told_of(Config(ModelConfig("omnimuse/shapes"))) == {"model": "omnimuse/shapes"}


def test_a_picture_drawn_again_after_a_crash_is_the_same_to_the_byte(served: Served) -> None:
    async def main() -> None:
        first = served.first
        assert served.pool.status()[0].restarts == 1
        second = files(await served.draw(served.ask(previews=1), Form("PNG")))
        assert first[0].sha256 == second[0].sha256 and first[0].name != second[0].name
        assert served.pool.status()[0].restarts == 1
        assert served.pool.status()[0].memory > 2**20

    served.do(main())


def test_a_request_gives_steps_previews_timings_and_files_with_their_settings(served: Served) -> None:
    updates = served.do(served.draw(served.ask(outputs=2, previews=2), Form("PNG")))
    steps = [update.step for update in updates if isinstance(update, Stepped) and update.steps == 4]
    assert sorted(steps) == [1, 1, 2, 2, 3, 3, 4, 4]
    previews = [update for update in updates if isinstance(update, Previewed)]
    assert [(update.output, update.step) for update in previews] == [(0, 2), (1, 2)]
    with Image.open(io.BytesIO(previews[0].picture)) as small:
        assert small.format == "JPEG"
    one, two = files(updates)
    content = served.path(one).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (one.bytes, one.sha256)
    assert (one.seed, two.seed, one.width, one.height, one.frames) == (7, 8, 128, 128, 1)
    settings = settings_in(served.path(two))
    assert settings["seed"] == 8 and settings["prompt"] == "a red circle" and settings["model"] == "omnimuse/shapes"
    assert {"queue", "denoise", "encode"} <= set(updates[-1].timings)
    assert not np.array_equal(pixels(served.path(one)), pixels(served.path(two)))


def test_what_requests_are_to_wear_is_read_before_any_does(served: Served, tmp_path: Path) -> None:
    night = Lora("omnimuse/shapes/night")
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    served.do(served.pool.try_on([night]))
    with pytest.raises(RequestError, match=r"damaged.safetensors cannot be read") as refused:
        served.do(served.pool.try_on([night, Lora(str(tmp_path / "damaged.safetensors"))]))
    assert refused.value.param == "loras"


@pytest.mark.parametrize("form", [Form("JPEG"), Form("WEBP", 60), Form("JPEG", 60)], ids=str)
def test_the_form_of_a_file_is_the_one_asked_for(served: Served, form: Form) -> None:
    [file] = files(served.do(served.draw(served.ask(), form)))
    [plain] = files(served.do(served.draw(served.ask(), Form("PNG"))))
    with Image.open(served.path(file)) as image:
        assert image.format == form.format
    assert settings_in(served.path(file))["seed"] == 7
    distance = np.abs(pixels(served.path(file)).astype(float) - pixels(served.path(plain))).mean()
    assert distance < (6 if form.quality else 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_to_say_nothing_holds_no_prompt(served: Served, kind: str) -> None:
    for tell in (True, False):
        [file] = files(served.do(served.draw(served.ask("a circle in confidence"), Form(kind, tell=tell))))
        assert (b"confidence" in served.path(file).read_bytes()) is tell


def test_a_better_quality_makes_a_larger_file(served: Served) -> None:
    sizes = [files(served.do(served.draw(served.ask(), Form("JPEG", quality))))[0].bytes for quality in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


def test_a_form_that_does_not_fit_is_refused(served: Served) -> None:
    with pytest.raises(RequestError, match="PNG, JPEG, WEBP") as caught:
        served.do(served.draw(served.ask(), Form("MP4")))
    assert caught.value.param == "output_format"


def test_values_that_are_not_numbers_end_their_request_only(served: Served) -> None:
    async def main() -> None:
        drawn = [served.draw(served.ask(prompt), Form("PNG")) for prompt in ("undefined", "huge", "a red circle")]
        undefined, huge, good = await asyncio.gather(*drawn, return_exceptions=True)
        assert isinstance(undefined, NumericalError)
        assert isinstance(huge, MemoryError)
        assert isinstance(good, list) and isinstance(good[-1], Finished)
        assert served.pool.status()[0].restarts == 1

    served.do(main())


def test_a_cancelled_request_stops_within_a_step(served: Served) -> None:
    async def main() -> None:
        request = served.ask(steps=5000)
        updates = served.pool.run(request, Form("PNG"))
        async for update in updates:
            if isinstance(update, Stepped) and update.steps == 5000:
                break
        await updates.aclose()
        await served.draw(served.ask(), Form("PNG"))
        assert served.pool.status()[0].running == 0
        assert not list(served.pool.plan.spool.glob(f"*{request.id}*"))

    served.do(main())


@pytest.mark.costly(turns=3)
def test_a_request_that_kills_twice_is_not_tried_again_and_the_next_is_drawn(served: Served) -> None:
    async def main() -> None:
        with pytest.raises(PoisonError):
            await served.draw(served.ask("deadly"), Form("PNG"))
        assert files(await served.draw(served.ask(), Form("PNG")))

    before = served.pool.status()[0].restarts
    served.do(main())
    assert served.pool.status()[0].restarts == before + 2


def test_a_model_that_is_missing_is_told_before_torch_is_imported(served: Served, tmp_path: Path) -> None:
    async def main() -> None:
        config = Config(ModelConfig(str(tmp_path / "nowhere")))
        pool = Pool(PoolPlan(config, served.found.spec, tmp_path))
        await pool.start()
        try:
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(ModelError, match="nowhere"):
                    await pool.wait_ready()
            assert pool.status()[0].memory < 100 * 2**20
        finally:
            await pool.close(5.0)

    asyncio.run(main())


def test_a_worker_that_still_loads_ends_at_once_when_its_pool_closes(served: Served, tmp_path: Path) -> None:
    async def main() -> None:
        pool = Pool(PoolPlan(served.found.config, served.found.spec, tmp_path))
        await pool.start()
        async with asyncio.timeout(PATIENCE):
            while pool.status()[0].memory == 0:  # until it beats
                await asyncio.sleep(0.05)
        await pool.close(PATIENCE)
        assert pool.status()[0].pid is None and not list(tmp_path.iterdir())

    asyncio.run(main())


@pytest.mark.costly
@pytest.mark.parametrize("axis", ["cfg", "tensor"])
def test_two_ranks_draw_what_one_draws_and_are_rebuilt_when_one_is_killed(
    served: Served, tmp_path: Path, axis: str
) -> None:
    async def main() -> None:
        config = replace(served.found.config, parallel=ParallelConfig(**{axis: 2}))
        pool = Pool(PoolPlan(config, served.found.spec, tmp_path, faults="worker.step:2:hang:stuck"))
        await pool.start()
        try:
            await pool.wait_ready()
            request = ask(served.found, "a red circle", steps=40)
            updates = pool.run(request, Form("PNG"))
            await anext(updates)
            os.kill(other_rank(pool.status()[0].pid or 0), signal.SIGKILL)
            [file] = files([update async for update in updates])
            assert "its rank" in pool.status()[0].reason
            alone = files(await served.draw(served.ask(steps=40), Form("PNG")))[0]
        finally:
            await pool.close(10.0)
        difference = pixels(tmp_path / file.name).astype(int) - pixels(served.path(alone))
        assert np.abs(difference).max() <= 1

    served.do(main())


def other_rank(leader: int) -> int:
    """The process beside `leader` that runs a rank, too; the pool of this file has a third."""
    return next(pid for pid in children(os.getpid(), "omnimuse.deploy.process") if pid > leader)


def test_a_worker_without_a_parent_ends(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "omnimuse.deploy.process"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        worker.stdin.write(SETTINGS % str(tmp_path).encode() + b"\n")
        worker.stdin.close()
        assert worker.wait(PATIENCE) == 1


SETTINGS = (
    b'{"config": {"model": {"model": "omnimuse/shapes"}}, "address": "ipc://%s/x.sock", "spool": ".", "name": "0-1"}'
)


def test_settings_of_a_worker_are_checked() -> None:
    assert read_settings(SETTINGS % b"x").config.model.model == "omnimuse/shapes"
    with pytest.raises(ValueError, match="unknown field"):
        read_settings(b'{"extra": 1, ' + SETTINGS % b"x".lstrip(b"{"))
