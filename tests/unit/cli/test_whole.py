"""The real command over a tiny random checkpoint: from prompt to file, and refusals before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from omnimuse.cli import main
from omnimuse.media.image import read_settings

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(z_image_folder: Path) -> str:
    """The tiny checkpoint as a person names it."""
    return str(z_image_folder)


def test_a_picture_can_be_made_again_from_the_settings_it_carries(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    words = ["generate", "a red circle", "-m", model, "--size", "64x32", "--steps", "2", "--dtype", "float32"]
    assert main([*words, "--negative", "blue", "-o", str(first), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    settings = read_settings(first)
    assert record["results"][0]["settings"].items() <= settings.items()
    assert (settings["width"], settings["height"]) == (64, 32)
    assert main([*words, "--negative", "blue", "-o", str(again), "--seed", str(settings["seed"])]) == 0
    with Image.open(first) as a, Image.open(again) as b:
        assert a.size == (64, 32)
        assert ImageChops.difference(a, b).getbbox() is None
    assert "denoise" in capsys.readouterr().out


def test_explain_tells_the_choices_for_a_folder(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", model, "--json"]) == 0
    topics = {choice["topic"] for choice in json.loads(capsys.readouterr().out)}
    assert {"model", "place", "attention"} <= topics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "65x64"], "width=65 is not a multiple of 16; use 64 or 80"),
        (["--steps", "0"], "num_inference_steps=0 is out of range"),
        (["--guidance", "nan"], "guidance_scale=nan is not a number"),
        (["--seed", "-1"], "seed=-1 is out of range"),
    ],
)
def test_what_the_model_would_refuse_is_refused_before_torch_is_imported(
    model: str, words: list[str], message: str
) -> None:
    line = ["generate", "a", "-m", model, *words]
    program = (
        f"import sys\nfrom omnimuse.cli import main\ncode = main({line!r})\n"
        "sys.exit(100 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
