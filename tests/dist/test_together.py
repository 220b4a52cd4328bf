"""A step cache, an adapter, packed weights and two ranks in one request, by every way in: the right picture."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from omnimuse.loader.resolve import resolve
from tests.server.whole_server import WholeServer
from tools.train_shapes.data import Scene, Thing
from tools.train_shapes.grade import Task, judge_task
from tools.train_shapes.lora import night

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(300)]

MODEL = "omnimuse/shapes"
SCRIPT = f"""
import sys
from omnimuse import Omni, ParallelConfig

with Omni("{MODEL}", quantize="int8", parallel=ParallelConfig(cfg=2)) as omni:
    asked = dict(seed=int(sys.argv[2]), num_inference_steps=20, guidance_scale=3.0, progress=False)
    asked |= dict(cache="careful", loras=["{MODEL}/night"])
    omni.generate(sys.argv[1], **asked)[0].images[0].save(sys.argv[3])
"""
STAR, SQUARE = Thing("star", "green", 32, 64, 25), Thing("square", "blue", 96, 80, 22)
CIRCLE, TRIANGLE = Thing("circle", "red", 64, 64, 25), Thing("triangle", "yellow", 64, 32, 22)
TASKS = (
    Task("a green star to the left of a blue square", Scene(("white",), (STAR, SQUARE), "left of"), True, False, 7),
    Task("a red circle", Scene(("white",), (CIRCLE,)), True, False, 3),
    Task("a yellow triangle above a green star", Scene(("white",), (TRIANGLE, STAR), "above"), True, False, 5),
)


def by_command(task: Task, folder: Path) -> Image.Image:
    """From the command line."""
    worn = ["--steps", "20", "--guidance", "3", "--cache", "careful", "--lora", f"{MODEL}/night"]
    engine = ["--quantize", "int8", "--cfg-parallel-size", "2"]
    asked = [task.prompt, "--seed", str(task.seed), *worn, *engine, "--quiet", "-o", str(folder / "command.png")]
    subprocess.run([sys.executable, "-m", "omnimuse", "generate", *asked], capture_output=True, text=True, check=True)
    return Image.open(folder / "command.png").convert("RGB")


def by_script(task: Task, folder: Path) -> Image.Image:
    """From a Python program, which starts the other rank by itself."""
    asked = [task.prompt, str(task.seed), str(folder / "script.png")]
    subprocess.run([sys.executable, "-c", SCRIPT, *asked], capture_output=True, text=True, check=True)
    return Image.open(folder / "script.png").convert("RGB")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    """Whose workers are groups of two, which share work along an axis; they may still be starting."""
    loras = ["--lora-dir", str(resolve(MODEL).path / "loras")]
    options = ("--quantize", "int8", f"--{request.param}-parallel-size", "2", *loras)
    with WholeServer(tmp_path_factory.mktemp(request.param), MODEL, *options) as server:
        yield server


def by_server(task: Task, server: WholeServer, cache: str = "careful") -> Image.Image:
    """Over HTTP."""
    asked = {"num_inference_steps": 20, "guidance_scale": 3, "cache": cache, "lora": "night"}
    answer = server.draw(prompt=task.prompt, seed=task.seed, **asked)
    assert answer.status == 200, answer.content
    return Image.open(io.BytesIO(base64.b64decode(answer.json["data"][0]["b64_json"]))).convert("RGB")


def shown(axis: str) -> pytest.MarkDecorator:
    return pytest.mark.shows("LoRA", "int8", "TeaCache", axis, families=["ZImagePipeline"])


@pytest.mark.parametrize("server", ["cfg"], indirect=True)
def test_every_way_in_draws_the_same_picture(server: WholeServer, tmp_path: Path) -> None:
    """All at a time: each is a start."""
    with ThreadPoolExecutor() as beside:
        others = [beside.submit(draw, TASKS[0], tmp_path) for draw in (by_command, by_script)]
        server.wait_ready()
        expected = by_server(TASKS[0], server)
        for draw, other in zip((by_command, by_script), others, strict=True):
            assert other.result().tobytes() == expected.tobytes(), draw.__doc__


@pytest.mark.costly("two ranks of a server", turns=3)
@pytest.mark.parametrize(
    "server",
    [
        pytest.param("cfg", marks=shown("cfg")),
        pytest.param("tensor", marks=[shown("tensor"), pytest.mark.costly]),
    ],
    indirect=True,
)
def test_a_cache_an_adapter_packed_weights_and_two_ranks_draw_the_right_pictures_together(server: WholeServer) -> None:
    server.wait_ready()
    exact, *pictures = by_server(TASKS[0], server, "none"), *(by_server(task, server) for task in TASKS)
    assert pictures[0].tobytes() != exact.tobytes(), "steps are skipped"
    for task, picture in zip(TASKS, pictures, strict=True):
        seen = judge_task(picture, replace(task, scene=night(task.scene))).aspects
        assert all(seen.values()), (task.prompt, seen)
        assert not judge_task(picture, task).aspects["background"], "without the adapter it is white"
