"""The page in the words of what a model makes, in reach of fingers, and whose voice somebody speaks in."""

from __future__ import annotations

import io
import re
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnimuse.media.sound import Sound, encode_sound
from tests.server.browser import PHONE, browser_only, expect, opened
from tests.server.page_api import EDITS, PICTURES, REELS, SOUNDS, SPEECH, VIDEOS, VOICES, Running, listening

MODELS: dict[str, dict[str, Any]] = {
    "picture": PICTURES,
    "edit": EDITS | {"masks": True},
    "video": VIDEOS,
    "video of a video": REELS,
    "sound": SOUNDS,
    "speech": SPEECH,
    "voice": VOICES,
}
WORDS = {
    "picture": ("Draw", "draws", "Drawing."),
    "video": ("Make the video", "makes the video", "Making the video."),
    "sound": ("Make the sound", "makes the sound", "Making the sound."),
    "speech": ("Speak", "speaks", "Speaking."),
    "voice": ("Speak", "speaks", "Speaking."),
}
TOLD = """() => [...document.querySelectorAll("*")].filter((node) => node.checkVisibility())
  .flatMap((node) => ["title", "placeholder", "aria-label"].map((name) => node.getAttribute(name) ?? ""))
  .concat(document.body.innerText).join("\\n")"""
"""All that a page says, to those who see it and to those who have it read out."""
CONTROLS = """() => [...document.querySelectorAll("button, a[href], select, input, textarea, summary, audio, video")]
  .filter((node) => node.checkVisibility() && node.getClientRects().length).map((node) => {
    const { width, height } = node.getBoundingClientRect();
    const labels = [...(node.labels ?? [])].map((label) => label.textContent).join("");
    const name = node.ariaLabel || node.title || labels || node.textContent.trim();
    return { tag: node.tagName, type: node.type, id: node.id, width, height, name };
  })"""


@pytest.fixture
def site() -> Iterator[Running]:
    with listening() as running:
        yield running


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """A file in which something is heard."""
    (tmp_path / "me.wav").write_bytes(encode_sound(Sound(np.zeros((1, 800), np.float32), 8000), "WAV", {}))
    return tmp_path / "me.wav"


def write(page: Any, what: str) -> None:
    page.get_by_label(re.compile("^(Prompt|Text)$")).fill(what)


@pytest.mark.costly(turns=3)
@browser_only
@pytest.mark.parametrize("medium", WORDS)
def test_the_page_has_the_words_of_what_is_made(browser: Any, site: Running, medium: str, tone: Path) -> None:
    make, makes, making = WORDS[medium]
    site.api.capabilities, site.api.pace = MODELS[medium], 0.3
    with opened(browser, site.url) as page:
        page.get_by_text(f"Ctrl Enter {makes}, Esc cancels").wait_for()
        write(page, "good morning")
        if medium == "voice":
            page.get_by_label("In the voice of").set_input_files(tone)
        page.get_by_role("button", name=make, exact=True).click()
        page.locator("#status").get_by_text(making, exact=True).wait_for()
        page.get_by_role("button", name=f"{make} next", exact=True).click()
        page.get_by_role("button", name="Remove: good morning").click()
        told = page.evaluate(TOLD).lower()
        foreign = {"picture": "video|sound|speak", "video": "picture|sound|speak|draw"}
        assert not re.search(foreign.get(medium, "picture|video|draw|see\\b"), told), told
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for()
        site.api.pace = 0.0
        page.get_by_role("button", name=make, exact=True).click()
        page.locator("figure").wait_for()
        assert not re.search(foreign.get(medium, "picture|video|draw|see\\b"), page.evaluate(TOLD).lower())


@pytest.mark.costly(turns=3)
@browser_only
@pytest.mark.parametrize("medium", MODELS)
def test_fingers_reach_all_controls_and_each_has_a_name(browser: Any, site: Running, medium: str, tone: Path) -> None:
    site.api.capabilities = MODELS[medium]
    with opened(browser, site.url, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        page.locator("#model-name").get_by_text("omnimuse/shapes").wait_for()
        found = page.evaluate(CONTROLS)
        write(page, "good morning")
        if medium == "voice":
            page.get_by_label("In the voice of").set_input_files(tone)
        page.locator("#draw").click()
        page.locator("figure").wait_for()
        page.locator("#settings > summary").click()
        if medium == "edit":
            page.get_by_label("Make", exact=True).select_option("edit")
            page.get_by_role("button", name="Use this picture").click()
            page.locator("canvas").wait_for()
        found += page.evaluate(CONTROLS)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    small = [each for each in found if each["type"] != "checkbox" and min(each["width"], each["height"]) < 44]
    assert small == []
    assert [each for each in found if not each["name"]] == []


@browser_only
def test_somebody_speaks_in_the_voice_of_a_sound_that_was_chosen(browser: Any, site: Running, tone: Path) -> None:
    site.api.capabilities = VOICES
    with opened(browser, site.url) as page:
        write(page, "good morning")
        page.get_by_role("button", name="Speak", exact=True).click()
        assert page.evaluate("document.querySelector('#sources').matches(':invalid')") and site.api.asked == []
        page.get_by_label("In the voice of").set_input_files(tone)
        page.get_by_label("What is said in it").fill("one, two")
        page.get_by_role("button", name="Speak", exact=True).click()
        page.locator("#stage figure audio").wait_for()
        page.get_by_role("button", name="Use settings").click()
        expect(page.get_by_label("What is said in it")).to_have_value("one, two")
    assert site.api.recordings == [("me.wav", tone.read_bytes())]
    assert site.api.asked[0]["extra_params[ref_text]"] == "one, two"


@browser_only
def test_what_a_model_needs_is_asked_for_before_anything_is_sent(browser: Any, site: Running) -> None:
    site.api.capabilities = SPEECH | {"needs": ["instructions"]}
    with opened(browser, site.url) as page:
        write(page, "good morning")
        page.get_by_role("button", name="Speak", exact=True).click()
        assert page.evaluate("document.querySelector('#extra-instructions').matches(':invalid')")
        assert page.evaluate("!document.querySelector('#extra-voice').matches(':invalid')") and site.api.asked == []
        page.get_by_label("Instructions").fill("an old man, tired")
        page.get_by_role("button", name="Speak", exact=True).click()
        page.locator("#stage figure audio").wait_for()
    assert [asked["extra_params"] for asked in site.api.asked] == [{"instructions": "an old man, tired"}]


@browser_only
def test_a_voice_is_recorded_with_the_microphone(browser: Any, site: Running) -> None:
    site.api.capabilities = VOICES
    with opened(browser, site.url, permissions=["microphone"]) as page:
        page.get_by_role("button", name="Record").click()
        page.get_by_role("button", name="Stop after 1 s").click()
        page.locator("#chosen audio").wait_for()
        write(page, "good morning")
        page.get_by_role("button", name="Speak", exact=True).click()
        page.locator("#stage figure audio").wait_for()
    [(name, content)] = site.api.recordings
    with wave.open(io.BytesIO(content)) as file:
        assert (name, file.getframerate(), file.getnchannels(), file.getsampwidth()) == ("recording.wav", 24_000, 1, 2)
        assert 0.5 < file.getnframes() / file.getframerate() < 30
        assert np.abs(np.frombuffer(file.readframes(file.getnframes()), "<i2")).max() > 1000, "the device beeps"


@browser_only
def test_who_allows_no_microphone_is_told(browser: Any, site: Running) -> None:
    site.api.capabilities = VOICES
    with opened(browser, site.url) as page:
        page.get_by_role("button", name="Record").click()
        page.get_by_text("The microphone gave nothing").wait_for()
        expect(page.get_by_role("button", name="Record")).to_be_enabled()
