"""The page in a real browser against the whole app, real jobs and fake workers: what outlives a reload, and queues."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnimuse.core.output import Part, Result
from omnimuse.core.params import DiffusionParams
from omnimuse.core.request import Ask
from omnimuse.deploy.results import Spool
from omnimuse.deploy.wire import Form
from omnimuse.media.image import encode_image
from omnimuse.server.translate.asks import preview_steps
from omnimuse.worker.pace import Shared
from tests.server.browser import browser_only, expect, opened
from tests.server.picture_server import MODEL, Running, picture_server, shapes
from tests.waiting import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with picture_server(tmp_path / "data") as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with opened(browser, server.url) as page:
        page.locator("#model-name").get_by_text(MODEL).wait_for()
        yield page


def draw(page: Any, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()


def thumbs(page: Any, count: int) -> None:
    expect(page.locator("#thumbs li")).to_have_count(count)


@browser_only
def test_the_form_is_there_again_after_a_reload(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("a green star")
    page.get_by_label("Steps").fill("4")
    page.get_by_label("Seed").fill("77")
    page.get_by_label("Shape").select_option("")
    page.get_by_label("Width").fill("64")
    page.get_by_label("Format").select_option("webp")
    page.reload()
    page.locator("#model-name").get_by_text(MODEL).wait_for()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a green star")
    for name, value in {"Steps": "4", "Seed": "77", "Width": "64", "Format": "webp"}.items():
        expect(page.get_by_label(name)).to_have_value(value)


@browser_only
def test_a_picture_that_is_being_drawn_goes_on_when_the_page_is_loaded_again(page: Any, server: Running) -> None:
    server.workers.pace = 1.0
    page.get_by_label("Steps").fill("12")
    draw(page, "a slow star")
    page.get_by_text(re.compile(r"Step \d+ of 12")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"Step \d+ of 12")).wait_for()
    page.locator("#stage img.preview").wait_for()
    server.workers.pace = 0.0
    thumbs(page, 1)
    expect(page.locator("figcaption")).to_contain_text("a slow star")
    assert len(server.workers.started) == 1 and server.workers.cancelled == []
    page.reload()
    thumbs(page, 1)
    expect(page.locator("#progress")).to_be_hidden()
    assert page.evaluate("Object.values(sessionStorage)") == []


@browser_only
def test_one_that_goes_on_can_be_cancelled_and_the_server_keeps_nothing(page: Any, server: Running) -> None:
    server.workers.pace = 1.0
    draw(page, "a slow star")
    page.get_by_text(re.compile(r"Step \d+ of")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"Step \d+ of")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    wait_until(lambda: len(server.workers.cancelled) == 1 and not server.workers.running)
    server.workers.pace = 0.0
    draw(page, "a quick star")
    thumbs(page, 1)
    wait_until(lambda: not list((server.service.options.data / "files").iterdir()))  # the page has it


@browser_only
def test_prompts_wait_for_their_turn_over_a_reload_and_can_be_taken_out(page: Any, server: Running) -> None:
    server.workers.pace = 1.0
    draw(page, "first")
    for prompt in ("second", "third", "fourth"):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Draw next").click()
    expect(page.locator("#waiting li")).to_have_count(3)
    page.get_by_role("button", name="Remove: third").click()
    expect(page.locator("#waiting li")).to_have_count(2)
    page.reload()
    expect(page.locator("#waiting li")).to_have_count(2)
    server.workers.pace = 0.0
    thumbs(page, 3)
    assert [request.prompt for request in server.workers.started] == ["first", "second", "fourth"]
    expect(page.locator("#queue")).to_be_hidden()


@browser_only
def test_on_a_phone_what_waits_does_not_push_the_picture_away(page: Any, server: Running) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    server.workers.pace = 1.0
    draw(page, "first")
    top = page.locator("#stage").evaluate("node => node.offsetTop")
    for prompt in ("second", "third", "fourth"):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Draw next").click()
    expect(page.locator("#waiting li")).to_have_count(3)
    assert page.locator("#stage").evaluate("node => node.offsetTop") == top
    box = page.locator("#stage .frame").bounding_box()
    assert box["y"] >= 0 and round(box["y"] + box["height"]) <= 844
    server.workers.pace = 0.0
    thumbs(page, 4)


@browser_only
def test_the_queue_goes_on_after_a_refusal_and_after_a_cancelled_one(page: Any, server: Running) -> None:
    server.workers.pace = 1.0
    draw(page, "first")
    page.get_by_text(re.compile(r"Step \d+ of")).wait_for()
    page.get_by_label("Prompt", exact=True).fill("second")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")  # by keyboard, too
    expect(page.locator("#waiting li")).to_have_count(1)
    page.get_by_label("Steps").press("Enter")  # must not cancel what runs
    time.sleep(0.5)
    assert server.workers.cancelled == []
    page.get_by_role("button", name="Cancel").click()
    wait_until(lambda: server.workers.cancelled)
    server.workers.pace = 0.0
    thumbs(page, 1)
    expect(page.locator("figcaption")).to_contain_text("second")


@browser_only
def test_another_one_has_the_same_settings_and_another_seed(page: Any, server: Running) -> None:
    page.get_by_label("Seed").fill("5")
    draw(page, "a ring")
    thumbs(page, 1)
    page.get_by_role("button", name="Another one").click()
    thumbs(page, 2)
    page.get_by_role("button", name="Random").click()
    expect(page.get_by_label("Seed")).to_have_value("")
    seeds = [request.seed(0) for request in server.workers.started]
    assert seeds[0] == 5 and seeds[1] != 5
    assert server.workers.started[0].prompt == server.workers.started[1].prompt


@browser_only
def test_what_was_deleted_can_be_had_back(page: Any) -> None:
    draw(page, "a ring")
    thumbs(page, 1)
    draw(page, "a star")
    thumbs(page, 2)
    page.get_by_role("button", name="Delete").click()
    thumbs(page, 1)
    page.get_by_role("button", name="Undo").click()
    thumbs(page, 2)
    expect(page.locator("figcaption")).to_contain_text("a star")
    page.get_by_role("button", name="Clear").click()
    page.locator("#gallery").wait_for(state="hidden")
    page.get_by_role("button", name="Undo").click()
    thumbs(page, 2)
    page.reload()
    thumbs(page, 2)
    page.locator("#thumbs img").first.evaluate("image => image.decode()")


@browser_only
def test_on_a_phone_the_way_back_is_on_the_screen(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    draw(page, "a ring")
    thumbs(page, 1)
    page.get_by_role("button", name="Delete").click()
    box = page.get_by_role("button", name="Undo").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] >= 0 and box["y"] + box["height"] <= 740
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@browser_only
def test_a_picture_can_be_enlarged_and_esc_closes_it_without_cancelling(page: Any, server: Running) -> None:
    draw(page, "a ring")
    thumbs(page, 1)
    server.workers.pace = 1.0
    page.get_by_role("button", name="Run again").click()
    page.locator("#thumbs button").click()  # an old one can be looked at meanwhile
    page.get_by_role("button", name="Enlarge the picture").click()
    large = page.locator("dialog img")
    assert large.bounding_box()["width"] == 1280
    large.click()
    assert large.bounding_box()["width"] == 128  # its real pixels
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    assert server.workers.cancelled == []
    server.workers.pace = 0.0
    thumbs(page, 2)


DROP = """async ([base64, name, place]) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector(place).dispatchEvent(event);
}"""


def saved(settings: dict[str, Any]) -> str:
    return base64.b64encode(encode_image(Image.new("RGB", (16, 16)), "PNG", settings)).decode()


@browser_only
def test_a_png_that_a_worker_wrote_gives_its_settings_back(page: Any, tmp_path: Path) -> None:
    chosen = DiffusionParams(width=64, height=96, num_inference_steps=5, seed=2**62 + 1)
    prompt = {"prompt": 'a "ring" × 2', "negative_prompt": "blur"}
    request = shapes().make_request(Ask(prompt, chosen), now=0.0, fresh_seed=1)
    drawn = ((Part("image", Image.new("RGB", (64, 96))),),)
    result = Result(request.id, request.prompt, request.params, parts=drawn, seeds=[request.seed(0)])
    about = {"model": MODEL, "dtype": "float32", "device": "cpu"}
    [made] = Spool(tmp_path, "life", about).write(0, request, result, Form("PNG"))
    content = base64.b64encode((tmp_path / made.name).read_bytes()).decode()
    page.evaluate(DROP, [content, "old.png", "#prompt"])
    page.get_by_text("The settings of old.png.").wait_for()
    restored = {"Negative prompt": "blur", "Width": "64", "Height": "96", "Steps": "5", "Seed": str(2**62 + 1)}
    for name, value in restored.items():
        expect(page.get_by_label(name)).to_have_value(value)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt["prompt"])
    expect(page.get_by_label("Make", exact=True)).to_have_value("image")
    page.get_by_role("button", name="Start from it instead").click()
    page.locator("#chosen img[alt='old.png']").wait_for()


@browser_only
def test_a_picture_of_the_command_line_brings_its_step_cache_and_tells_which_adapters_are_not_here(page: Any) -> None:
    loras = [{"name": "omnimuse/shapes/night", "scale": 0.5}, {"name": "ink.safetensors", "scale": 1.0}]
    settings = {"prompt": "a ring", "seed": 7, "loras": loras, "engine": {"cache": "dbcache,threshold=0.1"}}
    assert "careful" in page.get_by_label("Step cache").inner_text()
    page.evaluate(DROP, [saved(settings), "old.png", "#prompt"])
    page.get_by_text("Here is no field for the adapters that it was drawn with: night, ink.").wait_for()
    expect(page.get_by_label("Step cache")).to_have_value("dbcache,threshold=0.1")
    expect(page.get_by_label("Seed")).to_have_value("7")


@browser_only
def test_a_png_on_the_field_is_started_from_and_one_without_settings_anywhere(page: Any) -> None:
    page.get_by_label("Make", exact=True).select_option("edit")
    page.evaluate(DROP, [saved({"prompt": "x"}), "old.png", "#drop-hint"])
    page.locator("#chosen img[alt='old.png']").wait_for()
    page.get_by_label("Make", exact=True).select_option("image")
    plain = io.BytesIO()
    Image.new("RGB", (16, 16)).save(plain, "PNG")
    page.evaluate(DROP, [base64.b64encode(plain.getvalue()).decode(), "plain.png", "#prompt"])
    page.locator("#chosen img[alt='plain.png']").wait_for()


@browser_only
def test_the_page_tells_what_was_measured_of_pictures_that_are_drawn_together(page: Any, server: Running) -> None:
    expect(page.locator("#ready")).to_have_attribute("title", re.compile("Nothing was made together yet"))
    server.workers.company = [Shared("transformer", 64, 2, 0.75)]
    page.reload()
    told = "2 at once, of 64 tokens each: 0.75 of the time of one after the other"
    expect(page.locator("#ready")).to_have_attribute("title", told)


def test_something_is_seen_in_the_first_third_whatever_the_number_of_steps() -> None:
    for steps in range(3, 200):
        assert preview_steps(steps, 3)[0] <= steps / 3
