"""The playground in a real browser (headless Chromium), against a small server that speaks the HTTP contract.

The fake API draws a disc whose colour is the seed's, streams as the real one does, and remembers what it was asked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image

from omnimuse.media.sound import Sound, encode_sound
from omnimuse.server.routes import playground
from tests.server.browser import DESKTOP, HEARD, PHONE, browser_only, expect, opened, wait_until
from tests.server.page_api import BIG_SEED, EDITS, FILMS, MADE, PICTURES, REELS, SOUNDS, VIDEOS, Running, listening


@pytest.fixture
def site() -> Iterator[Running]:
    with listening() as running:
        yield running


@pytest.fixture
def page(browser: Any, site: Running) -> Iterator[Any]:
    with opened(browser, site.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page


def draw(page: Any, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name=re.compile("^(Draw|Make the video|Make the sound)$")).click()


def expect_picture(page: Any) -> Any:
    picture = page.locator("#stage figure img")
    picture.wait_for()
    picture.evaluate("image => image.decode()")
    return picture


# -- the page ----------------------------------------------------------------------------------------------------


@browser_only
def test_the_page_tells_what_the_model_draws_and_what_a_picture_was_warned_of(page: Any, site: Running) -> None:
    site.api.capabilities = PICTURES | {"draws": {"shapes": ["circle", "ring"], "colours": ["red"]}, "only_side": 128}
    site.api.warnings = ["the prompt has none of the words that this model knows"]
    page.reload()
    page.get_by_text("It draws shapes: circle, ring; colours: red, at 128 × 128.").wait_for()
    draw(page, "the Eiffel tower")
    expect_picture(page)
    expect(page.locator("figcaption .warning")).to_have_text(site.api.warnings[0])


@browser_only
def test_a_picture_is_drawn_with_previews_progress_and_its_settings(page: Any, site: Running) -> None:
    site.api.pace = 0.4
    draw(page, "a red circle")
    page.locator("#stage img.preview").wait_for()
    page.get_by_text(re.compile(r"Step \d+ of 10")).wait_for()
    page.get_by_text(re.compile(r"about .* s left")).wait_for()
    picture = expect_picture(page)
    assert picture.bounding_box()["width"] > 400
    expect(picture).to_have_attribute("alt", "a red circle")
    expect(page.locator("figcaption")).to_contain_text("128 × 128")
    expect(page.locator("figcaption")).to_contain_text(f"seed {BIG_SEED}")
    expect(page.locator("#thumbs li")).to_have_count(1)
    expect(page.locator("#status")).to_have_text(re.compile("^Done in"))
    assert site.api.asked == [
        {
            "model": "omnimuse/shapes",
            "prompt": "a red circle",
            "size": "128x128",
            "stream": True,
            "partial_images": 3,
            "progress": True,
        }
    ]


@browser_only
def test_cancel_closes_the_request_and_the_page_can_draw_again(page: Any, site: Running) -> None:
    site.api.pace = 0.3
    draw(page, "a slow star")
    page.locator("#stage img.preview").wait_for()
    page.get_by_role("button", name="Cancel").click()
    assert site.api.gone.wait(60)
    page.get_by_text("Cancelled.").wait_for()
    site.api.pace = 0.0
    draw(page, "a quick star")
    expect_picture(page)


@browser_only
def test_run_again_asks_for_the_same_settings_and_the_seed_that_was_drawn(page: Any, site: Running) -> None:
    page.get_by_label("Steps").fill("4")
    draw(page, "a blue ring")
    expect_picture(page)
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    first, second = site.api.asked
    assert second == first | {"seed": BIG_SEED}
    assert first["num_inference_steps"] == 4


@browser_only
def test_use_settings_puts_everything_back_into_the_form(page: Any, site: Running) -> None:
    page.get_by_label("Shape").select_option(label="Portrait 112 × 144")
    page.get_by_label("Seed").fill("7")
    expect(page.get_by_label("Cfg normalization")).to_be_hidden()  # what few know does not stand among what all do
    page.get_by_text("Finer settings").click()
    page.get_by_label("Cfg normalization").fill("1.5")
    draw(page, "a ring")
    expect_picture(page)
    page.reload()
    page.locator("#thumbs button").click()
    page.get_by_role("button", name="Use settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a ring")
    expect(page.get_by_label("Width")).to_have_value("112")
    expect(page.get_by_label("Height")).to_have_value("144")
    expect(page.get_by_label("Seed")).to_have_value("7")
    expect(page.get_by_label("Cfg normalization")).to_have_value("1.5")
    asked = site.api.asked[0]
    assert asked["size"] == "112x144" and asked["seed"] == 7 and asked["extra_params"] == {"cfg_normalization": 1.5}


@browser_only
def test_adapters_are_worn_at_the_strength_that_is_put_in(page: Any, site: Running) -> None:
    site.api.capabilities = EDITS | {"adapters": ["ink", "night: blue"]}
    page.reload()
    page.get_by_label("ink").fill("0.5")
    page.get_by_label("night: blue").fill("-1")
    draw(page, "a ring")
    expect_picture(page)
    assert site.api.asked[0]["lora"] == ["ink:0.5", "night: blue:-1"]
    page.get_by_label("ink").fill("")
    page.get_by_role("button", name="Use settings").click()
    expect(page.get_by_label("ink")).to_have_value("0.5")
    expect(page.get_by_label("night: blue")).to_have_value("-1")


@browser_only
def test_a_step_cache_is_chosen_and_told_with_the_adapters_of_what_was_drawn(page: Any, site: Running) -> None:
    site.api.capabilities = EDITS | {"adapters": ["night: blue"]}
    page.reload()
    choice = page.get_by_label("Step cache")
    expect(choice.locator("option")).to_have_text(["none", "careful", "balanced", "fast"])
    draw(page, "a ring")
    expect_picture(page)
    assert not {"cache", "lora"} & site.api.asked[0].keys()
    assert "step cache" not in page.locator("figcaption").inner_text()
    choice.select_option("fast")
    page.get_by_label("night: blue").fill("0.5")
    draw(page, "a ring")
    expect(page.locator("figcaption")).to_contain_text("night: blue at 0.5 · step cache fast")
    assert (site.api.asked[1]["cache"], site.api.asked[1]["lora"]) == ("fast", ["night: blue:0.5"])
    choice.select_option("none")
    page.get_by_role("button", name="Use settings").click()
    expect(choice).to_have_value("fast")


@browser_only
def test_the_step_cache_of_the_server_is_what_is_chosen_at_first_and_can_be_left_out(page: Any, site: Running) -> None:
    of_server = {"defaults": cast(dict[str, Any], EDITS["defaults"]) | {"cache": "dbcache,first=2"}}
    site.api.capabilities = EDITS | of_server | {"caches": ["none", "dbcache"]}
    page.reload()
    choice = page.get_by_label("Step cache")
    expect(choice).to_have_value("dbcache,first=2")
    assert choice.locator("option").all_inner_texts() == ["none", "dbcache", "dbcache,first=2"]
    draw(page, "a ring")
    expect(page.locator("figcaption")).to_contain_text("step cache dbcache,first=2")
    choice.select_option("none")
    draw(page, "a ring")
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert [asked.get("cache") for asked in site.api.asked] == [None, "none"]
    assert "step cache" not in page.locator("figcaption").inner_text()
    site.api.capabilities = EDITS | {"caches": []}
    page.reload()
    page.get_by_label("Steps").wait_for()
    expect(choice).to_have_count(0)


@browser_only
def test_limits_and_defaults_are_the_models_own(page: Any, site: Running) -> None:
    width = page.get_by_label("Width")
    for name, value in {"min": "16", "max": "1024", "step": "16"}.items():
        expect(width).to_have_attribute(name, value)
    expect(page.get_by_label("Steps")).to_have_value("10")
    expect(page.get_by_label("Guidance")).to_have_value("3")
    width.fill("100")
    draw(page, "a ring")
    assert page.evaluate("document.querySelector('#set-width').matches(':invalid')")
    assert site.api.asked == []


@browser_only
def test_several_pictures_are_shown_side_by_side_and_kept_one_by_one(page: Any, site: Running) -> None:
    page.get_by_label("Pictures", exact=True).fill("3")
    page.get_by_label("Seed").fill("40")
    draw(page, "rings")
    expect(page.locator("#stage button img")).to_have_count(3)
    page.get_by_role("button", name="Show the picture of seed 41").click()
    expect(page.locator("figcaption")).to_contain_text("seed 41")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(4)
    assert site.api.asked[1]["seed"] == 41 and "n" not in site.api.asked[1]


@browser_only
def test_the_gallery_survives_a_reload_and_can_be_emptied(page: Any, site: Running) -> None:
    draw(page, "a star")
    expect_picture(page)
    draw(page, "a square")
    expect(page.locator("#thumbs li")).to_have_count(2)
    page.reload()
    page.get_by_role("button", name="Show: a star").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("#thumbs li")).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    page.locator("#gallery").wait_for(state="hidden")
    page.reload()
    page.get_by_text("What you make appears here.").wait_for()
    expect(page.locator("#thumbs li")).to_have_count(0)


@browser_only
@pytest.mark.parametrize(("kept", "asked"), [(2, 1), (1, 2)])
def test_what_a_page_made_before_it_was_left_is_there_once(page: Any, site: Running, kept: int, asked: int) -> None:
    """Left after the first or the second of two pictures was kept, and before their job was forgotten."""
    page.get_by_label("Pictures", exact=True).fill("2")
    page.evaluate("Storage.prototype.removeItem = () => {}")  # so it is left
    draw(page, "rings")
    expect(page.locator("#thumbs li")).to_have_count(2)
    if kept == 1:
        page.locator("#thumbs button").first.click()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("#thumbs li")).to_have_count(1)
    page.reload()
    page.get_by_text(re.compile("^Done in ")).wait_for()
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert len(site.api.asked) == asked and page.evaluate("sessionStorage.length") == 0


@browser_only
def test_the_copied_curl_and_python_work_as_pasted(page: Any, site: Running, tmp_path: Path) -> None:
    page.get_by_label("Prompt", exact=True).fill("""it's a "ring" \\ of $HOME""")
    page.get_by_label("Seed").fill(str(BIG_SEED))
    for name, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("button", name=f"Copy as {name}").click()
        page.get_by_text("Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        here = tmp_path / name
        here.mkdir()
        done = subprocess.run([*program, text], cwd=here, capture_output=True, text=True, timeout=60, env=os.environ)
        assert done.returncode == 0, done.stderr + text
        with Image.open(here / "picture.png") as picture:
            assert picture.size == (64, 64)
        page.get_by_text("Copied").wait_for(state="hidden")
    for asked in site.api.asked:
        assert asked["prompt"] == """it's a "ring" \\ of $HOME""" and asked["seed"] == BIG_SEED
        assert asked["model"] == "omnimuse/shapes" and asked["size"] == "128x128"


@browser_only
def test_everything_can_be_done_with_the_keyboard(page: Any, site: Running) -> None:
    site.api.pace = 0.2
    page.locator("#model-name").get_by_text("omnimuse/shapes").wait_for()
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("a star")
    page.keyboard.press("Control+Enter")
    page.locator("#stage img.preview").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Cancelled.").wait_for()
    site.api.pace = 0.0
    page.keyboard.press("Control+Enter")
    expect_picture(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Run again":
            break
    page.keyboard.press("Enter")
    expect(page.locator("#thumbs li")).to_have_count(2)
    names = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter((i) => !i.labels.length).map((i) => i.id)"
    )
    assert names == []


@browser_only
def test_a_refusal_is_shown_in_the_servers_words_and_the_last_picture_stays(page: Any, site: Running) -> None:
    draw(page, "a ring")
    expect_picture(page)
    site.api.problem = {"message": "size=7x7 is too small; use 16x16", "type": "invalid_request_error", "code": "x"}
    draw(page, "a square")
    alert = page.get_by_role("alert")
    alert.get_by_text("size=7x7 is too small; use 16x16 (request abc123)").wait_for()
    expect(expect_picture(page)).to_have_attribute("alt", "a ring")
    page.get_by_label("Steps").fill("0")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(alert).to_have_count(0)  # the form tells of that in its place
    page.get_by_label("Steps").fill("10")
    site.api.problem = None
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    expect(alert).to_have_count(0)


@browser_only
def test_a_key_is_asked_for_only_when_the_server_wants_one(page: Any, site: Running) -> None:
    expect(page.get_by_label("This server wants an API key")).to_be_hidden()
    site.api.key = "sesame"
    page.reload()
    page.get_by_label("This server wants an API key").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.get_by_label("This server wants an API key").fill("sesame")
    page.keyboard.press("Enter")
    page.locator("#model-name").get_by_text("omnimuse/shapes").wait_for()
    draw(page, "a ring")
    expect_picture(page)
    assert site.api.keys == ["Bearer sesame"]
    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_text("Copied").wait_for()
    assert "sesame" not in page.evaluate("navigator.clipboard.readText()")


def editing(page: Any, site: Running, **able: bool) -> None:
    """The page of a model that takes pictures, asking for one."""
    site.api.capabilities = EDITS | able
    page.reload()
    page.get_by_label("Make", exact=True).select_option("edit")


@browser_only
def test_a_family_that_edits_takes_a_picture_and_a_strength(page: Any, site: Running, tmp_path: Path) -> None:
    editing(page, site)
    draw(page, "make it blue")
    assert page.evaluate("document.querySelector('#sources').matches(':invalid')") and site.api.asked == []
    Image.new("RGB", (96, 48), "green").save(tmp_path / "start.png")
    page.get_by_label("Start from a picture").set_input_files(tmp_path / "start.png")
    expect(page.get_by_label("Strength")).to_have_value("0.6")
    page.get_by_label("Strength").fill("0.35")
    page.get_by_role("button", name="Draw").click()
    expect_picture(page)
    asked = site.api.asked[0]
    assert (asked["prompt"], asked["strength"], asked["progress"]) == ("make it blue", "0.35", "true")
    assert asked["size"] == "96x48"  # of the picture: the page asked for none
    assert site.api.sources == [("start.png", (96, 48))]
    expect(page.locator("figcaption")).to_contain_text("96 × 48")
    expect(page.locator("figcaption")).to_contain_text("strength 0.35")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert site.api.sources[1] == site.api.sources[0] and site.api.asked[1]["strength"] == "0.35"
    page.get_by_label("Make", exact=True).select_option("image")
    expect(page.get_by_label("Strength")).to_have_count(0)
    expect(page.locator("#sources")).to_be_hidden()


@browser_only
def test_what_is_painted_over_a_picture_is_its_mask_which_comes_along_when_it_is_drawn_again(
    page: Any, site: Running, tmp_path: Path
) -> None:
    editing(page, site, masks=True)
    Image.new("RGB", (96, 48), "green").save(tmp_path / "start.png")
    page.get_by_label("Start from a picture").set_input_files(tmp_path / "start.png")
    canvas = page.get_by_label("Paint over what is to be drawn anew")
    draw(page, "without paint")
    expect_picture(page)
    assert site.api.masks == []
    box = canvas.bounding_box()
    for share in (0.75, 0.95):
        page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
        page.mouse.down()
    page.mouse.up()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    [mask] = site.api.masks
    assert mask.shape == (48, 96), "of the picture's own size"
    assert (mask[:, :64] == 255).all() and (mask[24, 72:91] == 0).all() and mask[2, 80] == 255
    expect(page.locator("figcaption")).to_contain_text("a part drawn anew")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(3)
    assert np.array_equal(site.api.masks[1], mask)
    page.reload()
    page.get_by_role("button", name="Use settings").click()
    expect(page.get_by_role("button", name="Start over")).to_be_enabled()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save mask").click()
    with Image.open(saved.value.path()) as image:
        assert saved.value.suggested_filename == "mask.png" and image.size == (96, 48)
        assert np.array_equal(np.asarray(image)[..., 3] < 128, mask < 128)
    page.get_by_role("button", name="Start over").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#thumbs li")).to_have_count(4)
    assert len(site.api.masks) == 2


@browser_only
def test_an_edit_may_have_a_size_of_its_own_and_its_settings_come_back(
    page: Any, site: Running, tmp_path: Path
) -> None:
    editing(page, site)
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    page.get_by_label("Start from a picture").set_input_files(tmp_path / "start.png")
    expect(page.get_by_label("Width")).to_be_hidden()
    page.get_by_label("Shape").select_option(label="Portrait 112 × 144")
    expect(page.get_by_label("Width")).to_be_visible()
    draw(page, "a ring")
    expect_picture(page)
    assert site.api.asked[0]["size"] == "112x144"
    page.reload()
    page.locator("#thumbs button").click()
    page.get_by_role("button", name="Use settings").click()
    expect(page.get_by_label("Height")).to_have_value("144")
    assert page.evaluate("document.querySelector('#sources').files[0].name") == "start.png"


@browser_only
@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted_is_started_from(page: Any, site: Running, way: str) -> None:
    site.api.capabilities = EDITS
    page.reload()
    page.locator("#model-name").get_by_text("omnimuse/shapes").wait_for()
    page.evaluate(
        """async (way) => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 80, height: 40 });
          const blob = await new Promise((resolve) => canvas.toBlob(resolve));
          const data = new DataTransfer();
          data.items.add(new File([blob], "found.png", { type: "image/png" }));
          const event = way === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
          document.querySelector("#prompt").dispatchEvent(event);
        }""",
        way,
    )
    expect(page.get_by_label("Make", exact=True)).to_have_value("edit")
    page.locator("#chosen img[alt='found.png']").wait_for()
    draw(page, "a ring")
    expect_picture(page)
    assert site.api.sources == [("found.png", (80, 40))]


@browser_only
def test_a_picture_of_the_gallery_can_be_started_from(page: Any, site: Running) -> None:
    draw(page, "a star")
    expect_picture(page)
    expect(page.get_by_role("button", name="Use this picture")).to_have_count(0)  # this model takes none
    site.api.capabilities = EDITS
    page.reload()
    page.get_by_role("button", name="Use this picture").click()
    page.locator(f"#chosen img[alt='omnimuse-{BIG_SEED}.png']").wait_for()
    draw(page, "a square")
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert site.api.sources == [(f"omnimuse-{BIG_SEED}.png", (128, 128))]


@pytest.mark.costly(turns=3)
@browser_only
def test_the_copied_code_of_an_edit_works_as_pasted(page: Any, site: Running, tmp_path: Path) -> None:
    editing(page, site)
    name = """it's; "mine", 1.png"""
    Image.new("RGB", (96, 48)).save(tmp_path / name)
    page.get_by_label("Start from a picture").set_input_files(tmp_path / name)
    page.get_by_label("Prompt", exact=True).fill("a $ring")
    for kind, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("button", name=f"Copy as {kind}").click()
        page.get_by_text("Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(
            [*program, text], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ
        )
        assert done.returncode == 0, done.stderr + text
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.size == (64, 64)
        (tmp_path / "picture.png").unlink()
        page.get_by_text("Copied").wait_for(state="hidden")
    assert [size for _, size in site.api.sources] == [(96, 48)] * 2
    assert all(asked["prompt"] == "a $ring" and float(asked["strength"]) == 0.6 for asked in site.api.asked)


@browser_only
def test_what_lies_beyond_the_edges_is_a_part_drawn_anew_too(page: Any, site: Running, tmp_path: Path) -> None:
    editing(page, site, masks=True)
    Image.new("RGB", (96, 48), "green").save(tmp_path / "start.png")
    page.get_by_label("Start from a picture").set_input_files(tmp_path / "start.png")
    margins = page.get_by_label("Draw on beyond the edges")
    margins.fill("64,0")
    draw(page, "a beach")
    assert margins.evaluate("input => input.matches(':invalid')") and site.api.asked == []
    margins.fill("64, 0, 64, 0")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect_picture(page)
    assert site.api.asked[0]["pad"] == "64, 0, 64, 0" and "strength" not in site.api.asked[0]
    expect(page.locator("figcaption")).to_contain_text("beyond the edges by 64, 0, 64, 0")
    page.get_by_label("Strength").fill("0.9")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert site.api.asked[1]["strength"] == "0.9"


@pytest.mark.costly(turns=3)
@browser_only
def test_the_copied_code_of_a_part_drawn_anew_sends_the_mask(page: Any, site: Running, tmp_path: Path) -> None:
    editing(page, site, masks=True)
    Image.new("RGB", (96, 48)).save(tmp_path / "start.png")
    page.get_by_label("Start from a picture").set_input_files(tmp_path / "start.png")
    page.get_by_label("Paint over what is to be drawn anew").click()
    page.get_by_label("Prompt", exact=True).fill("a ring")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save mask").click()
    saved.value.save_as(tmp_path / "mask.png")
    for kind, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("button", name=f"Copy as {kind}").click()
        page.get_by_text("Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(
            [*program, text], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ
        )
        assert done.returncode == 0, done.stderr + text
        page.get_by_text("Copied").wait_for(state="hidden")
    first, second = site.api.masks
    assert np.array_equal(first, second) and first[24, 48] == 0


@browser_only
def test_a_sound_is_made_played_and_downloaded_as_a_file(page: Any, site: Running) -> None:
    site.api.capabilities, site.api.pace = SOUNDS, 0.05
    page.reload()
    page.get_by_label("Seconds").fill("1.5")
    expect(page.get_by_label("Width")).to_have_count(0)
    draw(page, "rain on a roof")
    page.get_by_text(re.compile(r"Step \d+ of 10")).wait_for()
    player = page.locator("#stage figure audio")
    player.wait_for()
    known = "(done) => audio.readyState ? done(audio.duration) : audio.onloadedmetadata = () => done(audio.duration)"
    assert player.evaluate(f"audio => new Promise({known})") == pytest.approx(1.5, abs=0.01)
    asked = site.api.asked[0]
    assert (asked["prompt"], asked["seconds"], asked["stream_format"]) == ("rain on a roof", 1.5, "sse")
    assert not {"size", "width", "height", "n", "output_format"} & set(asked)
    for told in ("1.5 s", f"seed {BIG_SEED}"):
        expect(page.locator("figcaption")).to_contain_text(told)
    expect(page.locator("figcaption")).not_to_contain_text("×")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.endswith(".wav")
    page.get_by_role("button", name="Run again").click()
    page.locator("#thumbs li").nth(1).wait_for()
    assert site.api.asked[1]["seconds"] == 1.5


@browser_only
def test_a_sound_is_heard_while_it_is_made_and_no_more_when_its_making_is_cancelled(page: Any, site: Running) -> None:
    site.api.capabilities, site.api.pace = SOUNDS, 0.05
    page.reload()
    page.evaluate(HEARD)
    page.get_by_label("Seconds").fill("1.5")
    draw(page, "rain on a roof")
    page.locator("#stage figure audio").wait_for()
    heard = page.evaluate("heard")
    assert len(heard) == 10 and not any(piece["made"] for piece in heard)
    assert sum(piece["lasts"] for piece in heard) == pytest.approx(1.5)
    assert {round(piece["most"], 1) for piece in heard} == {0.5}
    for before, then in pairwise(heard):
        assert then["at"] >= before["at"] + before["lasts"] - 1e-6, "nothing is said over what is still said"
    wait_until(page, "context.state === 'closed'")  # it has played to its end
    site.api.pace = 0.3
    draw(page, "wind")
    wait_until(page, "heard.length > 11")
    page.get_by_role("button", name="Cancel", exact=True).click()
    wait_until(page, "context.state === 'closed'")
    assert page.evaluate("heard.length") < 20


@browser_only
def test_a_sound_is_made_from_a_sound_that_was_chosen_or_made_before(page: Any, site: Running, tmp_path: Path) -> None:
    site.api.capabilities = SOUNDS | {
        "tasks": ["text-to-audio", "audio-to-audio"],
        "max_sounds": 1,
        "parameters": [*cast(list[str], SOUNDS["parameters"]), "strength"],
    }
    page.reload()
    page.get_by_label("Make", exact=True).select_option("cover")
    tone = encode_sound(Sound(np.zeros((1, 800), np.float32), 8000), "WAV", {})
    (tmp_path / "rain.wav").write_bytes(tone)
    page.get_by_label("Start from a sound").set_input_files(tmp_path / "rain.wav")
    page.locator("#chosen audio").wait_for()
    page.get_by_label("Seconds").fill("1.5")
    page.get_by_label("Strength").fill("0.35")
    draw(page, "a heavy storm")
    page.locator("#stage figure audio").wait_for()
    assert site.api.recordings == [("rain.wav", tone)]
    assert (site.api.asked[0]["strength"], site.api.asked[0]["seconds"]) == ("0.35", 1.5)
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert site.api.recordings[1] == site.api.recordings[0]
    for kind, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("button", name=f"Copy as {kind}").click()
        page.get_by_text("Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(
            [*program, text], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=os.environ
        )
        assert done.returncode == 0, done.stderr + text
        assert (tmp_path / "sound.wav").read_bytes() == b"RIFF"
        (tmp_path / "sound.wav").unlink()
        page.get_by_text("Copied").wait_for(state="hidden")
    assert [given for _, given in site.api.recordings[2:]] == [tone] * 2
    page.get_by_label("Make", exact=True).select_option("audio")
    page.get_by_label("Seconds").fill("1")
    page.get_by_role("button", name="Copy as Python").click()
    page.get_by_text("Copied").wait_for()
    subprocess.run(
        [sys.executable, "-c", page.evaluate("navigator.clipboard.readText()")], cwd=tmp_path, check=True, timeout=60
    )
    assert (tmp_path / "sound.wav").read_bytes() == b"RIFF" and len(site.api.recordings) == 4
    page.get_by_role("button", name="Use this sound").click()
    expect(page.get_by_label("Make", exact=True)).to_have_value("cover")
    page.locator(f"#chosen audio[title='omnimuse-{BIG_SEED}.wav']").wait_for()


@browser_only
def test_a_video_job_is_followed_fetched_and_cancelled(page: Any, site: Running) -> None:
    site.api.capabilities = VIDEOS
    site.api.pace = 0.1
    page.reload()
    page.get_by_label("Frames", exact=True).fill("13")
    draw(page, "a rolling ball")
    page.locator("#stage img.preview").wait_for()
    page.locator("#stage figure video").wait_for(state="attached")
    asked = site.api.asked[0]
    assert asked["num_frames"] == 13 and asked["size"] == "128x128" and "stream" not in asked
    expect(page.locator("figcaption")).to_contain_text(f"seed {BIG_SEED}")
    site.api.pace = 1.0
    draw(page, "a slow ball")
    page.locator("#stage img.preview").wait_for()
    page.get_by_role("button", name="Cancel").click()
    assert site.api.cancelled.wait(60)


def filming(page: Any, site: Running, folder: Path) -> None:
    """The page, ready for a video between two pictures in `folder`."""
    site.api.capabilities = FILMS
    page.reload()
    page.get_by_label("Make", exact=True).select_option("film")
    for name, size in (("first.png", (96, 48)), ("last.png", (40, 20))):
        Image.new("RGB", size, "green").save(folder / name)
    page.get_by_label("Start from a picture").set_input_files([folder / "first.png", folder / "last.png"])


@browser_only
def test_a_video_is_made_between_two_pictures_and_again(page: Any, site: Running, tmp_path: Path) -> None:
    filming(page, site, tmp_path)
    page.get_by_text("a second one is the last").wait_for()
    expect(page.get_by_label("Frames", exact=True)).to_have_attribute("min", "5")
    draw(page, "a rolling ball")
    page.locator("#stage figure video").wait_for(state="attached")
    assert site.api.sources == [("first.png", (96, 48)), ("last.png", (40, 20))]
    assert site.api.asked[0]["prompt"] == "a rolling ball" and site.api.asked[0]["size"] == "96x48"
    expect(page.locator("figcaption")).to_contain_text("96 × 48")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    assert site.api.sources[2:] == site.api.sources[:2]
    page.get_by_label("Make", exact=True).select_option("video")
    expect(page.locator("#sources")).to_be_hidden()


def run_copied(page: Any, folder: Path) -> None:
    """Runs in `folder` what the page copies for a video, as curl and as Python: each leaves the video there."""
    for kind, program in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-W", "ignore", "-c"])):
        page.get_by_role("button", name=f"Copy as {kind}").click()
        page.get_by_text("Copied").wait_for()
        text = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run([*program, text], cwd=folder, capture_output=True, text=True, timeout=60, env=os.environ)
        assert done.returncode == 0, done.stderr + text
        assert (folder / "video.mp4").read_bytes() == MADE
        (folder / "video.mp4").unlink()
        page.get_by_text("Copied").wait_for(state="hidden")


@pytest.mark.costly(turns=3)
@browser_only
def test_the_copied_code_of_a_video_from_pictures_works_as_pasted(page: Any, site: Running, tmp_path: Path) -> None:
    filming(page, site, tmp_path)
    page.get_by_label("Prompt", exact=True).fill("a ball")
    run_copied(page, tmp_path)
    assert [size for _, size in site.api.sources] == [(96, 48), (40, 20)] * 2


REEL = b"\0\0\0\x18ftypmp42a reel"
"""What no browser shows, and every page can send."""


@browser_only
def test_a_video_is_made_of_a_video_that_was_dropped_or_of_one_from_the_gallery(page: Any, site: Running) -> None:
    site.api.capabilities = REELS
    page.reload()
    page.get_by_label("Prompt", exact=True).wait_for()
    page.evaluate(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "waves.mp4", { type: "video/mp4" }));
          const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
          document.querySelector("#prompt").dispatchEvent(drop);
        }""",
        list(REEL),
    )
    page.locator("#chosen video[title='waves.mp4']").wait_for()
    expect(page.get_by_label("Make", exact=True)).to_have_value("reel")
    expect(page.get_by_text("Lower keeps more of the video")).to_be_visible()
    draw(page, "waves of gold")
    page.locator("#stage figure video").wait_for(state="attached")
    assert site.api.films == [REEL] and site.api.asked[0]["strength"] == "0.8"
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#thumbs li")).to_have_count(2)
    page.get_by_role("button", name="Use this video").click()
    page.locator("#chosen video").wait_for()
    draw(page, "waves of silver")
    expect(page.locator("#thumbs li")).to_have_count(3)
    assert site.api.films == [REEL, REEL, MADE]
    page.get_by_label("Make", exact=True).select_option("video")
    expect(page.locator("#sources")).to_be_hidden()


@pytest.mark.costly(turns=3)
@browser_only
def test_the_copied_code_of_a_video_from_a_video_works_as_pasted(page: Any, site: Running, tmp_path: Path) -> None:
    site.api.capabilities = REELS
    page.reload()
    page.get_by_label("Make", exact=True).select_option("reel")
    (tmp_path / "waves.mp4").write_bytes(REEL)
    page.get_by_label("Start from a video").set_input_files(tmp_path / "waves.mp4")
    page.get_by_label("Prompt", exact=True).fill("waves of gold")
    run_copied(page, tmp_path)
    assert site.api.films == [REEL, REEL]


def waves(path: Path, size: tuple[int, int]) -> bytes:
    """Writes a video that a browser shows."""
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=8)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(3):
            picture = Image.new("RGB", size, (40 * number, 90, 200))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path.read_bytes()


@browser_only
def test_a_video_is_sent_with_pictures_beside_it_and_what_is_painted_over_it(
    page: Any, site: Running, tmp_path: Path
) -> None:
    site.api.capabilities = REELS | {"max_images": 4, "takes_images": True, "masks_videos": True}
    page.reload()
    page.get_by_label("Make", exact=True).select_option("reel")
    page.get_by_text("the model is shown them").wait_for()
    film = waves(tmp_path / "waves.webm", (96, 48))
    for name, size in (("cat.png", (40, 20)), ("hat.png", (20, 40))):
        Image.new("RGB", size, "green").save(tmp_path / name)
    files = [tmp_path / name for name in ("waves.webm", "cat.png", "hat.png")]
    page.get_by_label("Start from a video").set_input_files(files)
    canvas = page.get_by_label("Paint over what is to be drawn anew")
    canvas.wait_for()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, box["y"] + 20)
    page.mouse.up()
    draw(page, "a cat in the waves")
    page.locator("#stage figure video").wait_for(state="attached")
    assert site.api.films == [film]
    assert site.api.sources == [("cat.png", (40, 20)), ("hat.png", (20, 40))]
    [mask] = site.api.masks
    assert mask.shape == (48, 96) and mask.min() == 0 and mask.max() == 255
    page.get_by_role("button", name="Save mask").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save mask").click()
    download.value.save_as(tmp_path / "mask.png")
    run_copied(page, tmp_path)
    assert site.api.films == [film] * 3 and len(site.api.masks) == 3
    assert site.api.sources == [("cat.png", (40, 20)), ("hat.png", (20, 40))] * 3


@browser_only
def test_a_video_goes_on_when_the_page_is_loaded_again(page: Any, site: Running) -> None:
    site.api.capabilities = VIDEOS
    site.api.pace = 0.8
    page.reload()
    draw(page, "a rolling ball")
    page.get_by_text(re.compile(r"Step \d+ of 10")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"Step \d+ of 10")).wait_for()
    page.get_by_role("button", name="Cancel").wait_for()
    page.locator("#stage figure video").wait_for(state="attached")
    for said in ("a rolling ball", f"seed {BIG_SEED}", "made in 42 s"):
        expect(page.locator("figcaption")).to_contain_text(said)
    assert len(site.api.asked) == 1 and not site.api.cancelled.is_set()
    page.reload()
    page.locator("#thumbs li").wait_for()
    expect(page.locator("#thumbs li")).to_have_count(1)
    expect(page.locator("#progress")).to_be_hidden()
    assert page.evaluate("Object.values(sessionStorage)") == []


@browser_only
def test_a_video_that_went_on_can_be_cancelled(page: Any, site: Running) -> None:
    site.api.capabilities = VIDEOS
    site.api.pace = 1.0
    page.reload()
    draw(page, "a slow ball")
    page.get_by_text(re.compile(r"Step \d+ of 10")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"Step \d+ of 10")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    assert site.api.cancelled.wait(5)
    page.get_by_text("Cancelled.").wait_for()
    expect(page.locator("#progress")).to_be_hidden()
    assert page.evaluate("Object.values(sessionStorage)") == []


@browser_only
def test_on_a_phone_open_settings_do_not_push_the_picture_away(browser: Any, site: Running) -> None:
    with opened(browser, site.url, viewport=PHONE) as page:
        draw(page, "a ring")
        expect_picture(page)
        top = page.locator("#stage").evaluate("node => node.offsetTop")
        assert not page.locator("#settings").evaluate("node => node.open")
        page.locator("#settings > summary").click()
        assert page.locator("#stage").evaluate("node => node.offsetTop") == top
        page.get_by_label("Steps").fill("4")
        page.get_by_role("button", name="Draw").click()
        expect(page.locator("#thumbs li")).to_have_count(2)
        assert site.api.asked[1]["num_inference_steps"] == 4  # they belong to the form all the same
        page.get_by_label("Steps").fill("0")
        page.get_by_role("button", name="Draw").click()
        assert page.evaluate("document.querySelector('#set-num_inference_steps').matches(':invalid')")
        page.set_viewport_size(DESKTOP)
        left = "document.querySelector('{}').getBoundingClientRect().left"  # the page is laid out anew in its own time
        wait_until(page, f"{left.format('#settings')} < {left.format('#stage')}")
        assert len(site.api.asked) == 2


@browser_only
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_the_screen(
    browser: Any, site: Running, tmp_path: Path, viewport: dict[str, int], scheme: str
) -> None:
    width, height = viewport["width"], viewport["height"]
    with opened(browser, site.url, viewport=viewport, color_scheme=scheme) as page:
        draw(page, "a yellow star above a blue square")
        expect_picture(page)
        wide = page.evaluate("document.documentElement.scrollWidth")
        file = tmp_path / f"page-{width}-{scheme}.png"
        page.screenshot(path=file)
    assert wide <= width
    with Image.open(file) as shot:
        shade = sum(cast(tuple[int, ...], shot.convert("RGB").getpixel((4, height - 4)))) / 3
        assert shot.size == (width, height) and (shade < 60 if scheme == "dark" else shade > 230)


# -- the files ---------------------------------------------------------------------------------------------------


def fetch(url: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_every_file_of_the_page_has_a_strict_policy_and_is_not_sent_twice(site: Running) -> None:
    for path in ("/", "/playground/app.js", "/playground/style.css", "/playground/icon.svg"):
        status, headers, content = fetch(site.url + path)
        assert status == 200 and content
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert fetch(site.url + path, {"If-None-Match": headers["etag"]})[::2] == (304, b"")


def test_only_the_files_of_the_page_are_served(site: Running) -> None:
    for path in ("__init__.py", "nothing.js", "..%2Fserver%2Foptions.py", "../server/options.py", "%2e%2e/api.py", ""):
        assert fetch(f"{site.url}/playground/{path}")[0] == 404


def test_the_page_names_nothing_outside_this_server_and_has_no_inline_script_or_style() -> None:
    for name, (content, _) in playground.read_files().items():
        text = content.decode()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], name
        if name.endswith(".html"):
            assert "<style" not in text and not re.search(r"\s(style|on\w+)=|<script[^>]*>[^<]", text)
