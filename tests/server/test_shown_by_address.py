"""Pictures, sounds and videos that the messages of a chat show by their address: what is fetched, and from whom."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx2
import numpy as np
import pytest
from PIL import Image

from omnimuse.core.config import Config, ModelConfig
from omnimuse.media.clip import open_watched
from omnimuse.media.fetch import FetchRules
from omnimuse.media.picture import picture_of
from omnimuse.media.recording import read_sound, samples_of
from omnimuse.media.video import Video, encode_video
from omnimuse.server.http.uploads import Uploads
from omnimuse.worker.find import find
from tests.checkpoints import qwen3_omni
from tests.checkpoints.wishes import film, photo
from tests.server.picture_server import Running, picture_server
from tests.server.test_talk_aloud import wav
from tests.unit.media.hostile import encoded

FILES = {
    "image_url": encoded(photo(40, 24), "PNG"),
    "audio_url": wav(),
    "video_url": encode_video(Video(film(24, 16, 6), 2.0), {}),
}
WHAT = {"image_url": "picture", "audio_url": "sound", "video_url": "video"}
MEDIA = {"image_url": "image", "audio_url": "audio", "video_url": "video"}
LARGE = {"image_url": "image_too_large", "audio_url": "invalid_audio", "video_url": "invalid_video"}
EXPECTED: Mapping[str, Callable[[bytes], object]] = {
    "image_url": lambda content: picture_of(Image.open(io.BytesIO(content))),
    "video_url": open_watched,
}
MOST, SECONDS = 200_000, 0.5


class Host(BaseHTTPRequestHandler):
    """Files by what they are and how they are answered: /audio_url/slow."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answer."""
        self.asked.append(self.path)
        _, kind, how = self.path.split("/")
        content = {"letter": b"a letter", "large": bytes(MOST + 1)}.get(how, FILES.get(kind, b""))
        self.send_response(302 if how == "redirect" else 200)
        self.send_header("Location", f"http://{self.headers['Host']}/{kind}/whole")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.flush()
        if how == "slow":
            time.sleep(3 * SECONDS)
        with suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *told: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """The name and the port of a host of files on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = qwen3_omni.build(tmp_path_factory.mktemp("shown") / "tiny")
    rules = FetchRules(frozenset({host}), MOST, SECONDS, lambda address: address.is_loopback)
    door = find(Config(ModelConfig(str(folder)))).door
    with picture_server(tmp_path_factory.mktemp("data"), door=door, uploads=lambda: Uploads(rules=rules)) as made:
        yield made


def ask(server: Running, kind: str, url: str) -> httpx2.Response:
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "what is this"}]
    asked = {"messages": [{"role": "user", "content": content}]}
    return httpx2.post(f"{server.url}/v1/chat/completions", json=asked, timeout=60)


@pytest.mark.parametrize("kind", FILES)
def test_what_is_at_an_address_of_an_allowed_host_is_shown(server: Running, host: str, kind: str) -> None:
    answer = ask(server, kind, f"http://{host}/{kind}/whole")
    assert answer.status_code == 200, answer.content
    request = server.workers.started[-1]
    shown = {"image_url": request.images, "audio_url": request.sounds, "video_url": request.videos}
    assert [len(found) for name, found in shown.items() if name != kind] == [0, 0]
    [[found]] = [found for name, found in shown.items() if name == kind]
    if kind == "audio_url":  # whose samples are rounded once more by what reads it here
        expected = samples_of(read_sound(io.BytesIO(FILES[kind])), 16_000, 1)
        assert np.abs(samples_of(found, 16_000, 1) - expected).max() < 1e-4
    else:
        assert found == EXPECTED[kind](FILES[kind])


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("redirect", "the address answered with status 302"),
        ("letter", "the {what} is no"),
        ("large", "the {what} is too large"),
        ("slow", "the address did not answer in full within 0.5 s"),
    ],
)
def test_what_is_not_one_whole_file_is_refused_by_its_field(
    server: Running, host: str, kind: str, how: str, says: str
) -> None:
    before, Host.asked[:] = len(server.workers.started), []
    answer = ask(server, kind, f"http://{host}/{kind}/{how}")
    error = answer.json()["error"]
    field = f"messages[0].content[0].{kind}"
    assert (answer.status_code, error["param"]) == (400, field), error
    assert error["message"].startswith(f"{field}: " + says.format(what=WHAT[kind])), error
    assert error["code"] == {"letter": f"invalid_{MEDIA[kind]}", "large": LARGE[kind]}.get(how, "url_not_allowed")
    assert "image/png" not in error["message"] or kind == "image_url"
    assert Host.asked == [f"/{kind}/{how}"], "a redirect leads nowhere, not even to the same host"
    assert len(server.workers.started) == before


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("where", ["localhost:{port}", "127.0.0.1:1", "example.com"])
def test_no_other_host_is_asked(server: Running, host: str, kind: str, where: str) -> None:
    Host.asked[:] = []
    answer = ask(server, kind, f"http://{where.format(port=host.split(':')[1])}/{kind}/whole")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "url_not_allowed")
    assert "does not fetch from that host" in answer.json()["error"]["message"]
    assert Host.asked == []
