"""Text encoders in one file, in the names of llama.cpp or transformers: read as that reads them, and still packed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from omnimuse.compat.single_file import Converted, convert
from omnimuse.core.errors import ModelError, RequestError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import construct_library_network, library_rules
from omnimuse.loader.eight_bits import BESIDE, SAID
from omnimuse.loader.rules import apply_rules
from omnimuse.worker.find import our_components
from tests.checkpoints import (
    flux,
    flux2,
    gguf_file,
    llama_cpp,
    ltx2,
    lumina2,
    qwen_image,
    qwen_image_edit,
    wan,
    z_image,
)
from tests.checkpoints.packed import in_gguf, scaled
from tests.checkpoints.parts import say_packed
from tests.checkpoints.single_file import Tensors, weights
from tests.unit.compat.test_gguf import numbers


@dataclass(frozen=True)
class Encoder:
    """Of a family: which component, and the class by which transformers reads such a file itself, if it does; what
    stands there before its names in the whole network; and what it calls the architecture, if otherwise than files.
    """

    build: Callable[[Path], Path]
    cls: str
    name: str = "text_encoder"
    begin: str = ""
    theirs: str = ""


TEXTS = "model.language_model."
ENCODERS = {
    "t5encoder": Encoder(flux.build, "T5EncoderModel", "text_encoder_2"),
    "t5": Encoder(flux.build, "T5EncoderModel", "text_encoder_2", theirs="t5encoder"),
    "umt5": Encoder(partial(wan.build, kind="2.1"), "UMT5EncoderModel", theirs="t5encoder"),
    "qwen3": Encoder(z_image.build, "Qwen3Model"),
    "qwen2vl": Encoder(qwen_image.build, "Qwen2Model", begin=TEXTS, theirs="qwen2"),
    "llama": Encoder(flux2.build_dev, "LlamaModel", begin=TEXTS),
    "mistral3": Encoder(flux2.build_dev, "LlamaModel", begin=TEXTS, theirs="llama"),
    "gemma2": Encoder(lumina2.build, "Gemma2Model"),
    "gemma3": Encoder(ltx2.build, "Gemma3TextModel", begin=TEXTS),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_file_holds_the_numbers_that_transformers_reads_in_it(kind: str, tmp_path: Path) -> None:
    encoder = ENCODERS[kind]
    like = Checkpoint(encoder.build(tmp_path / "like"))
    folder = like.path(encoder.name)
    file = llama_cpp.write(tmp_path / "own.gguf", folder, "" if kind == "umt5" else kind)
    made = convert(file, like, tmp_path / "made", ours=our_components()[like.arch])
    assert made.from_file == (encoder.name,)
    found = numbers(tmp_path / "made" / encoder.name)
    rules = library_rules(like, encoder.name, construct_library_network(like, encoder.name))
    known = {apply_rules(name, rules).name: each for name, each in llama_cpp.stands_for(file, folder).items()}
    expected = theirs(encoder, llama_cpp.write(tmp_path / f"{kind}.gguf", folder, encoder.theirs), folder)
    for name, tensor in [*known.items(), *((encoder.begin + name, each) for name, each in expected.items())]:
        assert torch.equal(found[name].float(), tensor), name
    assert len(known) > 9 and len(expected) > 9


def theirs(encoder: Encoder, file: Path, folder: Path) -> dict[str, Any]:
    """What transformers reads in the file; it knows Mistral as llama, and what looks as qwen2."""
    alone = encoder.theirs in ("llama", "qwen2") or encoder.cls == "LlamaModel"
    choices = {} if alone else {"config": llama_cpp.text_config(folder)}
    cls = getattr(transformers, encoder.cls)
    network = cls.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **choices)
    return {name: tensor for name, tensor in network.state_dict().items() if name != "encoder.embed_tokens.weight"}


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One whose text encoder is a Qwen3."""
    return Checkpoint(z_image.build(tmp_path_factory.mktemp("like") / "z"))


def changed(path: Path, like: Checkpoint, change: Callable[[Tensors], Any], **facts: float) -> Path:
    """The file of the encoder of `like` with a `change`, and other `facts`."""
    folder = like.path("text_encoder")
    config, tensors = llama_cpp.text_config(folder), llama_cpp.named(weights(folder), llama_cpp.text_config(folder))
    change(tensors)
    said = {**llama_cpp.facts(config), **{key.replace("__", "."): value for key, value in facts.items()}}
    return gguf_file.write(path, tensors, gguf_file.usual, llama_cpp.architecture(folder), said)


def filled(file: Path, like: Checkpoint, made: Path, name: str | None = None) -> Converted:
    """The model with its encoder from the file."""
    return convert(file, like, made, name, ours=our_components()[like.arch])


WRONG: dict[str, tuple[Callable[[Tensors], Any], dict[str, float], str]] = {
    "lacks": (lambda had: had.pop("blk.1.ffn_up.weight"), {}, r"lacks 1 of 35 tensors \(blk.1.ffn_up.weight\)"),
    "larger": (
        lambda had: had.update({"blk.3.attn_norm.weight": torch.ones(64)}),
        {},
        r"has blk.3.attn_norm.weight besides, so it is a larger network",
    ),
    "shape": (
        lambda had: had.update({"token_embd.weight": torch.zeros(9, 64)}),
        {},
        r"token_embd.weight has shape \[9, 64\] and not \[\d+, 64\]",
    ),
    "heads": (Tensors.copy, {"attention__head_count": 8}, "its attention.head_count is 8 and not 4"),
    "turns": (Tensors.copy, {"rope__freq_base": 5e6}, r"its rope.freq_base is 5e\+06 and not 1e\+06"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_of_another_network_is_refused_with_what_is_wrong(wrong: str, like: Checkpoint, tmp_path: Path) -> None:
    change, facts, said = WRONG[wrong]
    with pytest.raises(ModelError, match=said):
        filled(changed(tmp_path / "a.gguf", like, change, **facts), like, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_file_of_another_kind_is_refused_with_what_the_model_has(like: Checkpoint, tmp_path: Path) -> None:
    t5 = Checkpoint(flux.build(tmp_path / "flux"))
    file = llama_cpp.write(tmp_path / "t5.gguf", t5.path("text_encoder_2"))
    with pytest.raises(
        ModelError, match=r"no text encoder of .*text_encoder is a qwen3. The file is that of a t5encoder"
    ):
        filled(file, like, tmp_path / "made")
    tower = gguf_file.write(tmp_path / "mmproj.gguf", {"v.blk.0.ln1.weight": torch.ones(8)}, gguf_file.usual, "clip")
    with pytest.raises(ModelError, match=r"holds what looks at pictures \(mmproj\) and no text encoder"):
        filled(tower, like, tmp_path / "made", "text_encoder")


@pytest.mark.parametrize("asked", ["text_encoder", "transformer"])
def test_a_file_that_is_that_of_another_component_is_told_as_that(asked: str, tmp_path: Path) -> None:
    t5 = Checkpoint(flux.build(tmp_path / "flux"))
    file = llama_cpp.write(tmp_path / "t5.gguf", t5.path("text_encoder_2"))
    said = rf"t5.gguf is not the {asked} of .*flux \(FluxPipeline\), but the text_encoder_2: name that component"
    with pytest.raises(RequestError, match=said):
        filled(file, t5, tmp_path / "made", asked)
    assert not (tmp_path / "made").exists()


def test_a_file_that_fits_two_is_asked_about(tmp_path: Path) -> None:
    folder = z_image.build(tmp_path / "like")
    shutil.copytree(folder / "text_encoder", folder / "text_encoder_2")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": index["text_encoder"]}))
    file = llama_cpp.write(tmp_path / "a.gguf", folder / "text_encoder")
    with pytest.raises(RequestError, match="fits text_encoder and text_encoder_2; say which it is with --component"):
        filled(file, Checkpoint(folder), tmp_path / "made")
    assert filled(file, Checkpoint(folder), tmp_path / "made", "text_encoder_2").from_file == ("text_encoder_2",)


def test_a_folder_that_borrowed_components_has_them_itself(tmp_path: Path) -> None:
    lender, folder = z_image.build(tmp_path / "there" / "lender"), tmp_path / "there" / "like"
    folder.mkdir()
    index = json.loads((lender / "model_index.json").read_text()) | {"_borrows_from": lender.name}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "training.json").write_text("{}")
    file = llama_cpp.write(tmp_path / "a.gguf", lender / "text_encoder")
    filled(file, Checkpoint(folder), tmp_path / "elsewhere" / "made")
    found = Checkpoint(tmp_path / "elsewhere" / "made")
    assert found.incomplete() is None and found.lender is None and (found.folder / "training.json").is_file()


def test_a_pipeline_that_runs_through_diffusers_gets_bfloat16(like: Checkpoint, tmp_path: Path) -> None:
    file = llama_cpp.write(tmp_path / "a.gguf", like.path("text_encoder"))
    convert(file, like, tmp_path / "made")
    found, exact = weights(tmp_path / "made" / "text_encoder"), gguf_file.exact(file)
    assert torch.equal(found["layers.1.self_attn.k_proj.weight"], exact["blk.1.attn_k.weight"].bfloat16())


def test_how_the_folder_had_packed_what_a_file_replaces_is_forgotten(tmp_path: Path) -> None:
    folder = z_image.build(tmp_path / "like")
    file, place = llama_cpp.write(tmp_path / "a.gguf", folder / "text_encoder"), tmp_path / "made" / "text_encoder"
    [weights_before] = (folder / "text_encoder").glob("*.safetensors")
    before = json.loads((folder / "text_encoder" / "config.json").read_text())
    say_packed(weights_before, {"quant_method": "compressed-tensors", "format": "float-quantized"})
    (folder / "text_encoder" / BESIDE).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    filled(file, Checkpoint(folder), tmp_path / "made")
    assert Checkpoint(tmp_path / "made").config("text_encoder") == before and not (place / BESIDE).exists()
    assert SAID in json.loads((folder / "text_encoder" / "config.json").read_text()), "the folder itself stays"


def test_what_writes_is_left_out_and_said(like: Checkpoint, tmp_path: Path) -> None:
    more = {
        "output.weight": torch.zeros(40, 64),
        "rope_freqs.weight": torch.ones(8),
        "dec.output_norm.weight": torch.ones(8),
    }
    file = changed(tmp_path / "a.gguf", like, lambda had: had.update(more))
    [note] = filled(file, like, tmp_path / "made").notes
    left = "dec.output_norm.weight, output.weight, rope_freqs.weight"
    assert note == f"text_encoder: {left} of a.gguf left out: nothing that reads needs it"
    assert len(numbers(tmp_path / "made" / "text_encoder")) == 35


def without_weights(folder: Path) -> Checkpoint:
    """The checkpoint, of which people have not the encoder's own weights."""
    for path in (folder / "text_encoder").glob("*.safetensors"):
        path.unlink()
    return Checkpoint(folder)


@pytest.mark.parametrize("build", [qwen_image.build, flux2.build_dev], ids=["Qwen-Image", "FLUX.2"])
def test_a_model_that_looks_at_nothing_needs_no_tower(build: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = build(tmp_path / "like")
    file = llama_cpp.write(tmp_path / "a.gguf", folder / "text_encoder")
    assert not filled(file, without_weights(folder), tmp_path / "made").notes


def test_what_looks_stays_that_of_the_model(tmp_path: Path) -> None:
    folder = qwen_image_edit.build(tmp_path / "like")
    file, own = llama_cpp.write(tmp_path / "a.gguf", folder / "text_encoder"), weights(folder / "text_encoder")
    [note] = filled(file, Checkpoint(folder), tmp_path / "made").notes
    assert re.fullmatch(r"text_encoder: model.visual \(\d+ tensors\) from .*like", note)
    found = numbers(tmp_path / "made" / "text_encoder")
    looks = {name: each for name, each in own.items() if name.startswith("visual.")}
    assert looks and all(torch.equal(found[f"model.{name}"], each) for name, each in looks.items())
    with pytest.raises(ModelError, match=r"lacks \d+ tensors that are needed \(model.visual\), as all files of llama"):
        filled(file, without_weights(folder), tmp_path / "again")


def test_words_that_no_tokenizer_has_are_zeros_where_a_file_is_cut(tmp_path: Path) -> None:
    like = Checkpoint(ltx2.build(tmp_path / "like"))
    key, cut = "model.language_model.embed_tokens.weight", "token_embd.weight"
    words = llama_cpp.text_config(like.path("text_encoder")).vocab_size
    file = changed(tmp_path / "a.gguf", like, lambda had: had.update({cut: had[cut][: words - 5]}))
    made = filled(file, like, tmp_path / "made")
    assert f"text_encoder: {cut} has no rows for the last 5 of {words} words: zeros" in made.notes
    found = numbers(tmp_path / "made" / "text_encoder")[key].float()
    assert torch.equal(found[:-5], gguf_file.exact(file)[cut]) and not found[-5:].any()


def in_short(library: Tensors) -> Tensors:
    """In the names of a language model without towers, as files of ComfyUI have them."""
    return {
        name.replace("language_model.model.", "model."): each for name, each in library.items() if "vision" not in name
    }


@pytest.mark.parametrize(
    ("build", "name", "names"),
    [
        (flux.build, "text_encoder_2", dict),
        (z_image.build, "text_encoder", dict),
        (qwen_image.build, "text_encoder", dict),
        (ltx2.build, "text_encoder", in_short),
    ],
    ids=["T5", "Qwen3", "Qwen2.5-VL", "Gemma3"],
)
@pytest.mark.parametrize("write", [in_gguf, scaled], ids=["GGUF", "scaled fp8"])
def test_a_file_in_the_names_of_transformers_is_read_too(
    build: Callable[[Path], Path],
    name: str,
    names: Callable[[Tensors], Tensors],
    write: Callable[[Path, Tensors], tuple[Path, Tensors]],
    tmp_path: Path,
) -> None:
    like = Checkpoint(build(tmp_path / "like"))
    module = construct_library_network(like, name)
    file, exact = write(tmp_path / "a", {**names(weights(like.path(name)))})
    made = filled(file, like, tmp_path / "made", name)
    assert made.from_file == (name,)
    found, rules = numbers(tmp_path / "made" / name), library_rules(like, name, module)
    plain, whole = weights(like.path(name)), dict[str, torch.Tensor]()
    for key, each in plain.items():
        [stored] = names({key: each}) or [""]
        whole[apply_rules(key, rules).name] = exact.get(stored, each)
    assert len(found) > 9 and found.keys() <= whole.keys()
    for key, each in found.items():
        assert torch.equal(each.float(), whole[key].float()), key


def test_a_file_of_something_else_is_told_what_it_has_besides(like: Checkpoint, tmp_path: Path) -> None:
    file, _ = in_gguf(tmp_path / "a", weights(like.path("transformer")))
    with pytest.raises(ModelError, match=r"a.gguf is not the text_encoder of .*: it has .* besides"):
        filled(file, like, tmp_path / "made", "text_encoder")
