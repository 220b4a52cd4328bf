"""Training of adapters for the demo models: what is learnt, what a sitting leaves for the next, what the file says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnimuse import Omni
from tools.train_shapes.data import Thing
from tools.train_shapes.film import Film, clear
from tools.train_shapes.lora import STYLES, Course, Films, LoraPlan, plan_of, shipped

SOON = float("inf")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled for so few steps."""
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)


def plan(style: str, steps: int = 2) -> LoraPlan:
    """A short one."""
    return LoraPlan(style, rank=1, steps=steps, batch=2, scenes=4)


@pytest.mark.parametrize("style", STYLES)
def test_a_shipped_adapter_is_of_its_plan_and_small(style: str) -> None:
    told = plan_of(shipped(style))
    assert told.style == style
    ranks = {len(tensor) for name, tensor in load_file(shipped(style)).items() if name.endswith("lora_A.weight")}
    assert ranks == {told.rank}
    assert shipped(style).stat().st_size <= 300_000


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("style", ["night", "dusk"])
def test_what_is_trained_is_worn_by_its_model(style: str, tmp_path: Path) -> None:
    file = tmp_path / "one.safetensors"
    assert Course(plan(style), file).sit(SOON)
    assert plan_of(file) == plan(style)
    assert any(tensor.any() for name, tensor in load_file(file).items() if name.endswith("lora_B.weight"))
    with Omni(f"omnimuse/{STYLES[style].model}", dtype="float32") as omni:
        omni.try_on([str(file)])


def test_sittings_go_on_where_the_last_one_ended(tmp_path: Path) -> None:
    first = Course(plan("night", steps=3), tmp_path / "new" / "one.safetensors")
    first.learn()
    first.leave_off()
    again = Course(plan("night", steps=3), first.file)
    again.resume()
    assert again.step == 1
    assert again.sit(SOON)
    assert not again.bench.exists()
    with pytest.raises(FileNotFoundError):
        Course(plan("night", steps=3), first.file).resume()


def test_sittings_have_one_plan(tmp_path: Path) -> None:
    first = Course(plan("night", steps=3), tmp_path / "one.safetensors")
    first.learn()
    first.leave_off()
    with pytest.raises(ValueError, match="was left with"):
        Course(plan("night", steps=4), first.file).resume()


def test_a_film_s_style_is_learnt_from_what_it_does_not_swallow() -> None:
    style = STYLES["dusk"]
    lesson = Films(plan("dusk"), style.folder, style.change)
    seen = style.change(Film("circle", "green", "stay", "white"))
    assert seen.scenes[0].background == ("blue",)
    assert isinstance(seen.scenes[0].things[0], Thing)
    assert all(clear(film.colour, "blue") for film in lesson._films)
