"""A real browser (headless Chromium) for tests of the page; where there is none they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

PATIENCE = 60_000  # milliseconds: other work may have both cores
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name, there in (("Chromium", CHROMIUM), ("Playwright", find_spec("playwright"))) if not there]
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream"]
browser_only = pytest.mark.skipif(bool(MISSING), reason=f"there is no {' and no '.join(MISSING)} on this machine")
HEARD = """() => {
  window.heard = [];
  const begin = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (at) {
    const made = Boolean(document.querySelector("#stage figure audio, #said audio"));
    heard.push({ at, lasts: this.buffer.duration, most: Math.max(...this.buffer.getChannelData(0)), made });
    window.context = this.context;
    begin.call(this, at);
  };
}"""
"""Has `heard` tell what is played piece by piece, and whether the whole was there then."""
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}


@contextmanager
def browsing() -> Iterator[Any]:
    """A browser, an object of Playwright's, with a microphone that beeps. While it is there this thread cannot run a
    loop of asyncio's.
    """
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as library:
        chromium = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@contextmanager
def opened(chromium: Any, url: str, **options: Any) -> Iterator[Any]:
    """The page at `url` in a profile of its own; `options` are those of a context of Playwright's.

    At the end no script may have failed, the console have had an error, or the security policy have forbidden
    something. What the server refuses is an error on the console, too, and may be.
    """
    context = chromium.new_context(**{"viewport": DESKTOP, "base_url": url} | options)
    context.set_default_timeout(PATIENCE)
    found: list[str] = []
    context.add_init_script(
        "addEventListener('securitypolicyviolation',"
        " (event) => console.error(`CSP: ${event.violatedDirective} ${event.blockedURI}`))"
    )
    context.on("console", lambda said: found.append(said.text) if said.type == "error" else None)
    context.on("weberror", lambda said: found.append(str(said.error)))
    page = context.new_page()
    page.goto("/")
    yield page
    context.close()
    assert [line for line in found if "Failed to load resource" not in line] == []


def wait_until(page: Any, condition: str) -> None:
    """Until `condition`, an expression, is true on the page. It is asked from here: a page that asks itself again and
    again would evaluate texts, which ours forbids.
    """
    for _ in range(PATIENCE // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {condition}")


def expect(found: Any) -> Any:
    """What Playwright expects of a place on the page, and waits for."""
    from playwright.sync_api import expect as of

    return of(found)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests of a file; no other test of that file may run a loop of asyncio's."""
    with browsing() as chromium:
        yield chromium
