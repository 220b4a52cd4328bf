"""A model packed once draws to the bit what quantizing at a start draws; it is written whole, or not at all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from omnimuse.cli import main
from omnimuse.core.caches import Fits
from omnimuse.core.config import Config, ModelConfig, ParallelConfig, QuantConfig
from omnimuse.core.errors import ConfigError, ModelError, RequestError, StorageError
from omnimuse.core.plans import Slices
from omnimuse.engine.local import start
from omnimuse.loader.fits import NAME as MEASURED
from omnimuse.loader.fits import write_fits
from omnimuse.loader.headers import stored_in
from omnimuse.loader.packed import new_folder, save_in_shards
from omnimuse.loader.voices import VOICES
from omnimuse.parallel.mesh import Mesh
from omnimuse.quant.linear import quantized_layers
from omnimuse.quant.schemes import SCHEMES, held
from omnimuse.worker import build
from omnimuse.worker.pack import pack_checkpoint
from tests.checkpoints import qwen3, qwen25_omni, wan, z_image
from tests.checkpoints.single_file import weights
from tests.invariants.conftest import Subject, run
from tests.power import PowerCutError, PoweredFolder

Z_IMAGE = z_image.FAMILIES[0]


def config(folder: Path, schemes: dict[str, str], *skip: str) -> Config:
    return Config(ModelConfig(str(folder), device="cpu"), quantize=QuantConfig(schemes, skip))


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4", "fp8", "fp8-dynamic"])
def test_a_folder_that_was_packed_draws_what_quantizing_at_the_start_draws(
    scheme: str, z_image_folder: Path, tmp_path: Path
) -> None:
    quantize = QuantConfig({"transformer": scheme, "text_encoder": "int8"}, ("layers.0.attention",))
    made = pack_checkpoint(replace(config(z_image_folder, {"": scheme}), quantize=quantize), tmp_path / "small", 2**17)
    assert made.after < 0.75 * made.before
    assert len(list((tmp_path / "small" / "transformer").glob("*-of-*.safetensors"))) > 1, "in several files"
    drawn = []
    for subject, parts in (
        (Subject(Z_IMAGE, tmp_path / "small"), {}),
        (Subject(Z_IMAGE, z_image_folder), {"quantize": quantize}),
    ):
        engine = start(subject.config(**parts))
        drawn.append(run(engine, subject.ask(0))[0])
        engine.close()
    assert torch.equal(*drawn)


def floats(chosen: Config, rank: int) -> tuple[dict[str, torch.Tensor], dict[str, Slices]]:
    """What the packed weights of a rank stand for, by layer, and which of the whole these are."""
    under = build.run(
        build.begin(chosen, Mesh.planned(chosen.parallel, rank)), (*build.SHAPES, build.offload, build.load)
    )
    layers = quantized_layers(under.networks["model"])
    under.resources.close()
    return {path: each.scheme.unpack(each.packed) for path, each in layers.items()}, under.held.cuts.get("model", {})


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranks_have_their_parts_of_the_numbers_that_one_has_packed_at_the_start_or_before(
    scheme: str, tmp_path: Path
) -> None:
    folder, ranks = qwen3.build(tmp_path / "whole"), ParallelConfig(tensor=2)
    made = config(folder, {"": scheme})
    pack_checkpoint(made, tmp_path / "small")
    whole, _ = floats(made, 0)
    assert whole
    for chosen in (made, Config(ModelConfig(str(tmp_path / "small"), device="cpu"))):
        for rank in range(ranks.ranks):
            found, cuts = floats(replace(chosen, parallel=ranks), rank)
            assert found.keys() == whole.keys()
            assert all(torch.equal(each, held(whole[path], cuts[f"{path}.weight"])) for path, each in found.items())


def test_every_network_of_several_is_packed_and_whatever_else_lies_there_comes_along(tmp_path: Path) -> None:
    folder = wan.build(tmp_path / "Wan2.2-T2V-A14B-Diffusers", "A14B")
    (folder / "training.json").write_text("{}")
    shutil.copy(next((folder / "vae").glob("*.safetensors")), folder / "all_in_one.safetensors")
    write_fits(folder / MEASURED, Fits(ratios=(1.0,), auto="none"), {})
    made = pack_checkpoint(config(folder, {"": "int8"}), tmp_path / "small")
    assert not [name for name in ("all_in_one.safetensors", MEASURED) if (tmp_path / "small" / name).exists()]
    sizes = (sum(path.stat().st_size for path in each.glob("*/*.safetensors")) for each in (folder, tmp_path / "small"))
    assert (made.before, made.after) == tuple(sizes), "of its components"
    assert {choice.name for choice in made.choices} == {"transformer", "transformer_2"}
    for name in ("transformer", "transformer_2"):
        kinds = {each.kind for each in stored_in(tmp_path / "small" / name).values()}
        assert "int8" in kinds and "F32" in kinds
    assert (tmp_path / "small" / "training.json").read_text() == "{}"
    assert all(
        torch.equal(tensor, weights(folder / "vae")[name])
        for name, tensor in weights(tmp_path / "small" / "vae").items()
    )
    assert json.loads((tmp_path / "small" / "model_index.json").read_text())["_name_or_path"].startswith("Wan-AI/")


def test_the_command_says_what_was_packed_and_the_bundled_model_works_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", "omnimuse/shapes", "-o", str(tmp_path / "small"), "--quantize", "int8"]
    assert main(words) == 0
    assert "layers, " in (told := capsys.readouterr().out) and "% of " in told
    assert main(["explain", str(tmp_path / "small")]) == 0
    assert "its files are packed so" in " ".join(capsys.readouterr().out.split())
    assert main(words) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err
    assert main(["parity", str(tmp_path / "small"), "a red circle", "--steps", "2"]) != 0
    assert "packed in a way that diffusers does not read" in capsys.readouterr().err
    again = ["quantize", str(tmp_path / "small"), "-o", str(tmp_path / "smaller"), "--quantize", "int4"]
    assert main(again) == 2
    assert "packed already" in capsys.readouterr().err


def test_layers_that_the_command_leaves_out_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["quantize", "omnimuse/shapes", "-o", str(tmp_path / "small"), "--quantize", "int8"]
    assert main([*words, "--quantize-skip", "layers.0"]) == 0
    [count] = re.findall(r"asked for: (\d+) layers", capsys.readouterr().out)
    kinds = {name: each.kind for name, each in stored_in(tmp_path / "small" / "transformer").items()}
    packed = [name for name, kind in kinds.items() if kind == "int8"]
    assert any(name.startswith("layers.1.") for name in packed)
    assert not any(name.startswith("layers.0.") for name in packed)
    assert main(["explain", str(tmp_path / "small")]) == 0
    assert f"transformer {count} x int8" in " ".join(capsys.readouterr().out.split())


def test_networks_that_share_a_folder_are_packed_together_and_voices_beside_them_come_along(tmp_path: Path) -> None:
    folder = qwen25_omni.build(tmp_path / "tiny")
    pack_checkpoint(config(folder, {"": "int8"}), tmp_path / "small")
    before, after = stored_in(folder), stored_in(tmp_path / "small")
    assert before.keys() == after.keys()
    packed = {name.split(".")[0] for name, each in after.items() if each.kind == "int8"}
    assert packed == {"thinker", "talker", "token2wav"}
    start(config(tmp_path / "small", {})).close()
    assert (tmp_path / "small" / VOICES).read_bytes() == (folder / VOICES).read_bytes()


def test_what_cannot_be_packed_is_refused_and_leaves_nothing(z_image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is to be packed"):
        pack_checkpoint(config(z_image_folder, {}), tmp_path / "small")
    with pytest.raises(ConfigError, match="this model has no 'unet'"):
        pack_checkpoint(config(z_image_folder, {"unet": "int8"}), tmp_path / "small")
    with pytest.raises(ConfigError, match="fits no layer"):
        pack_checkpoint(config(z_image_folder, {"": "int8"}, "nowhere"), tmp_path / "small")
    with pytest.raises(ConfigError, match="leaves nothing of transformer to be quantized"):
        pack_checkpoint(config(z_image_folder, {"": "int8"}, "*"), tmp_path / "small")
    with pytest.raises(RequestError, match="choose another place"):
        pack_checkpoint(config(z_image_folder, {"": "int8"}), Path("/proc/small"))
    z_image.build(tmp_path / "broken")
    [file] = (tmp_path / "broken" / "transformer").glob("*.safetensors")
    for name in ("layers.1.feed_forward.w1.weight", "layers.1.attention.norm_q.weight"):  # packed, and as it is
        save_file(tensors := load_file(file), saved := file.with_suffix(".saved"))
        tensors[name].view(-1)[0] = float("inf")
        save_file(tensors, file)
        with pytest.raises(ModelError, match=rf"1 of the .* numbers of {name} are NaN or infinite"):
            pack_checkpoint(config(tmp_path / "broken", {"": "int8"}), tmp_path / "small")
        saved.rename(file)
    with pytest.raises(RequestError, match="in the model's own folder"):
        pack_checkpoint(config(tmp_path / "broken", {"": "int8"}), tmp_path / "broken" / "small")
    with pytest.raises(RequestError, match="exists"):
        pack_checkpoint(config(z_image_folder, {"": "int8"}), tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    "refusing",
    [
        OSError(28, "no room"),
        SafetensorError("no room"),
        shutil.Error([("a", "b", "[Errno 28] no room: 'a' -> 'b'"), ("c", "d", "[Errno 28] no room: 'c' -> 'd'")]),
    ],
)
def test_a_folder_that_the_disk_refuses_is_told_in_words_and_leaves_nothing(
    tmp_path: Path, refusing: Exception
) -> None:
    def write() -> None:
        with new_folder(tmp_path / "small") as part:
            part.mkdir()
            raise refusing

    with pytest.raises(
        StorageError, match=r"small could not be written, and nothing is left of it: no room; free some space,"
    ):
        write()
    assert not list(tmp_path.iterdir())


def test_folders_around_a_new_one_are_made_as_those_of_pictures_are(tmp_path: Path) -> None:
    target = tmp_path / "not" / "there" / "small"
    with new_folder(target) as part:
        part.mkdir()
        (part / "a").touch()
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("names_survive", [False, True])
def test_a_folder_is_whole_or_not_there_whenever_the_power_goes(tmp_path: Path, names_survive: bool) -> None:
    for cut_at in range(1, 5):  # a folder, one in it, its file, and after these
        root = tmp_path / str(cut_at)
        root.mkdir()
        power = PoweredFolder(root, cut_at)
        with suppress(PowerCutError), new_folder(root / "small", power.sync) as part:
            (part / "vae").mkdir(parents=True)
            (part / "vae/mine").write_text("whole")
        power.restart(names_survive)
        target = root / "small"
        assert not target.exists() or (target / "vae/mine").read_text() == "whole"
        assert target.exists() == (names_survive and cut_at == 4)


@pytest.mark.parametrize(("most", "sizes"), [(80, [5]), (79, [4, 1]), (32, [2, 2, 1]), (8, [1] * 5)])
def test_files_hold_at_most_so_many_bytes_or_one_tensor_and_an_index_says_which_has_what(
    tmp_path: Path, most: int, sizes: list[int]
) -> None:
    contents = {f"a{number}": torch.full((4,), float(number)) for number in range(5)}  # of 16 bytes each
    save_in_shards(contents.items(), tmp_path, "model", most)
    files = [f"model-{number:05d}-of-{len(sizes):05d}.safetensors" for number in range(1, len(sizes) + 1)]
    files = files if len(sizes) > 1 else ["model.safetensors"]
    found = [load_file(tmp_path / file) for file in files]
    assert [len(each) for each in found] == sizes
    assert all(torch.equal(found_in[name], contents[name]) for found_in in found for name in found_in)
    index = tmp_path / "model.safetensors.index.json"
    assert {each.name for each in tmp_path.iterdir()} == {*files, *([index.name] if len(sizes) > 1 else [])}
    if len(sizes) > 1:
        told = json.loads(index.read_text())
        assert told["metadata"] == {"total_size": 80}
        assert told["weight_map"] == {name: file for file, each in zip(files, found, strict=True) for name in each}


WRITING = """
import sys
from pathlib import Path
from omnimuse.loader.packed import new_folder
with new_folder(Path(sys.argv[1])) as part:
    part.mkdir()
    (part / "mine").write_text("whole")
    print("begun", flush=True)
    sys.stdin.readline()
    assert (part / "mine").read_text() == "whole"
"""


def writing(target: Path) -> subprocess.Popen[str]:
    """Another process that has begun to write that folder, and ends it when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.costly
def test_two_processes_that_pack_into_one_folder_do_not_harm_each_other_and_the_first_to_end_has_it(
    z_image_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small"
    killed, slow, other = writing(target), writing(target), writing(target)
    killed.kill()
    killed.communicate()
    pack_checkpoint(config(z_image_folder, {"": "int8"}), target)
    assert len([each for each in tmp_path.iterdir() if each.suffix == ".part"]) == 2, "what a killed one left is gone"
    _, said = slow.communicate("go on\n", timeout=60)
    assert slow.returncode != 0, said
    assert (target / "model_index.json").is_file() and not (target / "mine").exists()
    shutil.rmtree(target)
    other.communicate("go on\n", timeout=60)
    assert other.returncode == 0
    assert [each.name for each in tmp_path.rglob("*")] == ["small", "mine"]


def test_a_table_of_packed_weights_that_does_not_fit_the_file_is_refused(z_image_folder: Path, tmp_path: Path) -> None:
    parts = '{"weight": "a.weight", "weight_scale": "a.weight_scale"}'
    tables = [
        f'{{"a.weight": ["int8", {shape}, {parts}]}}' for shape in ("-2, 2", "2.5, 2", "1e400, 2", "2, 3", "2, 2")
    ]
    tensors = {"a.weight": torch.zeros(2, 2), "a.weight_scale": torch.zeros(2, 1)}
    for table in (
        "{",
        '{"a.weight": ["int9", 1, 1, {}]}',
        '{"a.weight": ["int8", 3, 2, {"weight": "a.weight"}]}',
        *tables,
    ):
        save_file(tensors, tmp_path / "model.safetensors", metadata={"omnimuse.packed": table})
        with pytest.raises(ModelError, match="does not say how its weights are packed as omnimuse writes it"):
            stored_in(tmp_path)


def test_a_folder_that_a_library_packed_is_refused_by_name_with_what_to_do(tmp_path: Path) -> None:
    folder = z_image.build(tmp_path / "gptq")
    about = json.loads((folder / "text_encoder" / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"'text_encoder' of .* packed by gptq.*--quantize text_encoder=int4"):
        start(Subject(Z_IMAGE, folder).config())
