"""A step cache, an adapter, packed weights and two ranks in one request, by every way in: the right picture."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable
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
ENGINE = ["--quantize", "int8", "--cfg-parallel-size", "2"]
SCRIPT = f"""
import sys
from omnimuse import Omni, ParallelConfig

with Omni("{MODEL}", quantize="int8", parallel=ParallelConfig(cfg=2)) as omni:
    asked = dict(seed=int(sys.argv[2]), num_inference_steps=20, guidance_scale=3.0, progress=False)
    asked |= dict(cache="careful", loras=["{MODEL}/night"])
    omni.generate(sys.argv[1], **asked)[0].images[0].save(sys.argv[3])
"""
STAR, SQUARE = Thing("star", "green", 32, 64, 25), Thing("square", "blue", 96, 80, 22)
TASK = Task("a green star to the left of a blue square", Scene(("white",), (STAR, SQUARE), "left of"), True, False, 7)


def by_command(folder: Path) -> Image.Image:
    """From the command line."""
    worn = ["--steps", "20", "--guidance", "3", "--cache", "careful", "--lora", f"{MODEL}/night"]
    asked = [TASK.prompt, "--seed", str(TASK.seed), *worn, *ENGINE, "--quiet", "-o", str(folder / "made.png")]
    subprocess.run([sys.executable, "-m", "omnimuse", "generate", *asked], capture_output=True, text=True, check=True)
    return Image.open(folder / "made.png")


def by_script(folder: Path) -> Image.Image:
    """From a Python program, which starts the other rank by itself."""
    asked = [TASK.prompt, str(TASK.seed), str(folder / "made.png")]
    subprocess.run([sys.executable, "-c", SCRIPT, *asked], capture_output=True, text=True, check=True)
    return Image.open(folder / "made.png")


def by_server(folder: Path) -> Image.Image:
    """Over HTTP, from a server whose workers are groups of two."""
    loras = ["--lora-dir", str(resolve(MODEL).path / "loras")]
    with WholeServer(folder, MODEL, *ENGINE, *loras) as server:
        server.wait_ready()
        asked = {"num_inference_steps": 20, "guidance_scale": 3, "cache": "careful", "lora": "night"}
        answer = server.draw(prompt=TASK.prompt, seed=TASK.seed, **asked)
    assert answer.status == 200, answer.content
    return Image.open(io.BytesIO(base64.b64decode(answer.json["data"][0]["b64_json"])))


@pytest.mark.shows("LoRA", "int8", "TeaCache", "cfg", families=["ZImagePipeline"])
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(by_command, marks=pytest.mark.costly),
        pytest.param(by_script, marks=pytest.mark.costly),
        by_server,
    ],
)
def test_a_cache_an_adapter_packed_weights_and_two_ranks_draw_the_right_picture_together(
    draw: Callable[[Path], Image.Image], tmp_path: Path
) -> None:
    picture = draw(tmp_path).convert("RGB")
    seen = judge_task(picture, replace(TASK, scene=night(TASK.scene))).aspects
    assert all(seen.values()), seen
    assert not judge_task(picture, TASK).aspects["background"], "without the adapter it is white"
