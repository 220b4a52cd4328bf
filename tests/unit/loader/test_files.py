"""Which files are taken as weights, and which refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omnimuse.core.errors import ModelError
from omnimuse.loader.files import JSON_DEPTH, read_json, weight_files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def taken(folder: Path) -> list[str]:
    return [path.name for path in weight_files(folder).paths]


def index(folder: Path, name: str, *files: object) -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"t{i}": file for i, file in enumerate(files)}}))


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors", "config.json"], ["model.fp16.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (
            ["diffusion_pytorch_model.safetensors", "extra.safetensors"],
            ["diffusion_pytorch_model.safetensors"],
        ),
        (["odd_name.safetensors"], ["odd_name.safetensors"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"],  # an older naming
            ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"],
        ),
    ],
)
def test_the_right_files_are_taken(tmp_path: Path, there: list[str], expected: list[str]) -> None:
    touch(tmp_path, *there)
    assert taken(tmp_path) == expected


def test_an_index_names_the_shards_in_use(tmp_path: Path) -> None:
    touch(tmp_path, "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "a.fp16.safetensors")
    index(tmp_path, "a.safetensors.index.json", "a-00002-of-00002.safetensors", "a-00001-of-00002.safetensors")
    assert taken(tmp_path) == ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"]


def test_an_indexed_variant_is_taken_only_without_plain_weights(tmp_path: Path) -> None:
    touch(tmp_path, "model.fp16-00001-of-00001.safetensors")
    index(tmp_path, "model.safetensors.index.fp16.json", "model.fp16-00001-of-00001.safetensors")
    assert taken(tmp_path) == ["model.fp16-00001-of-00001.safetensors"]
    touch(tmp_path, "model.safetensors")
    assert taken(tmp_path) == ["model.safetensors"]


def test_a_missing_shard_is_named_with_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "a-00001-of-00003.safetensors", "a-00003-of-00003.safetensors")
    said = r"lacks 1 of its 3 weight files.*a-00002-of-00003.safetensors; get the checkpoint again"
    with pytest.raises(ModelError, match=said):
        weight_files(tmp_path)
    index(tmp_path, "a.safetensors.index.json", *(f"a-0000{i}-of-00003.safetensors" for i in (1, 2, 3)))
    with pytest.raises(ModelError, match=said):
        weight_files(tmp_path)


def test_a_missing_shard_of_the_older_naming_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a-00001-of-00002.fp16.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 of its 2 weight files.*a-00002-of-00002\.fp16\.safetensors"):
        weight_files(tmp_path)


def test_a_byte_order_mark_in_front_of_json_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "model_index.json") == {"a": 1}


def test_pickles_are_refused_because_they_can_run_code(tmp_path: Path) -> None:
    touch(tmp_path, "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickles only \(pytorch_model.bin\).*run any code.*safe_serialization=True"):
        weight_files(tmp_path)


def test_no_weights_at_all_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \*.safetensors weights: it is empty; get the checkpoint again"):
        weight_files(tmp_path)


def test_an_ambiguous_choice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "one.safetensors", "two.safetensors")
    with pytest.raises(ModelError, match=r"several sets of weights \(one.safetensors, two.safetensors\)"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "code.bin", 7])
def test_an_index_cannot_name_files_elsewhere_or_of_another_kind(tmp_path: Path, name: object) -> None:
    index(tmp_path, "a.safetensors.index.json", name)
    with pytest.raises(ModelError, match=r"only \*.safetensors beside it are allowed"):
        weight_files(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelError, match="no `weight_map`"):
        weight_files(tmp_path)


# -- JSON ----------------------------------------------------------------------------------------------------------


def said_of(folder: Path, text: str | bytes) -> str:
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ModelError) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "get the checkpoint again" in str(caught.value)
    return str(caught.value)


def nested(depth: int, opening: str, closing: str) -> str:
    return '{"a": ' + opening * depth + "1" + closing * depth + "}"


@pytest.mark.parametrize("depth", [JSON_DEPTH, 900, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_json_that_is_too_deep_is_refused(tmp_path: Path, depth: int, opening: str, closing: str) -> None:
    assert f"more than {JSON_DEPTH} deep" in said_of(tmp_path, nested(depth, opening, closing))
    (tmp_path / "config.json").write_text(nested(JSON_DEPTH - 1, opening, closing))
    assert read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "number", ["9" * 5000, "-" + "9" * 100, "1e999", "-1e999", "0." + "1" * 5000, "1" * 400 + ".5"]
)
def test_numbers_that_no_setting_has_are_refused(tmp_path: Path, number: str) -> None:
    said = said_of(tmp_path, f'{{"a": [{number}]}}')
    assert "a number that no setting has" in said and len(said) < 400


def test_numbers_that_checkpoints_have_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('\ufeff{"long": 1000000000000000019884624838656, "lambda_min_clipped": -Infinity, "eps": 1e-06}')
    assert read_json(path) == {"long": 10**30 + 19884624838656, "lambda_min_clipped": float("-inf"), "eps": 1e-6}


def test_json_larger_than_any_checkpoint_has_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: nothing is stored
    with pytest.raises(ModelError, match="more than 256 MiB"):
        read_json(path)


@pytest.mark.parametrize("text", ["[]", "1", "{", b"\xff\xfe", '"a"', ""])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ModelError, match=r"config.json"):
        read_json(path)
