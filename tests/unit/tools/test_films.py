"""Films and their captions, the grader of films, and the networks that learn them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from tools.train_shapes.data import COLOURS, Renderer
from tools.train_shapes.film import (
    FRAMES,
    MOTIONS,
    SHAPES,
    SIDE,
    Film,
    backgrounds_of,
    caption,
    draw_films,
    frames,
    held_out,
)
from tools.train_shapes.film_grade import as_frames, draw_film_tasks, draw_film_truth, grade, judge_film_task
from tools.train_shapes.film_judge import judge_film
from tools.train_shapes.film_network import (
    LENGTH,
    FilmNetwork,
    build_text_encoder,
    build_tokenizer,
    build_transformer,
)
from tools.train_shapes.film_vae import FILMS, PLAN, build, decode, encode, films, from_pixels, to_pixels
from tools.train_shapes.flat import FlatTrainer, Optimizer
from tools.train_shapes.parallel import Rank
from tools.train_shapes.vae import vae_loss

TASKS = draw_film_tasks(40, seed=11)
FILM = Film("cross", "red", "left", "white", 44)


def shown(film: Film) -> list[Image.Image]:
    return list(as_frames(frames(film, Renderer())))


@cache
def truth() -> list[Sequence[Image.Image]]:
    """A film of each task, as it should be."""
    return [as_frames(film) for film in draw_film_truth(TASKS)]


@pytest.mark.costly(turns=3)
def test_true_films_pass_and_so_do_slightly_blurred_ones() -> None:
    report, _ = grade(lambda prompts, seeds: truth(), TASKS)
    assert report.right == 1.0, report.failures
    blurred = [[frame.filter(ImageFilter.GaussianBlur(0.5)) for frame in film] for film in truth()]
    report, _ = grade(lambda prompts, seeds: blurred, TASKS)
    assert report.right >= 0.95, report.failures


def test_films_of_other_prompts_fail() -> None:
    right = truth()
    report, _ = grade(lambda prompts, seeds: right[1:] + right[:1], TASKS)
    assert report.right <= 0.05


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion != FILM.motion])
def test_another_motion_fails_in_motion_alone(motion: str) -> None:
    aspects = judge_film(shown(replace(FILM, motion=motion)), FILM, True).aspects
    assert [name for name, right in aspects.items() if not right] == ["motion"]


@pytest.mark.parametrize(
    ("aspect", "wrong"),
    [("shape", {"shape": "ring"}), ("colour", {"colour": "green"}), ("background", {"background": "black"})],
)
def test_another_shape_colour_or_background_fails(aspect: str, wrong: dict[str, Any]) -> None:
    assert not judge_film(shown(replace(FILM, **wrong)), FILM, True).aspects[aspect]


def test_frames_out_of_order_or_missing_are_no_motion() -> None:
    film = shown(FILM)
    mixed = [*film[:3], film[5], film[4], film[3], *film[6:]]
    assert not judge_film(mixed, FILM, True).aspects["motion"]
    gone = [*film[:3], Image.new("RGB", (SIDE, SIDE), "white"), *film[4:]]
    assert not judge_film(gone, FILM, True).aspects["motion"]
    with pytest.raises(ValueError, match=f"generate films of {FRAMES}"):
        judge_film(film[:5], FILM, True)


def test_captions_tell_colour_shape_and_every_background_that_nobody_expects() -> None:
    rng = random.Random(3)
    for film in islice(draw_films("captions", 0.1), 200):
        text = caption(film, rng).lower()
        assert film.colour in text and film.shape in text
        usual = film.background == backgrounds_of(film.colour)[0]
        assert usual or f"{film.background} background" in text


def test_every_colour_has_backgrounds_and_no_film_is_of_a_combination_held_out() -> None:
    assert all(len(backgrounds_of(colour)) >= 2 for colour in COLOURS)
    films = list(islice(draw_films("some", 0.3), 300))
    assert not any(held_out(film, 0.3) for film in films)
    assert {film.motion for film in films} == {*MOTIONS} and {film.shape for film in films} == {*SHAPES}
    assert all(held_out(task.film, 0.3) for task in draw_film_tasks(20, held_share=0.3))


def test_tasks_are_different_and_the_same_for_a_seed() -> None:
    assert len({task.prompt for task in TASKS}) == len(TASKS)
    assert draw_film_tasks(40, seed=11) == TASKS
    assert draw_film_tasks(40, seed=12) != TASKS


def test_every_word_of_a_caption_is_one_piece() -> None:
    tokenizer, rng = build_tokenizer(), random.Random(4)
    for film in islice(draw_films("words", 0.0), 100):
        text = caption(film, rng)
        pieces = tokenizer.tokenize(text)
        assert "".join(pieces).replace("▁", " ").strip() == text
        assert len(pieces) == len(text.split()) + text.count(".")
        assert len(pieces) < LENGTH


@torch.no_grad()
def test_the_batched_forward_is_what_the_pipeline_computes() -> None:
    torch.manual_seed(0)
    tokenizer, transformer = build_tokenizer(), build_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    text_encoder = build_text_encoder(len(tokenizer))
    texts, x, level = ["a red circle", "a blue ring grows", ""], torch.randn(3, 16, 3, 8, 8), torch.rand(3)
    whole = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    told = text_encoder(whole.input_ids, whole.attention_mask).last_hidden_state * whole.attention_mask[..., None]
    wanted = transformer(x, level * 1000, told, return_dict=False)[0]
    network, some = FilmNetwork(text_encoder, transformer), tokenizer(texts, padding=True, return_tensors="pt")
    found = network(x, level, network.read(some.input_ids, some.attention_mask))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_films_are_coded_as_the_library_does_and_pixels_come_back() -> None:
    vae, film = build(PLAN), frames(FILM, Renderer())[None]
    x = to_pixels(film)
    assert np.array_equal(from_pixels(x), film)
    mean, _ = encode(vae, x)
    assert torch.equal(mean, vae.encode(x).latent_dist.mode())
    assert torch.equal(decode(vae, mean).clamp(-1, 1), vae.decode(mean).sample)


def test_what_is_frozen_does_not_learn() -> None:
    vae = build(PLAN)
    vae.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    trainer = FlatTrainer({"vae": vae}, Rank(0, 1, "cpu"), Optimizer((0.9, 0.99), 0.9))
    vae_loss(FILMS, vae, films(random.Random(1), Renderer(), 1, 32), PLAN)[0].backward()
    trainer.step(1e-2)
    after = trainer.average_states()["vae"]
    changed = {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"quant_conv", "post_quant_conv", "decoder"}


def test_a_motion_is_the_same_from_frame_to_frame() -> None:
    places = [scene.things[0] for scene in FILM.scenes]
    assert {after.x - before.x for before, after in pairwise(places)} == {-7}
    assert judge_film_task(shown(TASKS[0].film), TASKS[0]).right
