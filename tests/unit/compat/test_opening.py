"""A file of weights is a model: it is told by names and shapes what it is, once, and the rest comes from the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from omnimuse.cli import main
from omnimuse.compat.opening import PLACE, Job, filled, is_file, make, opened
from omnimuse.compat.single_file import convert, kind_of
from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.headers import stored_in
from omnimuse.loader.resolve import Folder
from tests.checkpoints import gguf_file, llama_cpp, qwen3, z_image
from tests.checkpoints.adapters import write
from tests.checkpoints.packed import as_floats
from tests.checkpoints.single_file import merged, weights

SMALL = ("--steps", "2", "--guidance", "2", "--size", "32x32", "--seed", "3", "--dtype", "float32", "--quiet")


def hub(home: Path, repo: str, seed: int) -> Path:
    """A cache of the hub in which `repo` is a tiny checkpoint; returns that."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    return z_image.build(place / "snapshots" / ("0" * 40), seed=seed)


def generate(home: Path, model: Path, picture: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`omnimuse generate` in a process that knows no other hub than the cache in `home`."""
    words = ["-m", "omnimuse", "generate", "a red circle", "-m", str(model), *SMALL, *more, "-o", str(picture)]
    return python(home, *words)


def python(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process that knows no other hub."""
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.costly
@pytest.mark.timeout(600)
def test_a_file_is_drawn_with_as_the_checkpoint_it_is_told_to_be_of_and_converted_once(
    z_image_folder: Path, tmp_path: Path
) -> None:
    like = hub(tmp_path, "Tongyi-MAI/Z-Image-Turbo", seed=5)
    file = tmp_path / "mine.safetensors"
    save_file({f"model.diffusion_model.{k}": v for k, v in weights(z_image_folder / "transformer").items()}, file)
    convert(file, Checkpoint(like), tmp_path / "by hand")
    words = ["generate", "a red circle", "-m", str(tmp_path / "by hand"), *SMALL, "-o", str(tmp_path / "expected.png")]
    assert main(words) == 0, "a folder asks no hub, and can be drawn with in this process"
    done = generate(tmp_path, file, tmp_path / "found.png")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("found", "expected")))
    [folder] = (tmp_path / PLACE).glob("models--*/*")
    before = folder.stat().st_mtime_ns
    assert opened(str(file), {}, tmp_path / PLACE).path == folder and folder.stat().st_mtime_ns == before
    assert folder.parent.name == "models--Tongyi-MAI--Z-Image-Turbo", "so its defaults are those of that checkpoint"
    assert (folder / "text_encoder").is_symlink() and not (folder / "transformer").is_symlink()


DRAW = """
import sys
from omnimuse import Omni

model, transformer, encoder, picture = sys.argv[1:]
with Omni(model, files={"transformer": transformer, "text_encoder": encoder}, dtype="float32") as omni:
    how = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 32, "width": 32, "seed": 3}
    omni.generate("a red circle", progress=False, **how)[0].images[0].save(picture)
"""


@pytest.mark.costly
@pytest.mark.timeout(600)
def test_a_model_whose_network_and_encoder_are_files_draws_what_these_stand_for(
    z_image_folder: Path, tmp_path: Path
) -> None:
    network = gguf_file.write(tmp_path / "z.gguf", weights(z_image_folder / "transformer"), gguf_file.usual)
    encoder = llama_cpp.write(tmp_path / "Qwen3.gguf", z_image_folder / "text_encoder")
    floats = {
        "transformer": gguf_file.exact(network),
        "text_encoder": llama_cpp.stands_for(encoder, z_image_folder / "text_encoder"),
    }
    as_floats(z_image_folder, floats, tmp_path / "floats")
    assert (
        main(["generate", "a red circle", "-m", str(tmp_path / "floats"), *SMALL, "-o", str(tmp_path / "a.png")]) == 0
    )
    files = (f"--component=transformer={network}", f"--component=text_encoder={encoder}")
    done = generate(tmp_path, z_image_folder, tmp_path / "b.png", *files)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / PLACE).glob("models--*/*"))
    assert len(made) == 2
    done = python(tmp_path, "-c", DRAW, *map(str, (z_image_folder, network, encoder, tmp_path / "c.png")))
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / PLACE).glob("models--*/*")) == made, "they are converted once"
    expected, told, called = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in "abc")
    assert np.array_equal(told, called) and np.abs(told - expected).max() <= 1
    [last] = [each for each in made if each.name.startswith("Qwen3-")]
    stored = stored_in(last / "text_encoder")
    assert {stored[f"layers.0.self_attn.{part}_proj.weight"].kind for part in "qkvo"} == {"Q4_0"}

    with pytest.raises(ModelError, match=r"text_encoder=nothing.gguf: there is no such file"):
        filled(Folder("z", z_image_folder, "local"), "text_encoder", "nothing.gguf", {})
    with pytest.raises(ModelError, match=r"cannot become a Qwen3ForCausalLM: what writes or speaks"):
        make(Job(encoder, "model", qwen3.build(tmp_path / "writer")), tmp_path / PLACE, {})
    done = generate(tmp_path, z_image_folder, tmp_path / "d.png", f"--component=text_encoder={network}")
    assert done.returncode and "text_encoder=" in done.stderr and not (tmp_path / "d.png").exists()


@pytest.mark.costly
@pytest.mark.timeout(600)
def test_a_component_from_a_file_is_compared_with_itself(z_image_folder: Path, tmp_path: Path) -> None:
    other, file = z_image.build(tmp_path / "other", seed=5), tmp_path / "other.safetensors"
    save_file(weights(other / "transformer"), file)
    words = ("parity", str(z_image_folder), f"--component=transformer={file}", "--steps=2", "--size=32x32")
    done = python(tmp_path, "-m", "omnimuse", *words)
    assert done.returncode == 0 and "agrees with diffusers in every part" in done.stdout, done.stdout + done.stderr
    packed = gguf_file.write(tmp_path / "z.gguf", weights(other / "transformer"), gguf_file.usual)
    done = python(tmp_path, "-m", "omnimuse", *words[:2], f"--component=transformer={packed}", *words[3:])
    assert done.returncode == 2 and f"the files of {z_image_folder} and {packed} are packed" in done.stderr


@pytest.mark.costly
def test_what_a_file_lacks_or_has_too_much_is_logged_when_it_is_opened(
    z_image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = z_image_folder / "text_encoder"
    config = llama_cpp.text_config(source)
    tensors = {**llama_cpp.named(weights(source), config), "output.weight": torch.zeros(40, 64)}
    kind, facts = llama_cpp.architecture(source), llama_cpp.facts(config)
    file = gguf_file.write(tmp_path / "a.gguf", tensors, gguf_file.usual, kind, facts)
    filled(Folder("z", z_image_folder, "local"), "text_encoder", str(file), {}, tmp_path / "cache")
    [record] = caplog.records
    said = "text_encoder: output.weight of a.gguf left out: nothing that reads needs it"
    assert record.getMessage() == f"text_encoder={file}: {said}" and record.name == "omnimuse.compat.opening"


def test_a_folder_that_has_changed_is_another_one_and_a_name_may_have_brackets(
    z_image_folder: Path, tmp_path: Path
) -> None:
    folder, cache = Path(shutil.copytree(z_image_folder, tmp_path / "model")), tmp_path / "cache"
    file = llama_cpp.write(tmp_path / "Qwen3 [Q4].gguf", folder / "text_encoder")

    def made() -> Path:
        make(Job(file, "text_encoder", folder), cache, {})
        return filled(Folder("z", folder, "local"), "text_encoder", str(file), {}, cache).path

    first, config = made(), folder / "text_encoder" / "config.json"
    assert first.parent == cache / "models--model" and made() == first
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": "new"}))
    again = made()
    assert again != first and json.loads((again / "text_encoder" / "config.json").read_text())["note"] == "new"


def test_what_a_file_is_of_is_told_by_its_names_and_shapes(
    z_image_folder: Path, foreign_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(weights(z_image_folder / "transformer"), file)
    assert kind_of(file) == "Tongyi-MAI/Z-Image-Turbo"
    fill = {"double_blocks.0.img_attn.norm.key_norm.scale": 4, "guidance_in.in_layer.bias": 4}
    save_file({**{k: torch.zeros(n) for k, n in fill.items()}, "img_in.weight": torch.zeros(2, 384)}, file)
    assert kind_of(file) == "black-forest-labs/FLUX.1-Fill-dev"
    save_file(merged(foreign_folder("StableDiffusionPipeline")), file)
    with pytest.raises(ModelError, match=r"do not tell of which model .* `omnimuse convert a.safetensors --like MODEL"):
        kind_of(file)


@pytest.mark.costly
def test_a_file_whose_likeness_cannot_be_had_is_told_to_be_converted_like_another(
    z_image_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    save_file(weights(z_image_folder / "transformer"), file)
    for done in (
        generate(tmp_path, file, tmp_path / "x.png"),
        python(tmp_path, "-m", "omnimuse", "convert", str(file), "-o", str(tmp_path / "made")),
    ):
        assert done.returncode == 2 and "like Tongyi-MAI/Z-Image-Turbo, which would give the rest" in done.stderr
        assert "`omnimuse convert a.safetensors --like MODEL -o FOLDER`" in done.stderr
    assert not (tmp_path / "made").exists()


def test_an_adapter_is_told_to_be_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is an adapter and no model; .* --lora"):
        kind_of(write(tmp_path / "a.safetensors", {"blocks.0.to_q": (4, 4)}))


def test_a_language_model_in_the_names_of_llama_cpp_is_no_model_to_draw_with(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": torch.zeros(8, 32), "blk.0.attn_q.weight": torch.zeros(32, 32)}
    file = gguf_file.write(tmp_path / "a.gguf", tensors, gguf_file.usual)
    with pytest.raises(ModelError, match=r"names of llama.cpp, .* `-m MODEL --component text_encoder=FILE`"):
        kind_of(file)


def test_a_text_encoder_of_an_architecture_that_is_not_read_is_refused_with_those_that_are(
    z_image_folder: Path, tmp_path: Path
) -> None:
    tensors = {"token_embd.weight": torch.zeros(8, 32), "enc.blk.0.attn_q.weight": torch.zeros(32, 32)}
    file = gguf_file.write(tmp_path / "t5.gguf", tensors, gguf_file.usual)
    with pytest.raises(ModelError, match=r"architecture 'tiny'; read are text encoders of t5, .* text_encoder=int4"):
        convert(file, Checkpoint(z_image_folder), tmp_path / "made", "text_encoder")
    assert not (tmp_path / "made").exists()


@pytest.mark.costly
@pytest.mark.timeout(240)
def test_a_file_that_tells_nothing_is_refused_with_what_to_do_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a.b": torch.zeros(1)}, file)
    assert is_file(str(file)) and not is_file(str(tmp_path)) and not is_file(f"{tmp_path}/b.safetensors")
    with pytest.raises(ModelError, match=r"names such as a.b do not tell of which model this is the network"):
        opened(str(file), {}, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("models--*"))
    file.write_bytes(b"not a header")
    with pytest.raises(ModelError, match="cannot be read"):
        make(Job(file), tmp_path / "cache", {})  # as the process does that `opened` starts
