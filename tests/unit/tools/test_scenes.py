"""Scenes stay inside the picture and apart; captions tell the truth; the same seed draws the same."""

import itertools
import random

import numpy as np
import pytest

from tools.train_shapes.captions import caption, place_words
from tools.train_shapes.data import (
    COLOURS,
    SHAPES,
    SIZE,
    SMALLEST_RADIUS,
    Renderer,
    Scene,
    Thing,
    clear_of,
    draw_scene,
    held_out,
    shape_mask,
)


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(4)
    return [draw_scene(rng) for _ in range(1500)]


def test_things_lie_inside_the_picture_and_are_large_enough(scenes):
    for thing in itertools.chain.from_iterable(scene.things for scene in scenes):
        assert thing.radius >= SMALLEST_RADIUS
        assert thing.radius <= min(thing.x, thing.y)
        assert max(thing.x, thing.y) + thing.radius < SIZE


def test_things_side_by_side_do_not_touch(scenes):
    for scene in scenes:
        if scene.relation in ("", "inside"):
            continue
        for a, b in itertools.pairwise(scene.things):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius


def test_the_first_thing_stands_as_the_relation_says(scenes):
    for scene in scenes:
        if len(scene.things) == 2 and scene.relation != "inside":
            a, b = scene.things
            dx, dy = b.x - a.x, b.y - a.y
            offsets = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}
            assert offsets[scene.relation] > 0


def test_colours_differ_from_each_other_and_the_background(scenes):
    for scene in scenes:
        colours = [thing.colour for thing in scene.things]
        assert len(set(colours)) == len(colours)
        assert all(clear_of(colour, scene.background) for colour in colours)


def test_every_shape_colour_relation_and_kind_of_background_is_drawn(scenes):
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {scene.relation for scene in scenes} >= {
        "left of",
        "right of",
        "above",
        "below",
        "inside",
        "row",
        "column",
    }
    assert {len(scene.background) for scene in scenes} == {1, 2}


def test_captions_name_every_thing_in_order(scenes):
    rng = random.Random(1)
    for scene in scenes:
        text = caption(scene, rng).lower()
        places = [text.find(f"{thing.colour} {thing.shape}") for thing in scene.things]
        assert min(places) >= 0, text
        assert places == sorted(places), text


def test_a_named_background_is_the_true_one(scenes):
    rng = random.Random(2)
    for scene in scenes:
        text = caption(scene, rng).lower()
        if "background" in text or "gradient" in text:
            tail = text.split(scene.things[-1].shape, 1)[1]
            assert all(colour in tail for colour in scene.background), text


def test_the_documented_phrasings_occur():
    rng = random.Random(3)
    lone = Scene(("blue",), (Thing("circle", "red", 64, 64, 30),))
    pair = Scene(("black",), (Thing("triangle", "green", 64, 30, 22), Thing("square", "white", 64, 90, 22)), "above")
    assert "a red circle on a blue background" in {caption(lone, rng) for _ in range(300)}
    assert "a green triangle above a white square" in {caption(pair, rng) for _ in range(300)}


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (64, 64, "in the middle"),
        (30, 30, "in the top left"),
        (30, 64, "on the left"),
        (64, 100, "at the bottom"),
    ],
)
def test_place_words(x, y, words):
    assert place_words(Thing("circle", "red", x, y, 20)) == words


def test_pictures_are_anti_aliased_and_exact_inside():
    picture = Renderer().paint(Scene(("white",), (Thing("circle", "black", 64, 64, 30),)))
    assert tuple(picture[64, 64]) == (14, 14, 14)
    assert tuple(picture[0, 0]) == (250, 250, 250)
    assert len(np.unique(picture[..., 0])) > 10


def test_a_thing_over_the_border_is_refused():
    with pytest.raises(ValueError, match="leaves the 128x128 picture"):
        Renderer().paint(Scene(("white",), (Thing("circle", "red", 5, 64, 30),)))


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_as_large_as_their_radius_says(shape):
    rows = np.flatnonzero(shape_mask(shape, 30).max(1) > 0.5)
    assert 50 <= rows[-1] - rows[0] + 1 <= 62


def test_held_out_combinations_are_about_the_asked_share(scenes):
    pairs = [scene for scene in scenes if len(scene.things) == 2]
    assert 0.05 < sum(held_out(scene, 0.1) for scene in pairs) / len(pairs) < 0.2
    assert not any(held_out(scene, 0.0) for scene in scenes)


def test_the_same_seed_draws_the_same_scenes():
    assert [draw_scene(random.Random(9)) for _ in range(3)] == [draw_scene(random.Random(9)) for _ in range(3)]
