"""A checkpoint is recognised wherever it lies and whatever it is called, and gets the defaults that it was made for."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

import omnimuse
from omnimuse.core.config import Config, ModelConfig
from omnimuse.core.errors import ConfigError, ModelError
from omnimuse.core.params import DiffusionParams
from omnimuse.worker.find import Found, find
from tests.checkpoints import flux, wan, z_image
from tools.train_shapes import film
from tools.train_shapes.captions import caption
from tools.train_shapes.data import draw_scene

BUNDLED = Path(omnimuse.__file__).parent / "bundled/shapes"
SHA = "0123456789abcdef0123456789abcdef01234567"
CACHED = f"models--Tongyi-MAI--Z-Image-Turbo/snapshots/{SHA}"


def found(model: Path | str, defaults_of: str = "") -> Found:
    return find(Config(ModelConfig(str(model), defaults_of=defaults_of)))


def steps(model: Path | str, defaults_of: str = "") -> tuple[int | None, float | None]:
    defaults = found(model, defaults_of).door.defaults
    return defaults.num_inference_steps, defaults.guidance_scale


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says nothing of itself: neither its name nor its scheduler tells it from others."""
    return z_image.build(tmp_path_factory.mktemp("plain") / "some-model", scheduler_config={"shift": 4.5})


def _copy(plain: Path, folder: Path) -> Path:
    return Path(shutil.copytree(plain, folder))


def _linked(plain: Path, folder: Path) -> Path:
    (folder / "mine").symlink_to(_copy(plain, folder / CACHED))
    return folder / "mine"


def _renamed(plain: Path, folder: Path) -> Path:
    config = _copy(plain, folder / "x") / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "Tongyi-MAI/Z-Image-Turbo"}))
    return folder / "x"


def _shifted(plain: Path, folder: Path) -> Path:
    config = _copy(plain, folder / "x") / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "shift": 3.0}))
    return folder / "x"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda plain, folder: _copy(plain, folder / CACHED), "it lies so in a cache of the hub"),
        (_linked, "it lies so in a cache of the hub"),
        (lambda plain, folder: _copy(plain, folder / "z-image-turbo"), "its folder is called so"),
        (_renamed, "_name_or_path in transformer/config.json says so"),
        (_shifted, "its scheduler has shift=3"),
    ],
)
def test_a_distilled_checkpoint_is_recognised(
    plain: Path, tmp_path: Path, make: Callable[[Path, Path], Path], why: str
) -> None:
    folder = make(plain, tmp_path)
    model = found(folder)
    assert model.recognised.why.startswith(why)
    assert model.recognised.sure
    assert steps(folder) == (9, 0.0)
    with chdir(folder):
        assert steps(".") == (9, 0.0)


def test_one_that_says_nothing_gets_its_family_s_defaults_and_people_are_told_how_to_choose(plain: Path) -> None:
    model = found(plain)
    assert not model.recognised.sure
    assert steps(plain) == (50, 5.0)
    assert model.about_defaults == (
        "defaults of z_image (steps 50, guidance 5, 1024x1024): nothing says which of Z-Image, Z-Image-Turbo or others "
        "it is; --defaults-of NAME takes those of another one"
    )
    for name in ("Z-Image-Turbo", "z-image-turbo", "Tongyi-MAI/Z-Image-Turbo"):
        assert steps(plain, name) == (9, 0.0)
    with pytest.raises(
        ConfigError, match=r"--defaults-of Turbo is no checkpoint of the family of .*use one of Z-Image"
    ):
        find(Config(ModelConfig(str(plain), defaults_of="Turbo")))


def test_a_copy_of_the_demo_model_has_the_demo_s_defaults_whatever_it_is_called(tmp_path: Path) -> None:
    folder = _copy(BUNDLED, tmp_path / "mine")
    assert found(folder).door.defaults == found("omnimuse/shapes").door.defaults
    assert found(folder).door.defaults == DiffusionParams(
        num_inference_steps=10, guidance_scale=3.0, height=128, width=128, max_sequence_length=128,
        num_outputs_per_prompt=1, strength=0.6, output_type="pil",
    )  # fmt: skip
    assert "training.json in its folder says so" in found(folder).about_defaults


def test_a_training_json_of_somebody_else_says_nothing(plain: Path, tmp_path: Path) -> None:
    folder = _copy(plain, tmp_path / "x")
    (folder / "training.json").write_text(json.dumps({"defaults": {"learning_rate": 0.1}, "loss": [3, 2]}))
    assert found(folder).taught is None
    assert steps(folder) == (50, 5.0)


def test_networks_tell_checkpoints_of_a_family_apart(tmp_path: Path) -> None:
    assert steps(flux.build(tmp_path / "s", schnell=True)) == (4, 0.0)
    assert steps(flux.build(tmp_path / "d")) == (28, 3.5)
    assert found(wan.build(tmp_path / "a", "A14B")).recognised.why.startswith("it has two experts")
    assert found(wan.build(tmp_path / "b", "5B")).door.defaults.fps == 24.0
    assert found(wan.build(tmp_path / "c", "2.1")).recognised.variant.name == "Wan2.1-T2V"


def test_a_prompt_without_a_word_of_the_model_and_a_size_it_never_saw_are_doubted() -> None:
    taught = found("omnimuse/shapes").taught
    assert taught is not None
    for prompt in ("a red circle", "RINGS!", "two crosses on pink"):
        assert taught.doubts(prompt, DiffusionParams(width=128, height=128)) == []
    [words] = taught.doubts("a cat in the rain", DiffusionParams())
    assert words.startswith("the prompt has none of the words that this model knows; it draws shapes: circle, square")
    assert taught.doubts("A cirle, two sqaures and a red ring", DiffusionParams()) == [
        "this model does not know the word 'cirle'; did you mean 'circle'?",
        "this model does not know the word 'sqaures'; did you mean 'squares'?",
    ]
    [size] = taught.doubts("a star", DiffusionParams(width=256))
    assert size == "this model learned from pictures of 128x128 only; at other sizes it draws badly"


def test_no_word_that_a_demo_model_was_taught_is_taken_for_another_misspelt() -> None:
    rng = random.Random(7)
    still, moving = found("omnimuse/shapes").taught, found("omnimuse/shapes-film").taught
    assert still is not None and moving is not None
    for _ in range(300):
        assert still.doubts(caption(draw_scene(rng), rng), DiffusionParams()) == []
        assert moving.doubts(film.caption(film.draw_film(rng), rng), DiffusionParams()) == []


@pytest.mark.parametrize("kind", ["ZImageImg2ImgPipeline", "ZImageInpaintPipeline"])
def test_a_folder_that_another_pipeline_of_the_family_saved_is_the_same_model(
    plain: Path, tmp_path: Path, kind: str
) -> None:
    folder = _copy(plain, tmp_path / "x")
    content = json.loads((folder / "model_index.json").read_text())
    extra = {"image_encoder": ["transformers", "CLIPVisionModel"], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps({**content, "_class_name": kind, **extra}))
    model = found(folder)
    assert model.spec is found(plain).spec
    assert model.checkpoint.configs == found(plain).checkpoint.configs


def test_a_component_that_the_family_does_not_use_need_not_be_there_and_one_it_uses_must(
    plain: Path, tmp_path: Path
) -> None:
    folder = _copy(plain, tmp_path / "x")
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match=r"names component 'vae', but .* does not exist"):
        found(folder)
