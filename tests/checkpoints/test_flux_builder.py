"""The tiny FLUX.1 checkpoints: complete, drawn everywhere, reproducible, with tokenizers like the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import quiet
from tests.checkpoints import flux
from tests.checkpoints.loading import library_component
from tests.checkpoints.parts import assert_drawn_everywhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet("transformers"):
        return flux.build(tmp_path_factory.mktemp("flux") / "tiny")


def test_the_checkpoint_is_complete_and_its_empty_parts_are_known(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert (checkpoint.arch, checkpoint.incomplete()) == ("FluxPipeline", None)
    assert checkpoint.empty == {"feature_extractor", "image_encoder"}


def test_no_tensor_is_left_at_zero_or_one_or_undrawn(folder: Path) -> None:
    assert_drawn_everywhere(folder)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again, other = flux.build(tmp_path / "again"), flux.build(tmp_path / "other", seed=1)
    for path in folder.rglob("*.safetensors"):
        name = path.relative_to(folder)
        assert path.read_bytes() == (again / name).read_bytes()
        assert path.read_bytes() != (other / name).read_bytes()


def test_the_two_kinds_differ_in_guidance_and_shift(folder: Path, tmp_path: Path) -> None:
    dev, schnell = Checkpoint(folder), Checkpoint(flux.build(tmp_path, schnell=True))
    assert dev.config("transformer")["guidance_embeds"]
    assert dev.config("scheduler")["use_dynamic_shifting"]
    assert not schnell.config("transformer")["guidance_embeds"]
    assert not schnell.config("scheduler")["use_dynamic_shifting"]


def test_the_end_of_a_clip_text_has_the_highest_id_and_pads_are_ends(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.config("text_encoder")["eos_token_id"] == 2
    tokenizer = library_component(checkpoint, "tokenizer").inner
    ids = tokenizer("a RED circle, Zwölf 漢", padding="max_length").input_ids
    assert (len(ids), ids[-1]) == (77, len(tokenizer) - 1)
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words[:5] == ["<|startoftext|>", "a</w>", "red</w>", "circle</w>", ",</w>"]
    assert tokenizer.unk_token_id not in ids[1 : words.index("<|endoftext|>")]


def test_t5_pads_to_the_length_it_is_told(folder: Path) -> None:
    tokenizer = library_component(Checkpoint(folder), "tokenizer_2").inner
    row = tokenizer("a red circle", padding="max_length", max_length=6)
    assert tokenizer.convert_ids_to_tokens(row.input_ids) == ["▁a", "▁red", "▁circle", "</s>", "<pad>", "<pad>"]
    assert row.attention_mask == [1, 1, 1, 1, 0, 0]
