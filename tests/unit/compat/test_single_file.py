"""Single files of weights become folders: names of other programs, fused and 8-bit weights, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from omnimuse import DiffusionParams, Omni
from omnimuse.cli import main
from omnimuse.compat.single_file import convert
from omnimuse.compat.weights_file import read_file
from omnimuse.core.caches import Fits
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.fits import NAME, write_fits
from omnimuse.loader.headers import stored_in
from tests.checkpoints.packed import ours_of
from tests.checkpoints.single_file import Tensors, merged, wan, weights

PREFIX = "model.diffusion_model."
SMALL = DiffusionParams(num_inference_steps=2, height=32, width=32, seed=3, output_type="pt")
BACK = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}
"""The library's names of one transformer, and those that its authors and other programs use."""


def original(library: Tensors) -> Tensors:
    """The weights of a transformer as its authors name them: queries, keys and values in one matrix."""
    found: Tensors = {}
    for name, tensor in library.items():
        for theirs, ours in BACK.items():
            name = name.replace(theirs, ours)
        found[name] = tensor
    for name in [name for name in found if name.endswith(".attention.to_q.weight")]:
        stem = name.removesuffix("to_q.weight")
        found[f"{stem}qkv.weight"] = torch.cat([found.pop(f"{stem}to_{part}.weight") for part in "qkv"])
    return found


def draw(folder: Path) -> Tensor:
    with Omni(str(folder), dtype="float32", device="cpu") as omni:
        return omni.generate("a red circle", SMALL, progress=False)[0].output


@pytest.fixture(scope="module")
def other(z_image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same kind with a transformer of its own."""
    from tests.checkpoints import z_image

    return z_image.build(tmp_path_factory.mktemp("other") / "tiny", seed=5)


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["bare", "prefixed"])
def test_a_file_in_its_authors_names_draws_what_its_folder_draws_with_our_own_family(
    prefix: str, z_image_folder: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = original(weights(z_image_folder / "transformer"))
    save_file({prefix + name: tensor for name, tensor in named.items()}, tmp_path / "a.safetensors")
    words = ["convert", str(tmp_path / "a.safetensors"), "--like", str(other), "-o", str(tmp_path / "made")]
    assert main(words) == 0
    assert "transformer from a.safetensors, the rest from" in capsys.readouterr().out
    made, expected = weights(tmp_path / "made" / "transformer"), weights(z_image_folder / "transformer")
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)
    assert not torch.equal(draw(tmp_path / "made"), draw(other))


def test_what_was_measured_of_other_weights_and_what_is_in_other_files_stays_behind(
    z_image_folder: Path, other: Path, tmp_path: Path
) -> None:
    like = shutil.copytree(other, tmp_path / "like")
    write_fits(like / NAME, Fits(ratios=(1.0,), auto="none"), {})
    (like / "all.safetensors.index.json").write_text("{}")
    (like / "about.json").write_text("{}")
    save_file(weights(z_image_folder / "transformer"), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", Checkpoint(like), tmp_path / "made")
    assert {path.name for path in (tmp_path / "made").glob("*.json")} == {"about.json", "model_index.json"}


@pytest.mark.parametrize("taught", [True, False])
def test_the_new_folder_is_taken_for_what_the_other_checkpoint_is_taken_for(
    taught: bool, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    like = shutil.copytree(other, tmp_path / "Z-Image-Turbo")  # by which it is known, and its copy is called otherwise
    if taught:
        (like / "training.json").write_text(json.dumps({"defaults": {"num_inference_steps": 3}}))
    save_file(original(weights(other / "transformer")), tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.safetensors"), "--like", str(like), "-o", str(tmp_path / "made")]) == 0
    said = json.loads((tmp_path / "made" / "model_index.json").read_text()).get("_name_or_path")
    assert said == (None if taught else "Tongyi-MAI/Z-Image-Turbo")
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "made")]) == 0
    steps = next(line for line in capsys.readouterr().out.splitlines() if "num_inference_steps" in line)
    assert steps.split()[1:] == (["3", "of", "made"] if taught else ["9", "of", "Z-Image-Turbo"])


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_eight_bit_weights_stay_packed_with_their_scales_and_draw_what_they_stand_for(
    kind: torch.dtype, z_image_folder: Path, other: Path, tmp_path: Path
) -> None:
    """As ComfyUI writes them: scaled, scaled with a scale for inputs beside it, and as they are."""
    named = original(weights(z_image_folder / "transformer"))
    stems = [f"layers.0.{part}" for part in ("feed_forward.w1", "attention.qkv", "feed_forward.w2")]
    small, floats = dict(named), dict(named)
    for stem in stems:
        weight, scaled = named[f"{stem}.weight"], not stem.endswith("w2")
        scale = weight.abs().max() / 400 if scaled else torch.ones(())
        small[f"{stem}.weight"] = (weight / scale).to(kind)
        floats[f"{stem}.weight"] = small[f"{stem}.weight"].float() * scale
        if scaled:
            small |= {f"{stem}.scale_weight": scale, f"{stem}.scale_input": torch.ones(1)}
    small["scaled_fp8"] = torch.zeros(2).to(kind)
    for name, tensors in (("small", small), ("floats", floats)):
        save_file({PREFIX + key: tensor for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
        convert(tmp_path / f"{name}.safetensors", Checkpoint(other), tmp_path / name, ours=ours_of(Checkpoint(other)))
    stored = stored_in(tmp_path / "small" / "transformer")
    packed = {name: each.kind for name, each in stored.items() if each.parts}
    assert packed.keys() == {f"layers.0.attention.to_{part}.weight" for part in "qkv"} | {
        f"layers.0.feed_forward.{part}.weight" for part in ("w1", "w2")
    }
    assert set(packed.values()) == {"fp8" if kind == torch.float8_e4m3fn else "fp8-e5m2"}
    found, expected = draw(tmp_path / "small"), draw(tmp_path / "floats")
    assert float((found - expected).abs().max()) < 1e-4
    assert not torch.equal(expected, draw(other))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"a.scale_weight": torch.ones(5)},
            r"a.scale_weight is \[5\] numbers for weights of \[6, 8\], which is not read",
        ),
        ({"a.scale_weight": torch.ones(0)}, r"is \[0\] numbers"),
        ({"a.scale_weight": torch.ones(6, 2)}, r"is \[6, 2\] numbers for weights of \[6, 8\]"),
        ({"b.scale_weight": torch.tensor(2.0)}, "a scale of b.weight, which are not there in 8 bits"),
        ({"c.scale_weight": torch.tensor(2.0)}, "a scale of c.weight, which are not there in 8 bits"),
        ({"a.weight_scale": torch.tensor(2.0)}, "a scale of a.weight, of which there is another scale"),
    ],
)
def test_scales_that_do_not_belong_to_their_weights_are_refused(change: Tensors, said: str, tmp_path: Path) -> None:
    small = {"a.weight": torch.ones(6, 8).to(torch.float8_e4m3fn), "a.scale_weight": torch.full((1,), 3.0)}
    save_file({**small, "c.weight": torch.ones(6, 8), **change}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=said):
        read_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize(("kind", "code"), [(torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0xFC)])
def test_eight_bits_that_are_no_number_are_found_in_their_row(kind: torch.dtype, code: int, tmp_path: Path) -> None:
    weight = torch.ones(6, 8).to(kind).view(torch.uint8)
    weight[4, 3] = code
    save_file({"a.weight": weight.view(kind)}, tmp_path / "a.safetensors")
    [rows] = read_file(tmp_path / "a.safetensors").packed
    assert rows.scales().isfinite().flatten().tolist() == [True] * 4 + [False, True]


def test_eight_bit_weights_of_a_network_that_a_library_runs_become_bfloat16(
    z_image_folder: Path, other: Path, tmp_path: Path
) -> None:
    named = original(weights(z_image_folder / "transformer"))
    name = "layers.0.feed_forward.w1.weight"
    scale = named[name].abs().max() / 448
    small = {
        **named,
        name: (named[name] / scale).to(torch.float8_e4m3fn),
        name.replace("weight", "scale_weight"): scale,
    }
    save_file(small, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", Checkpoint(other), tmp_path / "made")
    made = weights(tmp_path / "made" / "transformer")[name]
    assert made.dtype == torch.bfloat16
    assert float((made.float() - named[name]).abs().max()) < 0.07 * float(named[name].abs().max())


def test_a_vae_alone_is_known_by_its_shapes(z_image_folder: Path, other: Path, tmp_path: Path) -> None:
    save_file(weights(other / "vae"), tmp_path / "vae.safetensors")
    made = convert(tmp_path / "vae.safetensors", Checkpoint(z_image_folder), tmp_path / "made")
    assert made.from_file == ("vae",)
    taken = weights(tmp_path / "made" / "vae")
    assert all(torch.equal(taken[name], tensor) for name, tensor in weights(other / "vae").items())


def test_a_foreign_pipelines_file_opens_through_the_door(foreign_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.checkpoints.foreign import foreign

    folder = foreign_folder("AuraFlowPipeline")
    theirs = foreign("AuraFlowPipeline").build(tmp_path / "theirs", seed=9)
    save_file(weights(theirs / "transformer"), tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", Checkpoint(folder), tmp_path / "made")
    assert json.loads((tmp_path / "made" / "model_index.json").read_text())["_class_name"] == "AuraFlowPipeline"
    assert draw(tmp_path / "made").isfinite().all()


def test_a_file_with_network_autoencoder_and_text_encoder_gives_the_whole_checkpoint_back(
    foreign_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from tests.checkpoints.foreign import foreign

    folder = foreign_folder("StableDiffusionPipeline")
    like = foreign("StableDiffusionPipeline").build(tmp_path / "like", seed=9)
    save_file(merged(folder), tmp_path / "a.safetensors")
    made = convert(tmp_path / "a.safetensors", Checkpoint(like), tmp_path / "made")
    assert set(made.from_file) == {"unet", "vae", "text_encoder"}
    for part in made.from_file:
        taken, expected = weights(tmp_path / "made" / part), weights(folder / part)
        assert taken.keys() == expected.keys()
        assert all(torch.equal(taken[name], expected[name]) for name in expected), part
    assert torch.equal(draw(tmp_path / "made"), draw(folder))
    assert not torch.equal(draw(like), draw(folder))


def test_a_file_that_fits_two_experts_must_say_which_it_is(tmp_path: Path) -> None:
    from tests.checkpoints.wan import build

    like, other = build(tmp_path / "like", "A14B"), build(tmp_path / "other", "A14B", seed=4)
    theirs = weights(other / "transformer_2")
    save_file(wan(theirs), tmp_path / "low.safetensors")
    with pytest.raises(RequestError, match="fits transformer and transformer_2; say which it is with --component"):
        convert(tmp_path / "low.safetensors", Checkpoint(like), tmp_path / "made")
    with pytest.raises(RequestError, match="no network 'unet'; use one of"):
        convert(tmp_path / "low.safetensors", Checkpoint(like), tmp_path / "made", "unet")
    convert(tmp_path / "low.safetensors", Checkpoint(like), tmp_path / "made", "transformer_2")
    for part, source in (("transformer", like), ("transformer_2", other)):
        taken, expected = weights(tmp_path / "made" / part), weights(source / part)
        assert taken.keys() == expected.keys()
        assert all(torch.equal(taken[name], expected[name]) for name in expected)


def _less(named: Tensors) -> Tensors:
    return {name: tensor for name, tensor in named.items() if "layers.1." not in name}


def _wider(named: Tensors) -> Tensors:
    return {name: torch.cat([tensor, tensor]) for name, tensor in named.items()}


def _more(named: Tensors) -> Tensors:
    layer = {name.replace("layers.1.", "layers.7."): named[name].clone() for name in named if "layers.1." in name}
    return {**named, **layer}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_less, "it lacks .* tensors"),
        (_wider, "has shape"),
        (_more, r"it has layers.7.* besides, so it is a larger network"),
        (lambda named: {"a.b": torch.zeros(1)}, "it lacks 73 of 73 tensors"),
    ],
    ids=["fewer layers", "wider", "more layers", "something else"],
)
def test_a_file_of_another_network_is_refused_and_leaves_nothing(
    change: Callable[[Tensors], Tensors], message: str, z_image_folder: Path, tmp_path: Path
) -> None:
    changed = change(original(weights(z_image_folder / "transformer")))
    save_file({PREFIX + key: tensor for key, tensor in changed.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=message):
        convert(tmp_path / "a.safetensors", Checkpoint(z_image_folder), tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_pickles_other_formats_and_folders_that_exist_are_refused(z_image_folder: Path, tmp_path: Path) -> None:
    like = Checkpoint(z_image_folder)
    for name, message in (
        ("a.ckpt", "is a pickle"),
        ("a.onnx", "is no .* file"),
        ("a.safetensors", "there is no file"),
    ):
        with pytest.raises(ModelError, match=message):
            convert(tmp_path / name, like, tmp_path / "made")
    (tmp_path / "b.safetensors").write_bytes(b"not a header")
    with pytest.raises(ModelError, match="cannot be read"):
        convert(tmp_path / "b.safetensors", like, tmp_path / "made")
    with pytest.raises(RequestError, match="exists; name a folder that does not"):
        convert(tmp_path / "b.safetensors", like, tmp_path)


def test_a_file_cannot_become_a_model_whose_networks_no_library_has(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    save_file({"a.weight": torch.ones(6, 8)}, tmp_path / "a.safetensors")
    like = Checkpoint(tiny("BagelForConditionalGeneration"))
    with pytest.raises(ModelError, match=r"a\.safetensors cannot become a Bagel.*use a folder in its authors' layout"):
        convert(tmp_path / "a.safetensors", like, tmp_path / "made")
    assert not (tmp_path / "made").exists()
