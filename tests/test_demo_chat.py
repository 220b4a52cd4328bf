"""The bundled demo model that talks and draws: small enough to ship, and it asks for pictures of what is wished for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from omnimuse import Omni
from omnimuse.loader.resolve import list_local, resolve
from tests.checkpoints.qwen3 import generated
from tools.train_shapes.chat_grade import HELD_SHARE, Answered, answered, grade, main
from tools.train_shapes.talk import Talk, held_talks

MODEL, PICTURES = "omnimuse/shapes-chat", "omnimuse/shapes"
pytestmark = pytest.mark.skipif(
    MODEL not in [folder.id for folder in list_local()], reason="it is not bundled: tools/train_shapes/README.md"
)
SAID = [{"role": "user", "content": "draw me a red circle"}]


@pytest.fixture(scope="module")
def omni() -> Iterator[Omni]:
    with Omni(MODEL, dtype="float32", device="cpu") as made:
        yield made


def test_it_ships_in_at_most_6_megabytes_beside_the_model_that_draws() -> None:
    folder = resolve(MODEL).path
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= 6_000_000
    assert json.loads((folder / "training.json").read_text())["texts"] > 0


@pytest.mark.costly("the demo model that talks", turns=3)
def test_it_asks_for_what_is_wished_for_and_shows_it(omni: Omni) -> None:
    def answer(talks: Sequence[Talk]) -> list[Answered]:
        return answered(omni, talks)

    report = grade(answer, list(held_talks(12, HELD_SHARE)))
    assert report.right >= 0.8, report.failures
    assert report.shown >= 0.7, report.failures


@pytest.mark.costly("the demo model that talks", turns=3)
def test_its_grader_asks_a_packed_one_that_asks_for_what_is_wished_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report, asked = tmp_path / "report.json", [MODEL, "--quantize", "int8", "--count", "6"]
    monkeypatch.setattr("sys.argv", ["chat_grade", *asked, "--json", str(report)])
    packed = list[str]()
    monkeypatch.setattr("omnimuse.Omni", lambda model, **how: packed.append(how["quantize"]) or Omni(model, **how))
    assert main() == 0
    told = json.loads(report.read_text(encoding="utf-8"))
    assert (packed, told["count"]) == (["int8"], 6)
    assert told["right"] >= 0.8 and told["shown"] >= 0.6, told["failures"]


@pytest.mark.costly("the demo model that talks", turns=3)
def test_its_picture_is_that_of_the_demo_model_and_its_words_those_of_transformers(omni: Omni, tmp_path: Path) -> None:
    [result] = omni.generate([SAID], seed=3, output_type="pt", progress=False)
    folder, together = resolve(MODEL).path, tmp_path / "writer"
    together.mkdir()
    for part in ("words", "model"):
        for file in (folder / part).iterdir():
            (together / file.name).write_bytes(file.read_bytes())
    assert list(result.written[0].tokens) == generated(together, SAID, 3, {"temperature": 0, "max_tokens": 60})
    with Omni(PICTURES, dtype="float32", device="cpu") as alone:
        [expected] = alone.generate("a red circle", seed=3, output_type="pt", progress=False)
    assert torch.equal(result.tensors["image"], expected.output)


@pytest.mark.costly("the demo model that talks", turns=3)
def test_a_greeting_has_no_picture(omni: Omni) -> None:
    [result] = omni.generate([[{"role": "user", "content": "hello"}]], seed=3, progress=False)
    assert result.text and not result.images


@pytest.mark.costly("the demo model that talks", turns=3)
def test_the_command_talks_and_keeps_the_picture(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "omnimuse", "chat", MODEL, "--seed", "7", "-o", str(tmp_path / "circle.png")]
    done = subprocess.run(command, input="draw me a red circle\n", capture_output=True, text=True, check=True)
    assert "a red circle" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == f"[{tmp_path / 'circle.png'}  128x128, seed 7]"
    with Image.open(tmp_path / "circle.png") as picture:
        assert picture.size == (128, 128)
