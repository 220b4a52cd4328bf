"""The bundled demo model of videos: small enough to ship, an ordinary checkpoint, and it draws what it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch

from omnimuse import Config, DiffusionParams, ModelConfig, Omni
from omnimuse.loader.components import quiet
from omnimuse.loader.resolve import resolve
from omnimuse.media.video import read_settings
from omnimuse.worker.find import find
from tests.checkpoints import wan
from tests.checkpoints.wishes import Wish
from tools.train_shapes.film import FRAMES, SIDE
from tools.train_shapes.film_grade import Frames, draw_film_tasks, grade

pytestmark = pytest.mark.costly("the demo model of videos", turns=3)

MODEL = "omnimuse/shapes-film"
PROMPT = "a red circle moves to the right"


@pytest.fixture(scope="module")
def omni() -> Iterator[Omni]:
    with Omni(MODEL, dtype="float32", device="cpu") as made:
        yield made


def test_it_ships_in_at_most_8_megabytes_with_what_it_was_trained_with() -> None:
    folder = resolve(MODEL).path
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 8_000_000
    assert json.loads((folder / "training.json").read_text())["samples"] > 0


def test_it_draws_what_it_is_asked_for(omni: Omni) -> None:
    def generate(prompts: list[str], seeds: list[int]) -> list[Frames]:
        results = omni.generate(prompts, [DiffusionParams(seed=seed) for seed in seeds], progress=False)
        return [result.videos[0].frames for result in results]

    report, _ = grade(generate, draw_film_tasks(12))
    assert report.right >= 0.6, report.failures


def test_the_reference_draws_the_same_videos_with_it(omni: Omni) -> None:
    usual = json.loads((resolve(MODEL).path / "training.json").read_text())["defaults"]
    wish = Wish(PROMPT, "", DiffusionParams(**usual, seed=3))
    with quiet("diffusers"), quiet("transformers"):
        [expected] = wan.reference(resolve(MODEL).path, [wish], "pt")
    [found] = omni.generate(PROMPT, DiffusionParams(seed=3, output_type="pt"), progress=False)
    assert found.output.shape == (1, FRAMES, 3, SIDE, SIDE)
    assert float((found.output[0] - torch.as_tensor(expected)).abs().max()) <= 1e-3


def test_other_lengths_and_prompts_that_it_does_not_know_are_told() -> None:
    found = find(Config(ModelConfig(MODEL))).taught
    assert found is not None and not found.doubts(PROMPT, DiffusionParams(num_frames=FRAMES, width=SIDE, height=SIDE))
    assert [doubt for doubt in found.doubts(PROMPT, DiffusionParams(num_frames=5)) if f"{FRAMES} frames" in doubt]
    assert [doubt for doubt in found.doubts("a fox", DiffusionParams()) if "moves to the left" in doubt]


def test_the_command_writes_a_video(tmp_path: Path) -> None:
    file = tmp_path / "film.mp4"
    command = [sys.executable, "-m", "omnimuse", "generate", "-m", MODEL, PROMPT, "-o", str(file), "--quiet"]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert read_settings(file)["prompt"] == PROMPT
    with av.open(str(file)) as container:
        shown = [frame.to_image() for frame in container.decode(video=0)]
    assert [frame.size for frame in shown] == [(SIDE, SIDE)] * FRAMES
