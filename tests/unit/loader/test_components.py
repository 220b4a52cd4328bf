"""Library components: equal to the library's own loading, quiet, and refused in plain words."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import library_names, quiet
from tests.checkpoints.loading import library_component


@pytest.fixture
def folder(z_image_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(z_image_folder, tmp_path / "copy")


def load(folder: Path, name: str, how: str = "weights", dtype: torch.dtype = torch.bfloat16):  # type: ignore[no-untyped-def]
    return library_component(Checkpoint(folder), name, dtype, how)


def refusal(folder: Path, name: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, name)
    return str(caught.value)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return module.state_dict() | dict(module.named_buffers())


def same(left: nn.Module, right: nn.Module) -> None:
    assert tensors(left).keys() == tensors(right).keys()
    for name, tensor in tensors(left).items():
        other = tensors(right)[name]
        assert tensor.dtype == other.dtype, name
        assert torch.equal(tensor, other), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_autoencoder_equals_what_the_library_loads(z_image_folder: Path, dtype: torch.dtype) -> None:
    from diffusers import AutoencoderKL

    ours = load(z_image_folder, "vae", dtype=dtype)
    same(ours, AutoencoderKL.from_pretrained(z_image_folder / "vae", torch_dtype=dtype))
    assert ours.config.scaling_factor == 0.3611


def test_what_a_class_of_diffusers_says_is_left_over_is_left_out() -> None:
    from diffusers.models.modeling_utils import ModelMixin

    class Layer(ModelMixin):
        """Knows of a tensor that old files hold, and reads another whose name is like it."""

        _keys_to_ignore_on_load_unexpected = ("old_norm",)

        def __init__(self) -> None:
            super().__init__()
            self.old_norm_kept = nn.Linear(2, 2)

    names = ("old_norm_kept.weight", "blocks.0.old_norm.weight", "other.weight")
    assert [library_names(Layer()).name(name) for name in names] == ["old_norm_kept.weight", "", "other.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_encoder_equals_what_the_library_loads_rotary_buffers_included(
    z_image_folder: Path, dtype: torch.dtype
) -> None:
    from transformers import Qwen3Model

    ours = load(z_image_folder, "text_encoder", dtype=dtype)
    same(ours, Qwen3Model.from_pretrained(z_image_folder / "text_encoder", dtype=dtype))
    assert ours.rotary_emb.inv_freq.dtype == torch.float32


@pytest.fixture
def language_model(z_image_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint whose text encoder is a whole language model with eyes and a head."""
    from tests.checkpoints import parts

    shutil.copytree(z_image_folder, tmp_path / "vl")
    shutil.rmtree(tmp_path / "vl/text_encoder")
    parts.save_module(tmp_path / "vl", "text_encoder", 0, lambda: parts.qwen25_vl(300))
    index = json.loads((tmp_path / "vl/model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Qwen2_5_VLForConditionalGeneration"]
    (tmp_path / "vl/model_index.json").write_text(json.dumps(index))
    return tmp_path / "vl"


@pytest.mark.parametrize("part", ["model.language_model", "model.visual", "model"])
@pytest.mark.parametrize("inner", [False, True], ids=["names as published", "names in memory"])
def test_a_part_of_a_language_model_is_the_librarys_and_nothing_else_is_read(
    language_model: Path, part: str, inner: bool
) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    folder = language_model / "text_encoder"
    whole = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"model", "visual", "lm_head"}  # as published
    if inner:
        named = {"model": "model.language_model", "visual": "model.visual", "lm_head": "lm_head"}
        split = {name.partition(".")[::2]: tensor for name, tensor in weights.items()}
        weights = {f"{named[first]}.{rest}": tensor for (first, rest), tensor in split.items()}
    if part != "model":  # a head that cannot be read would be noticed
        weights["lm_head.weight"] = weights["lm_head.weight"].fill_(torch.nan)
    save_file(weights, folder / "model.safetensors")
    ours = library_component(Checkpoint(language_model), "text_encoder", part=part)
    same(ours, whole.get_submodule(part))


def test_a_tensor_that_no_part_of_a_language_model_has_is_still_refused(language_model: Path) -> None:
    path = language_model / "text_encoder/model.safetensors"
    save_file(load_file(path) | {"model.third_eye.weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"model\.third_eye\.weight"):
        library_component(Checkpoint(language_model), "text_encoder", part="model.language_model")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Checkpoints with a CLIP, a T5 and a UMT5 text encoder, and the component's name in each."""
    from tests.checkpoints import flux, wan

    first, second = tmp_path_factory.mktemp("clip") / "tiny", tmp_path_factory.mktemp("umt5") / "tiny"
    flux.build(first), wan.build(second, "2.1")
    return {
        "CLIPTextModel": (first, "text_encoder"),
        "T5EncoderModel": (first, "text_encoder_2"),
        "UMT5EncoderModel": (second, "text_encoder"),
    }


@pytest.mark.parametrize("kind", ["CLIPTextModel", "T5EncoderModel", "UMT5EncoderModel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_text_encoders_of_the_library_are_streamed_to_what_it_loads_itself(
    encoders: dict[str, tuple[Path, str]], kind: str, dtype: torch.dtype
) -> None:
    import transformers

    folder, name = encoders[kind]
    ours = load(folder, name, dtype=dtype)
    theirs = getattr(transformers, kind).from_pretrained(folder / name, dtype=dtype)
    same(ours, theirs)
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.dtype == theirs.dtype
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        assert torch.equal(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_names_of_older_files_are_understood_as_the_library_does(
    encoders: dict[str, tuple[Path, str]], tmp_path: Path
) -> None:
    """CLIP's tensors with the prefix they used to have; T5's with a tied copy, and a decoder that nobody needs."""
    folder = Path(shutil.copytree(encoders["CLIPTextModel"][0], tmp_path / "copy"))
    clip, t5 = (folder / name / "model.safetensors" for name in ("text_encoder", "text_encoder_2"))
    before = load(folder, "text_encoder"), load(folder, "text_encoder_2")
    save_file({f"text_model.{name}": tensor for name, tensor in load_file(clip).items()}, clip, {"format": "pt"})
    stored = load_file(t5)
    more = {"encoder.embed_tokens.weight": stored["shared.weight"].clone(), "decoder.x.weight": torch.zeros(2)}
    save_file(stored | more, t5, {"format": "pt"})
    for name, module in zip(("text_encoder", "text_encoder_2"), before, strict=True):
        same(load(folder, name), module)
    tied = load(folder, "text_encoder_2")
    assert tied.encoder.embed_tokens.weight is tied.shared.weight


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
@pytest.mark.parametrize("how", ["weights", "dummy"])
def test_networks_come_in_eval_mode_without_gradients(z_image_folder: Path, name: str, how: str) -> None:
    module = load(z_image_folder, name, how)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}


def test_a_tokenizer_comes_with_its_chat_template(z_image_folder: Path) -> None:
    tokenizer = load(z_image_folder, "tokenizer")
    assert tokenizer.chat_template
    assert tokenizer("a red circle").input_ids.shape[1] > 0


def test_dummy_components_need_configurations_only(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    vae, encoder = load(folder, "vae", "dummy"), load(folder, "text_encoder", "dummy")
    with torch.no_grad():
        picture = vae.decode(torch.zeros(1, 16, 2, 2, dtype=torch.bfloat16)).sample
        states = encoder(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state
    assert picture.shape == (1, 3, 16, 16)
    assert picture.isfinite().all()
    assert states.isfinite().all()


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_dummy_components_leave_the_global_random_numbers_alone(z_image_folder: Path, name: str) -> None:
    before = torch.get_rng_state()
    load(z_image_folder, name, "dummy")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_head_that_an_encoder_does_not_need_is_tolerated(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.zeros(4, 64)}, path, {"format": "pt"})
    load(folder, "text_encoder")


def test_missing_and_unexpected_weights_of_a_text_encoder_are_named(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    content = load_file(path)
    content["stray.weight"] = content.pop("norm.weight")
    save_file(content, path, {"format": "pt"})
    message = refusal(folder, "text_encoder")
    assert "1 missing: norm.weight" in message
    assert "1 unexpected: stray.weight" in message


@pytest.mark.parametrize(
    ("name", "key", "value"), [("text_encoder", "intermediate_size", 256), ("vae", "latent_channels", 4)]
)
def test_mis_shaped_library_weights_are_refused_with_both_shapes(folder: Path, name: str, key: str, value: int) -> None:
    path = folder / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    message = refusal(folder, name)
    assert "of another shape" in message
    assert "config.json asks for [" in message
    assert "belong to a" in message


@pytest.mark.parametrize("name", ["vae", "text_encoder"])
def test_a_truncated_library_file_is_refused_with_its_name(folder: Path, name: str) -> None:
    path = next((folder / name).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is damaged or cut short" in refusal(folder, name)


def test_pickled_text_encoders_are_refused(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").rename(folder / "text_encoder/pytorch_model.bin")
    assert "can run any code" in refusal(folder, "text_encoder")


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_tokenizer_that_needs_a_package_names_it_and_not_the_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer_config.json").write_text("{}")
    (folder / "tokenizer/spiece.model").write_bytes(b"words")
    checkpoint = Checkpoint(folder)
    checkpoint.components["tokenizer"] = ("transformers", "T5Tokenizer")
    with pytest.raises(ModelError, match="needs sentencepiece, which is not installed: pip install sentencepiece") as e:
        library_component(checkpoint, "tokenizer")
    assert "get the checkpoint again" not in str(e.value)


def test_a_damaged_tokenizer_is_refused_with_its_file(folder: Path) -> None:
    path = folder / "tokenizer/tokenizer.json"
    path.write_text(path.read_text()[:-100])
    assert f"{path} is not valid JSON" in refusal(folder, "tokenizer")


@pytest.mark.parametrize(
    ("library", "kind", "said"),
    [
        ("evil", "Thing", "code from elsewhere is never run"),
        ("diffusers", "AutoencoderOfTomorrow", "does not have; install a version of diffusers that does"),
        ("diffusers", "utils.logging", "does not have"),
        ("transformers", "logging", "cannot be loaded from a folder"),
    ],
)
def test_only_classes_of_the_two_libraries_are_built(folder: Path, library: str, kind: str, said: str) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vae": [library, kind]}))
    assert said in refusal(folder, "vae")


@pytest.mark.parametrize("how", ["weights", "dummy"])
@pytest.mark.parametrize("name", ["vae", "text_encoder", "tokenizer"])
def test_loading_prints_nothing(z_image_folder: Path, capfd: pytest.CaptureFixture[str], name: str, how: str) -> None:
    load(z_image_folder, name, how)
    assert capfd.readouterr() == ("", "")


def warn_and_fail() -> None:
    warnings.warn("nobody sees this", stacklevel=1)
    raise RuntimeError(transformers_verbosity()[0])


def transformers_verbosity() -> tuple[int, bool]:
    from transformers.utils import logging as transformers_logging

    return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()


def test_what_was_silenced_is_restored_even_after_an_error() -> None:
    before = transformers_verbosity()
    with pytest.raises(RuntimeError, match=str(logging.ERROR)), quiet("transformers"):
        warn_and_fail()
    assert before == transformers_verbosity()


def test_loading_does_not_import_torchvision(z_image_folder: Path) -> None:
    for name in ("vae", "text_encoder", "tokenizer"):
        load(z_image_folder, name)
    assert "torchvision" not in sys.modules
