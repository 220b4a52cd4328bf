"""What a page that talks says aloud: heard while it is made, and no more when somebody has enough."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tests.server.browser import HEARD, browser_only, opened, wait_until
from tests.server.page_api import TALKS, Running, listening


@pytest.fixture
def site() -> Iterator[Running]:
    with listening() as running:
        running.api.capabilities = TALKS
        yield running


def say(page: Any, what: str) -> None:
    page.get_by_label("Say something").fill(what)
    page.get_by_label("Say something").press("Enter")


@browser_only
def test_an_answer_is_heard_while_it_is_made_and_no_more_when_it_is_stopped_or_another_sound_plays(
    browser: Any, site: Running
) -> None:
    with opened(browser, site.url) as page:
        page.evaluate(HEARD)
        page.get_by_label("Aloud").select_option("chelsie")
        site.api.pace = 0.05
        say(page, "hello")
        page.locator("#said .assistant audio").wait_for()
        assert site.api.asked[0]["audio"] == {"voice": "chelsie", "format": "pcm16"}
        heard = page.evaluate("heard")
        assert len(heard) == 10 and not any(piece["made"] for piece in heard), "before the whole is there"
        assert all(piece["lasts"] == pytest.approx(0.15) and 0.4 < piece["most"] < 0.6 for piece in heard)
        for before, then in pairwise(heard):
            assert then["at"] >= before["at"] + before["lasts"] - 1e-6, "nothing is said over what is still said"
        wait_until(page, "context.state === 'closed'")  # it has played to its end
        assert page.evaluate("document.querySelector('#said audio').duration") == pytest.approx(1.5, abs=0.01)

        site.api.pace = 0.3
        say(page, "go on")
        wait_until(page, "heard.length > 11")
        page.get_by_label("Say something").press("Escape")
        wait_until(page, "context.state === 'closed'")
        assert page.evaluate("heard.length") < 20
        assert "word 9" not in page.locator("#said .assistant").last.inner_text()

        say(page, "again")
        wait_until(page, "context.state !== 'closed'")
        page.evaluate("document.querySelector('#said audio').play()")
        wait_until(page, "context.state === 'closed'")


@browser_only
def test_nothing_is_heard_where_no_voice_is_chosen(browser: Any, site: Running) -> None:
    with opened(browser, site.url) as page:
        page.evaluate(HEARD)
        say(page, "hello")
        page.get_by_text("word 9").wait_for()
        assert "audio" not in site.api.asked[0]
        assert page.evaluate("heard.length") == 0 and page.locator("#said audio").count() == 0
