"""The bundled demo model: small enough to ship, an ordinary checkpoint, and it draws what it is asked for."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnimuse import Config, DiffusionParams, ModelConfig, Omni
from omnimuse.core.config import ScheduleConfig
from omnimuse.loader.resolve import resolve
from omnimuse.media.image import read_settings
from tools.train_shapes.grade import draw_tasks, grade

MODEL = "omnimuse/shapes"
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def omni() -> Iterator[Omni]:
    with Omni(MODEL, device="cpu") as made:
        yield made


def test_it_ships_in_at_most_12_megabytes_with_what_it_was_trained_with() -> None:
    folder = resolve(MODEL).path
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 12_000_000
    training = json.loads((folder / "training.json").read_text())
    assert training["samples"] > 0


def test_it_draws_what_it_is_asked_for(omni: Omni) -> None:
    tasks = [task for task in draw_tasks(200, held_share=0.1) if len(task.scene.things) == 1][:20]

    def generate(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        results = omni.generate(prompts, [DiffusionParams(seed=seed) for seed in seeds], progress=False)
        return [result.images[0] for result in results]

    report, _ = grade(generate, tasks)
    assert report.single >= 0.8, report.failures


def test_the_reference_draws_the_same_pictures_with_it(omni: Omni) -> None:
    from diffusers import ZImagePipeline

    folder = resolve(MODEL).path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        expected = pipe(
            PROMPT, height=128, width=128, num_inference_steps=10, guidance_scale=2.0,
            generator=torch.Generator().manual_seed(3), output_type="pt", max_sequence_length=128,
        ).images[0]  # fmt: skip
    params = DiffusionParams(seed=3, num_inference_steps=10, guidance_scale=2.0, output_type="pt")
    with Omni(MODEL, dtype="float32", device="cpu") as exact:
        found = exact.generate(PROMPT, params, progress=False)[0].output[0]
    assert float((found - expected).abs().max()) <= 1e-4


def test_four_outputs_share_their_forwards() -> None:
    schedule = ScheduleConfig(company="always")
    with Omni(MODEL, config=Config(ModelConfig(MODEL, device="cpu"), schedule=schedule)) as omni:
        forwards = omni.engine.runner.forwards
        [result] = omni.generate([PROMPT], seed=1, progress=False)
        alone = forwards.count
        [four] = omni.generate([PROMPT], seed=1, num_outputs_per_prompt=4, progress=False)
    assert forwards.count == 2 * alone
    assert len(four.images) == 4
    assert result.seeds == [1]


def test_guidance_and_negative_prompts_mean_something(omni: Omni) -> None:
    plain = DiffusionParams(seed=5, output_type="pt")
    prompts = [PROMPT, PROMPT, {"prompt": PROMPT, "negative_prompt": "a red circle"}]
    params = [plain, replace(plain, guidance_scale=0.0), plain]
    guided, free, against = (r.output[0] for r in omni.generate(prompts, params, progress=False))
    assert (guided - free).abs().mean() > 1e-3
    assert (guided - against).abs().mean() > 1e-3


def test_the_command_writes_a_picture_with_its_settings_inside(tmp_path: Path) -> None:
    file = tmp_path / "demo.png"
    command = [sys.executable, "-m", "omnimuse", "generate", PROMPT, "--seed", "7", "-o", str(file), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(file)
    settings = read_settings(file)
    assert settings["prompt"] == PROMPT
    assert settings["seed"] == 7
    assert settings["dtype"] in ("bfloat16", "float32")
    with Image.open(file) as picture:
        assert picture.size == (128, 128)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"], "nothing else is left behind"
