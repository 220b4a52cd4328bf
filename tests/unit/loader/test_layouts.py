"""A folder in a layout that a family has of its own: its pieces, their configurations and their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omnimuse.core.errors import ModelError
from omnimuse.core.layouts import LAYOUTS, Files, Piece, laid_out
from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.eight_bits import in_eight_bits
from omnimuse.loader.files import weight_files
from omnimuse.loader.hub import is_model, wanted_files

PIECES = {
    "whole": Piece("Whole", "one.safetensors", {"a": 1, "b": 2}, {"config.json": "", "half_config.json": "half"}),
    "other": Piece("Other", "two.safetensors", {"c": 3}),
    "scheduler": Piece("Falling", known={"shift": 3.0}),
}


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """A layout of a model that is not there otherwise."""
    made = Files("ToyPipeline", ("half_config.json", "one.safetensors", "two.safetensors"), PIECES)
    LAYOUTS.append(made)
    yield
    LAYOUTS.remove(made)


def folder_of(path: Path) -> Path:
    (path / "config.json").write_text(json.dumps({"b": 5}))
    (path / "half_config.json").write_text(json.dumps({"width": 8}))
    (path / "tokenizer.json").write_text("{}")
    for name in ("one", "two"):
        save_file({name: torch.zeros(2)}, path / f"{name}.safetensors")
    return path


def test_a_folder_with_all_marks_is_of_the_layout_and_its_pieces_have_their_own_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint(folder_of(tmp_path))
    assert checkpoint.arch == "ToyPipeline"
    assert checkpoint.config("whole") == {"a": 1, "b": 5, "half": {"width": 8}}
    assert checkpoint.config("other") == {"c": 3}
    assert checkpoint.config("scheduler") == {"shift": 3.0}
    assert [name for name in checkpoint.components if checkpoint.has_weights(name)] == ["whole", "other"]
    checkpoint.divide("part", "whole")
    for name, file in (("whole", "one"), ("part", "one"), ("other", "two")):
        assert [path.name for path in weight_files(checkpoint.weights(name)).paths] == [f"{file}.safetensors"]
    assert checkpoint.config("part") == checkpoint.config("whole")
    assert checkpoint.components["tokenizer"] == ("transformers", "TokenizersBackend")
    assert [name for name, _ in checkpoint.sources()] == ["half_config.json"]


@pytest.mark.parametrize("file", ["config.json", "half_config.json"])
def test_how_weights_were_packed_is_of_the_whole_whichever_file_says_it(file: str, tmp_path: Path) -> None:
    checkpoint, plain = Checkpoint(folder_of(tmp_path)), {"a": 1, "b": 5, "half": {"width": 8}}
    about = json.loads((tmp_path / file).read_text())
    for said, read in (({"quant_method": "gptq"}, False), ({"quant_method": "fp8"}, True)):
        (tmp_path / file).write_text(json.dumps({**about, "quantization_config": said}))
        assert checkpoint.config("whole") == (plain if read else {**plain, "quantization_config": said})
        assert (in_eight_bits(tmp_path) is not None) == read


def test_it_is_a_model_wherever_models_are_looked_for(tmp_path: Path) -> None:
    assert is_model(folder_of(tmp_path))
    names = [path.name for path in tmp_path.iterdir()]
    assert {"one.safetensors", "two.safetensors", "half_config.json"} <= set(wanted_files("owner/toy", names))


def test_a_folder_that_lacks_a_mark_is_none(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "two.safetensors").unlink()
    assert laid_out([path.name for path in tmp_path.iterdir()]) is None
    with pytest.raises(ModelError, match="omnimuse needs a folder"):
        Checkpoint(tmp_path)
