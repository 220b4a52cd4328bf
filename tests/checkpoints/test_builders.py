"""The tiny checkpoints themselves: complete, drawn everywhere, reproducible, and understood by the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnimuse.loader.checkpoint import Checkpoint
from omnimuse.loader.components import quiet
from tests.checkpoints import parts, z_image
from tests.checkpoints.loading import library_component
from tests.checkpoints.parts import assert_drawn_everywhere


def test_the_checkpoint_is_complete(z_image_folder: Path) -> None:
    checkpoint = Checkpoint(z_image_folder)
    assert checkpoint.arch == "ZImagePipeline"
    assert checkpoint.incomplete() is None


def test_no_tensor_is_left_at_zero_or_one_or_undrawn(z_image_folder: Path) -> None:
    assert_drawn_everywhere(z_image_folder)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(z_image_folder: Path, tmp_path: Path) -> None:
    again, other = z_image.build(tmp_path / "again"), z_image.build(tmp_path / "other", seed=1)
    for path in z_image_folder.rglob("*.safetensors"):
        name = path.relative_to(z_image_folder)
        assert path.read_bytes() == (again / name).read_bytes()
        assert path.read_bytes() != (other / name).read_bytes()


def test_every_word_of_the_template_is_one_token(z_image_folder: Path) -> None:
    tokenizer = library_component(Checkpoint(z_image_folder), "tokenizer").inner
    message = [{"role": "user", "content": "a red circle"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert text == "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert " ".join(pieces) == "<|im_start|> user Ċ a Ġred Ġcircle <|im_end|> Ċ <|im_start|> assistant Ċ"
    assert tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=False
    ).endswith("<think>\n\n</think>\n\n")


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = parts.qwen_tokenizer()
    text = "Zwölf Boxkämpfer 漢字 🙂 <b>\t\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_padding_and_end_tokens_are_those_of_the_family(z_image_folder: Path) -> None:
    tokenizer = library_component(Checkpoint(z_image_folder), "tokenizer").inner
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    row = tokenizer("a", padding="max_length", max_length=4).input_ids
    assert row[1:] == [tokenizer.pad_token_id] * 3


@pytest.mark.parametrize(
    ("scheduler", "config", "shift"),
    [
        ("FlowMatchEulerDiscreteScheduler", None, 6.0),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}, 2.0),
    ],
)
def test_the_scheduler_can_be_chosen(tmp_path: Path, scheduler: str, config: dict | None, shift: float) -> None:
    folder = z_image.build(tmp_path, scheduler=scheduler, scheduler_config=config)
    assert Checkpoint(folder).config("scheduler")["shift"] == shift


def test_the_reference_pipeline_runs_it_and_the_prompt_matters(z_image_folder: Path) -> None:
    with quiet("diffusers"), quiet("transformers"):
        from diffusers import ZImagePipeline

        pipe = ZImagePipeline.from_pretrained(z_image_folder)
        pipe.set_progress_bar_config(disable=True)
        pictures = [
            pipe(
                prompt,
                height=32,
                width=32,
                num_inference_steps=2,
                guidance_scale=1.0,
                generator=torch.Generator().manual_seed(0),
                output_type="pt",
            ).images
            for prompt in ("a red circle", "two green stars")
        ]
    assert all(picture.isfinite().all() and picture.std() > 0.05 for picture in pictures)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
