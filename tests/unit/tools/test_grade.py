"""The grader accepts true pictures and rejects every kind of wrong one."""

import dataclasses

import pytest
from PIL import Image, ImageFilter

from tools.train_shapes.data import SIZE, Renderer, Scene, Thing
from tools.train_shapes.grade import draw_tasks, draw_truth, grade, judge_task, summarise
from tools.train_shapes.judge import judge

RED_CIRCLE = Thing("circle", "red", 40, 60, 26)
BLUE_STAR = Thing("star", "blue", 98, 64, 24)
LONE = Scene(("white",), (RED_CIRCLE,))
PAIR = Scene(("white",), (RED_CIRCLE, BLUE_STAR), "left of")


def paint(scene: Scene) -> Image.Image:
    return Image.fromarray(Renderer().paint(scene))


def with_things(scene: Scene, *things: Thing) -> Scene:
    return dataclasses.replace(scene, things=things)


@pytest.fixture(scope="module")
def tasks():
    return draw_tasks(120, seed=11)


def test_true_pictures_pass(tasks):
    report, _ = grade(lambda prompts, seeds: draw_truth(tasks), tasks)
    assert report.single > 0.99, report.failures
    assert report.pair > 0.98, report.failures


def test_slightly_blurred_true_pictures_pass(tasks):
    blurred = [picture.filter(ImageFilter.GaussianBlur(0.8)) for picture in draw_truth(tasks[::4])]
    report, _ = grade(lambda prompts, seeds: blurred, tasks[::4])
    assert report.single > 0.95, report.failures
    assert report.pair > 0.9, report.failures


def test_pictures_of_other_prompts_fail(tasks):
    shifted = draw_truth(tasks)[1:] + draw_truth(tasks)[:1]
    report, _ = grade(lambda prompts, seeds: shifted, tasks)
    assert report.single < 0.1
    assert report.pair < 0.05


@pytest.mark.parametrize("colour", ["white", "black", "red", "gray"])
def test_blank_pictures_fail(tasks, colour):
    blank = Image.new("RGB", (SIZE, SIZE), colour)
    assert not any(judge_task(blank, task).right for task in tasks[::4])


def test_a_shape_that_the_model_was_never_shown_is_told_from_all_that_it_knows():
    for scene in (LONE, PAIR):
        hearts = with_things(scene, *(dataclasses.replace(thing, shape="heart") for thing in scene.things))
        assert judge(paint(hearts), hearts, True).right
        assert not judge(paint(hearts), scene, True).aspects["shape"]
        assert not judge(paint(scene), hearts, True).aspects["shape"]


def test_a_wrong_colour_fails_in_colour_alone_or_more():
    wrong = dataclasses.replace(RED_CIRCLE, colour="orange")
    assert not judge(paint(with_things(LONE, wrong)), LONE, False).aspects["colour"]


@pytest.mark.parametrize("shape", ["square", "triangle", "star", "cross", "ring"])
def test_a_wrong_shape_fails_in_shape_alone(shape):
    wrong = dataclasses.replace(RED_CIRCLE, shape=shape)
    aspects = judge(paint(with_things(LONE, wrong)), LONE, False).aspects
    assert [name for name, right in aspects.items() if not right] == ["shape"]


@pytest.mark.parametrize("relation", ["right of", "above", "below", "inside"])
def test_a_wrong_relation_fails_in_relation(relation):
    asked = dataclasses.replace(PAIR, relation=relation)
    assert not judge(paint(PAIR), asked, False).aspects["relation"]


def test_swapped_colours_fail():
    first, second = (
        dataclasses.replace(RED_CIRCLE, colour="blue", radius=24),
        dataclasses.replace(BLUE_STAR, colour="red"),
    )
    assert not judge(paint(with_things(PAIR, first, second)), PAIR, False).right


@pytest.mark.parametrize("background", [("black",), ("yellow",), ("blue", "white")])
def test_a_wrong_background_fails_only_when_asked_for(background):
    picture = paint(dataclasses.replace(LONE, background=background))
    assert judge(picture, LONE, False).right
    aspects = judge(picture, LONE, True).aspects
    assert [name for name, right in aspects.items() if not right] == ["background"]


def test_a_gradient_upside_down_fails():
    scene = dataclasses.replace(LONE, background=("blue", "white"))
    flipped = dataclasses.replace(LONE, background=("white", "blue"))
    assert judge(paint(scene), scene, True).right
    assert not judge(paint(flipped), scene, True).aspects["background"]


def test_an_extra_thing_is_not_clean():
    assert not judge(paint(PAIR), LONE, False).aspects["clean"]


def test_a_second_thing_of_the_same_colour_is_not_clean():
    twin = with_things(LONE, RED_CIRCLE, dataclasses.replace(BLUE_STAR, colour="red"))
    assert not judge(paint(twin), LONE, False).aspects["clean"]


def test_a_wrong_place_fails_only_when_asked_for():
    assert judge(paint(LONE), LONE, False).right
    assert judge(paint(LONE), LONE, False, "on the left").right
    assert not judge(paint(LONE), LONE, False, "on the right").right


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match="128"):
        judge(Image.new("RGB", (64, 64)), LONE, False)


def test_missing_pictures_are_refused(tasks):
    with pytest.raises(ValueError, match="0 pictures for 120"):
        grade(lambda prompts, seeds: [], tasks)


def test_tasks_repeat_for_a_seed_and_are_half_single_half_pairs(tasks):
    assert draw_tasks(120, seed=11) == tasks
    assert draw_tasks(160, seed=12) != tasks
    assert [len(task.scene.things) for task in tasks] == [1] * 60 + [2] * 60


def test_the_report_counts_aspects_over_the_tasks_that_ask_for_them(tasks):
    some = tasks[:10]
    report = summarise(some, [judge_task(picture, t) for picture, t in zip(draw_truth(some), some, strict=True)])
    assert report.counts["single"] == 10
    assert report.counts["pair"] == 0
    assert report.counts["place"] == sum(task.place_asked for task in some)
    assert "single object  100.0%" in report.table()
