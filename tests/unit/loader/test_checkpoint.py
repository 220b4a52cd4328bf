"""What a checkpoint folder says, and every way in which it is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.loader.checkpoint import Checkpoint, plain_class
from omnimuse.loader.files import PICKLES, SINGLE

REQUIRED = {"net": ("ToyNet",), "tokenizer": ("ToyTokenizer",), "scheduler": ("ToyScheduler",)}


def refusal(folder: Path, required: dict[str, tuple[str, ...]] = REQUIRED) -> str:
    with pytest.raises(ModelError) as caught:
        Checkpoint(folder).check(required)
    return str(caught.value)


def change_index(folder: Path, **entries: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_index_is_read_into_components_null_components_and_options(plain: Path) -> None:
    checkpoint = Checkpoint(plain)
    assert checkpoint.arch == "ToyPipeline"
    assert checkpoint.components["net"] == ("diffusers", "ToyNet")
    assert checkpoint.empty == {"net_2"}
    assert checkpoint.options == {"boundary_ratio": 0.875, "flags": [1, 2]}


def test_a_complete_checkpoint_passes_the_check(plain: Path) -> None:
    Checkpoint(plain).check(REQUIRED)
    assert Checkpoint(plain).incomplete() is None


def test_configurations_are_read_whatever_their_file_is_called(plain: Path) -> None:
    assert Checkpoint(plain).configs == {
        "net": {"width": 4},
        "scheduler": {"_class_name": "ToyScheduler", "shift": 3.0},
        "tokenizer": {},
        "options": {"boundary_ratio": 0.875, "flags": [1, 2]},
    }


def test_a_scheduler_without_a_configuration_is_refused(plain: Path) -> None:
    (plain / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ModelError, match=r"scheduler_config.json does not exist; get the checkpoint again"):
        _ = Checkpoint(plain).configs


def test_an_optional_component_may_be_null_or_absent(plain: Path) -> None:
    Checkpoint(plain).check({**REQUIRED, "net_2": ("ToyNet",), "extra": ("ToyNet",)}, optional={"net_2", "extra"})


def test_without_weights_the_weight_files_need_not_be_there(plain: Path) -> None:
    next((plain / "net").glob("*.safetensors")).unlink()
    Checkpoint(plain).check(REQUIRED, weights=False)
    assert "no *.safetensors weights: it holds config.json" in refusal(plain)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [f"flat{end}" for end in (*SINGLE, *PICKLES)])
def test_a_single_file_is_refused_with_the_way_to_convert_it_if_there_is_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"")
    alone, message = refusal(file), refusal(tmp_path)
    assert "is a single file" in alone and f"single-file weights ({name})" in message
    for said in (alone, message):
        assert ("omnimuse convert" in said) is name.endswith(SINGLE)
        assert ("opening a pickle can run any code" in said) is name.endswith(PICKLES)


def test_a_folder_without_index_says_what_it_holds(tmp_path: Path) -> None:
    assert "has no model_index.json: it holds nothing at all" in refusal(tmp_path)
    (tmp_path / "README.md").write_text("")
    assert "it holds README.md" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "looks like one network alone" in refusal(tmp_path)


def test_a_component_given_as_the_model_points_to_the_checkpoint_around_it(plain: Path) -> None:
    assert f"is one component of the checkpoint {plain}; use {plain}" in refusal(plain / "net")


def test_broken_json_is_refused_with_file_line_and_advice(plain: Path) -> None:
    (plain / "net/config.json").write_text('{"width": 4,')
    message = refusal(plain)
    assert "net/config.json is not valid JSON" in message
    assert "line 1" in message
    assert "get the checkpoint again" in message
    (plain / "model_index.json").write_text("[]")
    assert "holds a list, not an object" in refusal(plain)
    (plain / "model_index.json").write_text("{}")
    assert "no `_class_name`" in refusal(plain)


def test_a_missing_component_is_named_with_those_that_are_there(plain: Path) -> None:
    message = refusal(plain, {**REQUIRED, "vae": ("ToyVAE", "OtherVAE")})
    assert "no component 'vae', which ToyPipeline needs (ToyVAE or OtherVAE)" in message
    assert "names net, scheduler, tokenizer" in message
    assert "lists it as null" in refusal(plain, {**REQUIRED, "net_2": ("ToyNet",)})


def test_a_missing_component_folder_is_named(plain: Path) -> None:
    (plain / "tokenizer").rmdir()
    message = refusal(plain)
    assert f"{plain / 'tokenizer'} does not exist" in message
    assert "hf download" in message


def test_an_unexpected_class_is_refused_with_those_that_work(plain: Path) -> None:
    change_index(plain, net=["diffusers", "OtherNet"])
    assert "'net' of" in refusal(plain)
    assert "is a OtherNet; ToyPipeline works here with ToyNet" in refusal(plain)


def test_older_names_of_tokenizer_classes_are_accepted() -> None:
    assert plain_class("ToyTokenizerFast") == plain_class("ToyTokenizer")
    assert plain_class("PreTrainedTokenizerFast") == "TokenizersBackend"


def test_a_component_name_that_leaves_the_folder_is_refused(plain: Path) -> None:
    change_index(plain, **{"../net": ["diffusers", "ToyNet"]})
    assert "only plain names are allowed" in refusal(plain)


def test_an_unknown_component_is_refused_with_the_known_ones(plain: Path) -> None:
    with pytest.raises(ModelError, match=r"no component 'vae'; model_index.json names net, scheduler, tokenizer"):
        Checkpoint(plain).config("vae")


def test_a_network_without_configuration_is_refused(plain: Path) -> None:
    (plain / "net/config.json").unlink()
    assert "net/config.json does not exist" in refusal(plain)


def test_the_fingerprint_changes_with_content_and_only_then(plain: Path) -> None:
    first = Checkpoint(plain).fingerprint()
    assert Checkpoint(plain).fingerprint() == first
    os.utime(plain / "net/config.json", (1, 1))
    changed = Checkpoint(plain).fingerprint()
    (plain / "net/more.txt").write_text("more")
    assert len({first, changed, Checkpoint(plain).fingerprint()}) == 3


def test_components_that_are_not_here_are_borrowed_of_the_folder_beside_this_one(plain: Path) -> None:
    poor = plain.parent / "poor"
    (poor / "tokenizer").mkdir(parents=True)
    index = json.loads((plain / "model_index.json").read_text()) | {"_borrows_from": plain.name}
    (poor / "model_index.json").write_text(json.dumps(index))
    found = Checkpoint(poor)
    found.check(REQUIRED)
    assert found.path("net") == plain / "net"
    assert found.path("tokenizer") == poor / "tokenizer"
    assert found.configs == Checkpoint(plain).configs
    before = found.fingerprint()
    (plain / "net" / "more.txt").write_text("changed")
    assert found.fingerprint() != before


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "", "..", 3, "nobody"])
def test_nothing_is_borrowed_of_a_folder_that_is_not_beside_this_one(plain: Path, name: object) -> None:
    change_index(plain, _borrows_from=name)
    assert "_borrows_from" in (said := refusal(plain)) or "which is no checkpoint" in said
